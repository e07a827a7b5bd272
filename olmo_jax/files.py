"""Atomic writing of files and folders, and reading of JSON with a clear error for a damaged file."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from olmo_jax.errors import UserError

_PARTIAL = ".partial"


class DamagedFileError(UserError):
    """A file that is truncated, empty, filled with NUL or of another format. The message names it and a remedy."""


def write_whole(path: epath.PathLike, content: str | bytes, durable: bool = True) -> epath.Path:
    """Write a file atomically, through a temporary file that is renamed, and return its path.

    Args:
      content: in text, a lone surrogate (from a file name that isn't UTF-8) is written as an escape.
      durable: flush file and folder to the disk, so that the file survives a power cut; otherwise a file of the right
        name and length may come back filled with NUL.
    """
    path = epath.Path(path)
    partial = path.with_name(f".{uuid.uuid4().hex}{_PARTIAL}")  # another process may be writing the same file
    try:
        with open(partial, "wb") as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        flush_folder(path.parent)
    return path


def remove_unfinished(folder: epath.PathLike) -> None:
    """Remove the temporary files that killed processes left behind in a folder while running `write_whole`.

    Call this only from the one process that may write to the folder: it also removes a file that is being written.
    """
    for path in Path(folder).glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: epath.PathLike, durable: bool = True) -> Iterator[Path]:
    """Yield a new folder to fill, which is renamed to `path` at the end of the context and removed on an error.

    A killed process leaves that folder behind, `.NAME.partial` beside `path`; the next call for the same path removes
    it. So only one process may write to a path at a time.

    Args:
      path: must not exist, or be an empty folder; otherwise OSError is raised at the end of the context.
      durable: flush the contents and the folder's own entry to the disk, so that they survive a power cut.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if durable:
            flush_tree(partial)
        if path.exists():
            path.rmdir()
        partial.rename(path)
        if durable:
            flush_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush_folder(folder: epath.PathLike) -> None:
    """Flush a folder's entries to the disk, so that a rename within it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # noqa: S110  some network file systems can't flush a folder; the rename itself has been done
        pass
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flush everything below a folder to the disk, so that the folder survives a power cut after it is renamed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        flush_folder(parent)


def write_json(path: epath.PathLike, value: Any, durable: bool = True) -> epath.Path:
    """Write a value as JSON, atomically; see `write_whole`. Raises ValueError for NaN and infinities."""
    return write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n", durable)


def read_json(path: epath.PathLike, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises FileNotFoundError if there is no such file, and DamagedFileError, whose message ends in `remedy`, for
    anything but one object in UTF-8.
    """
    try:
        value = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DamagedFileError(f"{path}: {_damage(Path(path))}; {remedy}") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path}: holds a JSON {type(value).__name__}, not an object; {remedy}")
    return value


def _damage(path: Path) -> str:
    content = path.read_bytes()
    if not content.strip(b"\0 \n"):
        return "is filled with NUL, as after a power cut" if content.strip() else "is empty"
    return "is not JSON"
