"""Names and patterns of names; an exact name matches only itself."""

import fnmatch
import hashlib
import urllib.parse
from collections.abc import Iterable

# File systems allow names of 255 bytes. The first leaves room for the kind of a result, a rate, a step and a suffix;
# the second for a hash of a run's id.
LONGEST = 215
LONGEST_BEGINNING = 255 - 13


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that match a pattern with `*`, `?` and `[]`, in order; if one equals it, only that one."""
    names = list(names)
    return [pattern] if pattern in names else fnmatch.filter(names, pattern)


def file_name(text: str) -> str:
    """Return a file name, or part of one, of at most LONGEST bytes for any text; different texts get different names.

    If the quoted text would be longer, the name is its beginning followed by a hash of the text.
    """
    quoted = urllib.parse.quote(text, safe=" +", errors="surrogatepass")
    if len(quoted) <= LONGEST:
        return quoted
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    beginning = quoted[: LONGEST - 13]
    cut = beginning.rfind("%", len(beginning) - 2)  # don't cut a quoted byte in half
    return f"{beginning[:cut] if cut >= 0 else beginning}-{digest}"
