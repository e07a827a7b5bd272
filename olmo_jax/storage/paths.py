"""Paths given by users: a leading `~`, names that look like patterns, links."""

import glob
import os
from pathlib import Path


def local(text: str | os.PathLike[str]) -> Path:
    """Return the path with a leading `~` or `~name` replaced by that home folder; links aren't resolved."""
    return Path(os.path.expanduser(text))


def matching(text: str) -> list[Path]:
    """Return the paths that match a path or pattern, sorted; [] if there are none.

    An existing path matches only itself, even if its name contains brackets or stars; otherwise `*`, `?`, `[]` and `**`
    have the same meaning as in a shell.
    """
    path = local(text)
    if os.path.lexists(path):
        return [path]
    return [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]


def printable(path: str | os.PathLike[str]) -> str:
    """Return a path as one printable line, with control characters and bytes that aren't UTF-8 escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(path))
