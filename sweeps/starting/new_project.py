"""Write a new project for the user to change: a sweep, a metric and a page on what to run next."""

import re
from pathlib import Path

from olmo_jax.config import ConfigError, require
from olmo_jax.files import write_whole

_FILES = Path(__file__).parent / "project"
_NAME = "my-study"  # the project's name in these files, to be replaced


def write_project(folder: str) -> list[str]:
    """Write a project's files into a new or empty folder; return lines that describe them.

    Raises ConfigError if the folder holds files, which the message lists, or if the path is a file.
    """
    target = Path(folder)
    require(target.is_dir() or not target.exists(), "FOLDER", folder, "is a file; name a new or empty folder")
    held = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if held:
        some = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
        raise ConfigError(f"{folder}: contains {some}; name a new or empty folder")
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
