"""Read and write the folder, or the part of an object store, that a mirror's URL names."""

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from etils import epath
from pyarrow import fs

from olmo_jax.config import ConfigError, require
from olmo_jax.errors import UserError

PARTIAL = ".partial"
_CHUNK = 8 << 20  # bytes


class MirrorError(UserError):
    """A mirror that can't be reached, read or written; the message says which, why, and what to do."""


class DamagedMirrorError(MirrorError):
    """A file on a mirror whose content isn't what was written."""


class Store:
    """The folder, or part of an object store, that a mirror's URL names. Every failed access raises MirrorError."""

    def __init__(self, url: str, workdir: epath.Path):
        self.url = re.sub(r"//[^/@]*@", "//", url)  # without credentials
        require("://" not in str(workdir), "--mirror", self.url, f"copies a folder, but {workdir} isn't one")
        with self._mirror_errors("opening it"):
            self._fs, self._base = _parse(url, self.url)
        self._is_folder = isinstance(self._fs, fs.LocalFileSystem)
        self._partial = f".{uuid.uuid4().hex}{PARTIAL}"  # unique, as another process may be sending the same file
        home, target = os.path.realpath(workdir), os.path.realpath(self._base)
        inside = self._is_folder and os.path.commonpath([home, target]) == home
        require(
            not inside, "--mirror", self.url, f"lies in the working directory {workdir}; choose a folder outside it"
        )
        bucket = self._base.partition("/")[0]
        with self._mirror_errors("looking for it"):
            if not self._is_folder and self._fs.get_file_info(bucket).type == fs.FileType.NotFound:
                raise MirrorError(f"{self.url}: there is no bucket {bucket}; create it first")

    def files(self) -> dict[str, fs.FileInfo]:
        with self._mirror_errors("listing it"):
            infos = self._fs.get_file_info(fs.FileSelector(self._base, recursive=True, allow_not_found=True))
        return {info.path[len(self._base) + 1 :]: info for info in infos if info.type == fs.FileType.File}

    def has(self, name: str) -> bool:
        with self._mirror_errors(f"looking for {name}"):
            return self._fs.get_file_info(f"{self._base}/{name}").type == fs.FileType.File

    def check_has(self, name: str) -> None:
        """Raise MirrorError if a file that was sent has since been deleted."""
        if not self.has(name):
            raise MirrorError(f"{self.url}: {name} is gone; put it back, or run the same command again")

    def read(self, name: str) -> bytes:
        with self._mirror_errors(f"reading {name}"), self._open(f"{self._base}/{name}") as stream:
            return stream.read()

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; raises DamagedMirrorError for anything else."""
        content, damaged = self.read(name), f"{self.url}: {name} is damaged; put it back from a copy"
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DamagedMirrorError(damaged) from error
        if not isinstance(value, dict):
            raise DamagedMirrorError(damaged)
        return value

    def get(self, info: fs.FileInfo, name: str, path: Path) -> None:
        """Fetch a file to `path`, with the modification time that it has on the mirror."""
        with self._mirror_errors(f"reading {name}"), self._open(info.path) as stream:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK)
        if path.stat().st_size != info.size:
            raise MirrorError(
                f"{self.url}: {name} changed while it was read; stop what writes to the mirror, and try again"
            )
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))

    def put(self, name: str, source: bytes | Path) -> None:
        """Send a file, which appears whole or not at all. Raises FileNotFoundError if the source doesn't exist."""
        final = f"{self._base}/{name}"
        # An object store writes atomically by itself; a folder needs a rename.
        target = final + self._partial if self._is_folder else final
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else None
            with self._mirror_errors(f"writing {name}"):
                if self._is_folder:
                    self._fs.create_dir(os.path.dirname(final), recursive=True)
                with self._fs.open_output_stream(target, compression=None) as stream:
                    shutil.copyfileobj(file, stream, _CHUNK) if file else stream.write(source)
                if self._is_folder:
                    self._fs.move(target, final)

    def delete(self, name: str, folder: bool = False) -> None:
        """Delete a file or a folder, if it exists."""
        with self._mirror_errors(f"deleting {name}"), contextlib.suppress(FileNotFoundError):
            (self._fs.delete_dir if folder else self._fs.delete_file)(f"{self._base}/{name}")

    def _open(self, path: str) -> Any:
        return self._fs.open_input_stream(path, compression=None)  # by default a name ending in .gz is decompressed

    @contextlib.contextmanager
    def _mirror_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            cause = " ".join(str(error).split())
            raise MirrorError(f"{self.url}: {doing} failed: {cause}; check the URL, access and network") from error


def _parse(url: str, shown: str) -> tuple[fs.FileSystem, str]:
    scheme = re.match(r"([A-Za-z][\w+.-]*):", url)
    if not scheme:
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
    usable = "needs a folder, file:///FOLDER, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    require(scheme[1] in ("file", "s3", "gs"), "--mirror", shown, usable)
    if scheme[1] == "gs" and "retry_limit_seconds" not in url:  # by default each call hangs for 15 minutes in an outage
        url += ("&" if "?" in url else "?") + "retry_limit_seconds=30"
    try:
        file_system, base = fs.FileSystem.from_uri(url)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"--mirror = {shown!r}: {usable} ({error})") from error
    require(base.strip("/") != "", "--mirror", shown, usable)
    return file_system, base.rstrip("/")
