"""Errors that users can fix; only their message is shown, on one line."""

_MAX_LENGTH = 300  # characters


def brief(cause: BaseException | str) -> str:
    """Return a library's error message, or its class name, as one line.

    It is cut to 300 characters, since it may quote a whole file.
    """
    text = " ".join(str(cause).split()) or type(cause).__name__
    return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + "..."


class UserError(Exception):
    """An error that the user can fix; the message says what is wrong, where (file, key, run) and what to do.

    Attributes:
      exit_code: exit status of a command that fails with this error: 1 failed, 2 bad usage or configuration.
      lines: whether the message is a list, shown line by line, rather than one line.
    """

    exit_code = 1
    lines = False


class CheckpointError(UserError):
    """A run or checkpoint that is missing or can't be read; the message says which and what to do."""


class WeightsError(UserError):
    """Weights that can't be read; the message says what is wrong, where, and what to do."""
