"""A project of one's own: a sweep, a metric and a page of what to run next, to be changed."""

import re
from pathlib import Path

from olmo_jax.config import ConfigError, require
from olmo_jax.files import write_whole

_FILES = Path(__file__).parent / "project"
_NAME = "my-study"  # in these files


def write_project(folder: str) -> list[str]:
    """Write a project's files into a folder that is new or empty; returns lines that say what is there.

    Raises ConfigError if the folder holds files, which it lists, or can't be one.
    """
    target = Path(folder)
    require(target.is_dir() or not target.exists(), "FOLDER", folder, "is a file; name a folder that is new or empty")
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held:
        some = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
        raise ConfigError(f"{folder}: holds {some}; name a folder that is new or empty")
    target.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", target.resolve().name).strip("-") or _NAME  # it begins the ids of runs
    lines = [f"{folder}:"]
    for file in sorted(_FILES.glob("*.*")):
        text = file.read_text(encoding="utf-8").replace(_NAME, name)
        write_whole(target / file.name, text)
        lines.append(f"  {file.name:<14} {_about(text)}")
    return [*lines, f"Next: cd {folder} and read README.md"]


def _about(text: str) -> str:
    """Return the first line of a file without its quotes or heading mark."""
    return text.splitlines()[0].strip('"# ').rstrip(".")
