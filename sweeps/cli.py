"""The command line: olmo-jax VERB [arguments]; each verb has a file in verbs/.

Exit codes: 0 done, 1 failed, 2 bad usage or configuration, 75 stopped by a signal after a checkpoint (run it again).
Heavy modules are imported only by the verbs that need them, so that --help answers at once.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from olmo_jax.console import say, shortened
from olmo_jax.errors import UserError
from sweeps.arguments import parse, parser
from sweeps.streams import finish_stdout, reader_left, take_any_text
from sweeps.verbs import VERBS
from sweeps.verbs.verb import DONE, FAILED, STOPPED, Command


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit code; one line on stderr says what went wrong."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "_ARGCOMPLETE" in os.environ:  # set by the shell when Tab is pressed
        from sweeps.starting.completion import complete

        complete(parser())
    take_any_text()
    try:
        with _sigterm_as_sigint():
            code = _exit_code(argv)
            finish_stdout()
            return code
    except KeyboardInterrupt:
        return _fail(STOPPED, "stopped immediately; run the same command again to resume")
    except OSError as error:
        return _fail(FAILED, f"standard output: {error.strerror or error}")


def _exit_code(argv: Sequence[str]) -> int:
    """Carry out the command; errors that users can fix become one line and an exit code, bugs keep their traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = argparse.Namespace()
    try:
        arguments, overrides = parse(argv)
        _quiet()
        command = "olmo-jax " + shlex.join(argv)
        # Reports and tables show the command in UTF-8, and a file name in it may have bytes that aren't UTF-8.
        text = command.encode(errors="backslashreplace").decode()
        return VERBS[arguments.verb].carry_out(Command(arguments, overrides, text))
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except UserError as error:
        return _fail(error.exit_code, str(error), lines=error.lines)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_left():  # verbs print after their work is done
            return DONE
        place = error.filename or getattr(arguments, "workdir", "") or getattr(arguments, "path", "")
        place = os.fsdecode(place) if isinstance(place, bytes) else place
        return _fail(FAILED, ": ".join(str(part) for part in (place, error.strerror or error) if part != ""))
    except MemoryError as error:
        return _fail(
            FAILED,
            f"not enough memory: {str(error) or 'none is left'}; process less at a time, or use a larger machine",
        )


@contextlib.contextmanager
def _sigterm_as_sigint() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as SIGINT does, wherever a stage doesn't handle it itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _quiet() -> None:
    """Drop what Orbax and absl log at INFO; warnings and errors are kept, with long lines shortened."""
    import logging

    from absl import logging as absl_logging

    sys.unraisablehook = _without_abandoned_reads
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("absl").setLevel(logging.WARNING)
    logging.getLogger("absl").addFilter(_shorten)


def _shorten(record: Any) -> bool:
    try:
        record.msg, record.args = shortened(record.getMessage()), ()
    except (TypeError, ValueError):  # the arguments don't fit the message; logging reports that itself
        return True
    return True


def _without_abandoned_reads(unraisable: "sys.UnraisableHookArgs") -> None:
    """Drop the errors that Orbax's pending reads report after one read has failed and their event loop is closed."""
    if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
        sys.__unraisablehook__(unraisable)


def _fail(code: int, message: str, lines: bool = False) -> int:
    """Print the message, joined into one line unless `lines` is set, and return the code."""
    say(f"olmo-jax: {message if lines else ' '.join(filter(None, map(str.strip, message.splitlines())))}")
    return code


if __name__ == "__main__":
    sys.exit(main())
