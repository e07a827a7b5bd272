"""Working directories of earlier layouts, brought to today's by whatever verb meets them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from olmo_jax.config import ConfigError
from olmo_jax.console import say
from olmo_jax.files import read_json, write_json, write_whole
from olmo_jax.storage.lock import exclusive_lock

# Of sweep.json and all that lies beside it. What changes it adds one and an entry to UPGRADES.
LAYOUT = 4

# By the layout that it starts from: `upgrade(workdir, record)` returns sweep.json's contents in the next layout, and
# changes other files where these change. Cut short it is done again, so it must take files that it has changed already.
UPGRADES: dict[int, Callable[[epath.Path, dict[str, Any]], dict[str, Any]]] = {}


def upgraded(workdir: epath.Path, record: dict[str, Any]) -> dict[str, Any]:
    """The contents of sweep.json in today's layout; written in place where they were of an earlier one.

    The file as it was is kept beside it, as sweep.json.layout-N. Raises ConfigError for a layout that no code of this
    version reads.
    """
    path, layout = workdir / "sweep.json", record.get("layout")
    if layout == LAYOUT:
        return record
    if type(layout) is not int:
        raise ConfigError(f"{path}: isn't what a sweep records (layout {layout!r}); put it back from a copy")
    if layout > LAYOUT:
        raise ConfigError(f"{path} was written by newer code (its layout is {layout!r}, not {LAYOUT}); update olmo-jax")
    if not all(number in UPGRADES for number in range(layout, LAYOUT)):
        raise ConfigError(
            f"{path}: has layout {layout}, of code before the first release; this code reads layouts from "
            f"{min([LAYOUT, *UPGRADES])} on, so use the commit that wrote it: {_writer(record)}"
        )
    with exclusive_lock(Path(workdir / ".sweep.lock"), say):  # of several processes that meet it, one does it
        record = read_json(path, "put it back from a copy")
        if record["layout"] != layout:
            return upgraded(workdir, record)
        copy = path.with_name(f"{path.name}.layout-{layout}")
        if not copy.exists():
            write_whole(copy, path.read_bytes())
        for number in range(layout, LAYOUT):
            record = UPGRADES[number](workdir, record) | {"layout": number + 1}
        write_json(path, record)
    say(f"{path}: brought from layout {layout} to {LAYOUT}; as it was, it is kept as {copy.name}")
    return record


def _writer(record: dict[str, Any]) -> str:
    versions = record.get("versions")
    return str(versions.get("olmo-jax", "unknown")) if isinstance(versions, dict) else "unknown"
