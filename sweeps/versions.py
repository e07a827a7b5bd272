"""What numbers are made with: this code, Python, and the packages that compute."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """By name, this code's with its commit."""
    found = {"olmo-jax": code_version(), "python": sys.version.split()[0]}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def code_version() -> str:
    """This code's version, and in a checkout its commit."""
    version = importlib.metadata.version("olmo-jax")
    here = Path(__file__).parent
    if shutil.which("git") is None:
        return version
    git = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return f"{version} ({git.stdout.strip()})" if git.returncode == 0 else version
