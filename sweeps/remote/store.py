"""The folder, or the part of an object store, that a mirror's URL names."""

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
    """A file on a mirror that isn't what was written."""


class Place:
    """The folder, or part of an object store, that a mirror's URL names. Whatever fails there raises MirrorError."""

    def __init__(self, url: str, workdir: epath.Path):
        self.url = re.sub(r"//[^/@]*@", "//", url)  # without a key that may be in it
        require("://" not in str(workdir), "--mirror", self.url, f"copies a folder, and {workdir} is none")
        with self._reaching("opening it"):
            self._fs, self._base = _parse(url, self.url)
        self._is_folder = isinstance(self._fs, fs.LocalFileSystem)
        self._aside = f".{uuid.uuid4().hex}{PARTIAL}"  # of this process: another may be sending the same file
        home, there = os.path.realpath(workdir), os.path.realpath(self._base)
        inside = self._is_folder and os.path.commonpath([home, there]) == home
        require(not inside, "--mirror", self.url, f"lies in the working directory {workdir}; name a place outside it")
        bucket = self._base.partition("/")[0]
        with self._reaching("looking for it"):
            if not self._is_folder and self._fs.get_file_info(bucket).type == fs.FileType.NotFound:
                raise MirrorError(f"{self.url}: there is no bucket {bucket}; create it first")

    def files(self) -> dict[str, fs.FileInfo]:
        with self._reaching("listing it"):
            found = self._fs.get_file_info(fs.FileSelector(self._base, recursive=True, allow_not_found=True))
        return {info.path[len(self._base) + 1 :]: info for info in found if info.type == fs.FileType.File}

    def has(self, name: str) -> bool:
        with self._reaching(f"looking for {name}"):
            return self._fs.get_file_info(f"{self._base}/{name}").type == fs.FileType.File

    def check_has(self, name: str) -> None:
        """For what was sent, which shouldn't go."""
        if not self.has(name):
            raise MirrorError(f"{self.url}: {name} is gone from there; put it back, or run the same command again")

    def read(self, name: str) -> bytes:
        with self._reaching(f"reading {name}"), self._open(f"{self._base}/{name}") as stream:
            return stream.read()

    def read_json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; raises DamagedMirrorError for anything else."""
        content, damaged = self.read(name), f"{self.url}: {name} is damaged; put it back from a copy"
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DamagedMirrorError(damaged) from error
        if not isinstance(value, dict):
            raise DamagedMirrorError(damaged)
        return value

    def get(self, info: fs.FileInfo, name: str, path: Path) -> None:
        """Brings a file to `path`, with the time it was sent at."""
        with self._reaching(f"reading {name}"), self._open(info.path) as stream:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(stream, file, _CHUNK)
        if path.stat().st_size != info.size:
            raise MirrorError(f"{self.url}: {name} changed while it was read; stop what writes there, and try again")
        os.utime(path, ns=(info.mtime_ns, info.mtime_ns))

    def put(self, name: str, source: bytes | Path) -> None:
        """Sends a file, which appears whole or not at all. FileNotFoundError: there is none here."""
        final = f"{self._base}/{name}"
        # An object does so by itself; a file by a rename.
        target = final + self._aside if self._is_folder else final
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else None
            with self._reaching(f"writing {name}"):
                if self._is_folder:
                    self._fs.create_dir(os.path.dirname(final), recursive=True)
                with self._fs.open_output_stream(target, compression=None) as stream:
                    shutil.copyfileobj(file, stream, _CHUNK) if file else stream.write(source)
                if self._is_folder:
                    self._fs.move(target, final)

    def delete(self, name: str, folder: bool = False) -> None:
        """Deletes a file or a folder, if it is there."""
        with self._reaching(f"deleting {name}"), contextlib.suppress(FileNotFoundError):
            (self._fs.delete_dir if folder else self._fs.delete_file)(f"{self._base}/{name}")

    def _open(self, path: str) -> Any:
        return self._fs.open_input_stream(path, compression=None)  # else a name that ends in .gz is unpacked

    @contextlib.contextmanager
    def _reaching(self, doing: str) -> Iterator[None]:
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
    if scheme[1] == "gs" and "retry_limit_seconds" not in url:  # else each call of an outage hangs for a quarter hour
        url += ("&" if "?" in url else "?") + "retry_limit_seconds=30"
    try:
        found, base = fs.FileSystem.from_uri(url)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"--mirror = {shown!r}: {usable} ({error})") from error
    require(base.strip("/") != "", "--mirror", shown, usable)
    return found, base.rstrip("/")
