"""Return the versions of what computes the results: this code, Python and packages."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """Return versions by name; that of this code includes its commit in a checkout."""
    result = {"olmo-jax": code_version(), "python": sys.version.split()[0]}
    return result | {name: importlib.metadata.version(name) for name in _PACKAGES}


def code_version() -> str:
    """Return this code's version and, in a checkout of its own repository, its commit."""
    version = importlib.metadata.version("olmo-jax")
    root = Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not _is_our_checkout(root):
        return version
    described = _git(root, "describe", "--always", "--dirty")
    return f"{version} ({described})" if described else version


def _is_our_checkout(root: Path) -> bool:
    """Return whether the folder of the packages is the root of our repository; one further up may be any other."""
    project = root / "pyproject.toml"
    if not project.is_file() or 'name = "olmo-jax"' not in project.read_text(encoding="utf-8"):
        return False
    top = _git(root, "rev-parse", "--show-toplevel")
    return top != "" and Path(top).resolve() == root


def _git(root: Path, *arguments: str) -> str:
    # In a hook of another repository, the GIT_ variables make git look at that repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
