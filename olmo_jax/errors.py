"""What users can fix: errors whose message is the whole of what they are shown, in one line."""

_LONGEST = 300  # characters


def brief(cause: BaseException | str) -> str:
    """A library's message, or the name of its error, as part of a line; it may quote a file, and so is bounded."""
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


class UserError(Exception):
    """Something that the user can fix; the message says what is wrong, where (file, key, run) and what to do.

    Attributes:
      exit_code: of a command that ends with it: 1 failed, 2 bad usage or configuration.
      lines: whether the message is a list, shown line by line; else it is shown as one line.
    """

    exit_code = 1
    lines = False


class CheckpointError(UserError):
    """A run or checkpoint that is missing or can't be read; the message says which and what to do."""
