"""Names and patterns of names: an exact name always means itself."""

import fnmatch
import hashlib
import urllib.parse
from collections.abc import Iterable

# Of the 255 bytes that file systems allow a name: what leaves room for the kind of a result, a rate, a step and a
# suffix; and for the hash of a run's id.
LONGEST = 215
LONGEST_BEGINNING = 255 - 13


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern with `*`, `?` and `[]` stands for, in their order; a name that is there, that alone."""
    names = list(names)
    return [pattern] if pattern in names else fnmatch.filter(names, pattern)


def file_name(text: str) -> str:
    """Any text as a file's name, or a part of one, of at most LONGEST bytes; different texts have different names.

    Where quoting would make it longer, its beginning with a hash of the whole.
    """
    quoted = urllib.parse.quote(text, safe=" +", errors="surrogatepass")
    if len(quoted) <= LONGEST:
        return quoted
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    beginning = quoted[: LONGEST - 13]
    cut = beginning.rfind("%", len(beginning) - 2)  # no half of a quoted byte
    return f"{beginning[:cut] if cut >= 0 else beginning}-{digest}"
