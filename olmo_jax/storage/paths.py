"""Paths as users give them: a leading `~`, names that look like patterns, links."""

import glob
import os
from pathlib import Path


def local(text: str | os.PathLike[str]) -> Path:
    """The path that a user means: a leading `~` or `~name` is that home folder. Links are left as they are."""
    return Path(os.path.expanduser(text))


def matching(text: str) -> list[Path]:
    """What a path or pattern stands for, sorted; [] for nothing.

    A path that exists stands for itself, whatever brackets or stars are in its name; else `*`, `?`, `[]` and `**` are
    those of a shell.
    """
    path = local(text)
    if os.path.lexists(path):
        return [path]
    return [Path(found) for found in sorted(glob.glob(str(path), recursive=True))]


def printable(path: str | os.PathLike[str]) -> str:
    """A path as one line that any file and most terminals take: control characters and what isn't UTF-8 are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(path))
