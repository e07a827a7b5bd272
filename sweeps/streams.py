"""Standard output and error that accept any text, whatever their encoding, and exist even if they were closed.

A character that the encoding lacks is written as its ASCII equivalent if the table below has one, and otherwise as a
backslash escape. Such characters come from file names that aren't UTF-8 and from text that models generate.
"""

import codecs
import io
import os
import re
import select
import sys
import unicodedata

_NAME = "nearest_ascii"
_NEAREST = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{HYPHEN}": "-",
        "\N{NON-BREAKING HYPHEN}": "-",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "--",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}": "<",
        "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}": ">",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{LEFTWARDS ARROW}": "<-",
        "\N{RIGHTWARDS ARROW}": "->",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{MIDDLE DOT}": ".",
        "\N{BULLET}": "*",
        "\N{PLUS-MINUS SIGN}": "+-",
        "\N{LESS-THAN OR EQUAL TO}": "<=",
        "\N{GREATER-THAN OR EQUAL TO}": ">=",
        "\N{NOT EQUAL TO}": "!=",
        "\N{ALMOST EQUAL TO}": "~",
        "\N{SUPERSCRIPT TWO}": "^2",
        "\N{SUPERSCRIPT THREE}": "^3",
        "\N{NO-BREAK SPACE}": " ",
    }
)


def take_any_text() -> None:
    """Let sys.stdout and sys.stderr write any text without raising UnicodeEncodeError.

    A stream that was closed before the process began (`>&-`) becomes the null device. Python sets it to None, so that
    print(file=None) would write to the other stream, and the next file opened would get the descriptor that libraries
    write messages to.
    """
    codecs.register_error(_NAME, _nearest)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_NAME)


def reader_left() -> bool:
    """Return whether the reader of stdout has closed it, as `head` does once it has its lines."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def finish_stdout() -> None:
    """Flush stdout, unless its reader has closed it. Raises OSError if that fails, as on a full disk."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python flushes stdout again at exit and would report the same error.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            raise


def _nearest(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    nearest = character.translate(_NEAREST)
    if nearest.isascii():
        return nearest
    if greek := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (FINAL )?(\w+)", unicodedata.name(character, "")):
        return greek[3].capitalize() if greek[1] == "CAPITAL" else greek[3].lower()
    if "\N{BOX DRAWINGS LIGHT HORIZONTAL}" <= character <= "\N{BOX DRAWINGS HEAVY LEFT AND LIGHT RIGHT}":
        return "-"
    return character.encode("ascii", "backslashreplace").decode()
