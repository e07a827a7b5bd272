"""Files that are written whole or not at all, and JSON that is read with a clear word where it is damaged."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from etils import epath

from olmo_jax.errors import UserError

_PARTIAL = ".partial"


class DamagedFileError(UserError):
    """A file that isn't what was written: cut, empty, filled with NUL, of another kind. Names the file and a remedy."""


def write_whole(path: epath.PathLike, content: str | bytes, durable: bool = True) -> epath.Path:
    """Writes a file whole or not at all: to a name beside it, then renamed. Returns its path.

    Args:
      content: of text, half a surrogate pair (of a file's name that isn't UTF-8) is written as an escape.
      durable: it outlasts a power cut as well: file and folder are flushed to the disk. Without it a file of the right
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
    """Removes what killed processes left of files that `write_whole` was writing into a folder.

    For whoever alone may write there: a file that another process is writing at this moment would be removed too.
    """
    for path in Path(folder).glob(f".*{_PARTIAL}"):
        path.unlink(missing_ok=True)


def flush_folder(folder: epath.PathLike) -> None:
    """Flushes a folder's entries to the disk, so that a rename within it outlasts a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # noqa: S110  some network file systems know no such flush; the rename itself has been done
        pass
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flushes all that lies below a folder to the disk, so that what a rename then makes of it outlasts a power cut."""
    for parent, _, names in os.walk(folder):
        for name in names:
            descriptor = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        flush_folder(parent)


def write_json(path: epath.PathLike, value: Any, durable: bool = True) -> epath.Path:
    """Writes a value as JSON, whole or not at all; see `write_whole`. NaN and infinities are refused (ValueError)."""
    return write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n", durable)


def read_json(path: epath.PathLike, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. FileNotFoundError where there is none.

    Raises DamagedFileError, ending in `remedy`, for anything but one object in UTF-8.
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
