"""Git LFS pointers: the short text that stands for a large file until `git lfs pull` fetches it."""

import os

REMEDY = "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"

_HEADER = b"version https://git-lfs.github.com/spec/"
_MAX_SIZE = 1024  # bytes, by the specification of Git LFS


def pointer(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a Git LFS pointer."""
    with open(path, "rb") as file:
        beginning = file.read(_MAX_SIZE)
    return beginning.startswith(_HEADER) and len(beginning) < _MAX_SIZE
