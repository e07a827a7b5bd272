"""What users can fix: errors whose message is the whole of what they are shown, in one line."""


class UserError(Exception):
    """Something that the user can fix; the message says what is wrong, where (file, key, run) and what to do.

    Attributes:
      exit_code: of a command that ends with it: 1 failed, 2 bad usage or configuration.
      lines: whether the message is a list, shown line by line; else it is shown as one line.
    """

    exit_code = 1
    lines = False
