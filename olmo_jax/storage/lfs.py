"""Git LFS pointers: the short text that stands for a large file until `git lfs pull` fetches it."""

import os

REMEDY = "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"

_BEGINS = b"version https://git-lfs.github.com/spec/"
_LARGEST = 1024  # bytes, by the specification of Git LFS


def pointer(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a Git LFS pointer."""
    with open(path, "rb") as file:
        beginning = file.read(_LARGEST)
    return beginning.startswith(_BEGINS) and len(beginning) < _LARGEST
