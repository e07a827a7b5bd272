"""Upgrade working directories of earlier layouts to the current one, whichever command opens them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from olmo_jax.config import ConfigError
from olmo_jax.console import say
from olmo_jax.files import read_json, write_json, write_whole
from olmo_jax.storage.lock import exclusive_lock

# The layout of a working directory. A change to it increments this number and adds an entry to UPGRADES.
LAYOUT = 4

# Upgrades by the layout that they start from. `upgrade(workdir, record)` returns sweep.json's contents in the next
# layout and rewrites the other files that differ. An interrupted upgrade is run again, so it must accept files that it
# has already rewritten.
UPGRADES: dict[int, Callable[[epath.Path, dict[str, Any]], dict[str, Any]]] = {}


def upgraded(workdir: epath.Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of sweep.json in the current layout; rewrite the file if its layout is an earlier one.

    The former file is kept beside it, as sweep.json.layout-N. Raises ConfigError for a layout that this version can't
    read.
    """
    path, layout = workdir / "sweep.json", record.get("layout")
    if layout == LAYOUT:
        return record
    if type(layout) is not int:
        raise ConfigError(f"{path}: isn't a sweep's record (layout {layout!r}); put it back from a copy")
    if layout > LAYOUT:
        raise ConfigError(f"{path} was written by newer code (its layout is {layout!r}, not {LAYOUT}); update olmo-jax")
    if not all(number in UPGRADES for number in range(layout, LAYOUT)):
        raise ConfigError(
            f"{path}: has layout {layout}, from before the first release; this version reads layouts from "
            f"{min([LAYOUT, *UPGRADES])} on, so use the commit that wrote it: {_writer(record)}"
        )
    with exclusive_lock(Path(workdir / ".sweep.lock"), say):  # so that only one of several processes does it
        record = read_json(path, "put it back from a copy")
        if record["layout"] != layout:
            return upgraded(workdir, record)
        copy = path.with_name(f"{path.name}.layout-{layout}")
        if not copy.exists():
            write_whole(copy, path.read_bytes())
        for number in range(layout, LAYOUT):
            record = UPGRADES[number](workdir, record) | {"layout": number + 1}
        write_json(path, record)
    say(f"{path}: upgraded from layout {layout} to {LAYOUT}; the former file is kept as {copy.name}")
    return record


def _writer(record: dict[str, Any]) -> str:
    versions = record.get("versions")
    return str(versions.get("olmo-jax", "unknown")) if isinstance(versions, dict) else "unknown"
