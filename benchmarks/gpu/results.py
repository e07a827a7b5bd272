"""Read and write results: benchmarks/results/<part>-<device>.json, with the measurements and machine of each case."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Part, UsageError
from olmo_jax.console import say
from olmo_jax.errors import brief
from olmo_jax.files import DamagedFileError, read_json, write_json

FOLDER = Path(__file__).parents[1] / "results"


def path_of(folder: Path, part: str, device: str) -> Path:
    """Return the file of a part's results on one kind of device, such as `cohorts-nvidia-h100-80gb-hbm3.json`."""
    return folder / f"{part}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def check_writable(folder: Path) -> None:
    """Make the folder. Raises UsageError if files can't be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or brief(error)
        raise UsageError(
            f"{folder}: results can't be written there ({reason}); choose another folder with --results"
        ) from None


def key_of(part: Part, case: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Return what a result must match to count for a case: the case, the versions of part and JAX, and the device."""
    return {"case": case, "part_version": part.VERSION} | {name: machine[name] for name in ("device", "jax", "jaxlib")}


def read(path: Path, warn: bool = True) -> dict[str, dict[str, Any]]:
    """Return the entries by case; none if there is no file. With `warn`, a damaged file is reported in one line."""
    remedy = "missing cases are measured again"
    try:
        entries = read_json(path, remedy).get("cases")
    except FileNotFoundError:
        return {}
    except DamagedFileError as error:
        if warn:
            say(str(error))
        return {}
    whole = {name: entry for name, entry in entries.items() if _is_entry(entry)} if isinstance(entries, dict) else {}
    if warn and (not isinstance(entries, dict) or len(whole) < len(entries)):
        say(f"{path}: contains damaged cases; {remedy}")
    return whole


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), dict):
        return False
    if not {"case", "part_version", "device"} <= entry["key"].keys():
        return False
    place = isinstance(entry.get("machine"), dict) and isinstance(entry.get("date"), str)
    return place and (isinstance(entry.get("measured"), dict) or isinstance(entry.get("does_not_fit"), str))


def is_done(entry: dict[str, Any] | None, key: dict[str, Any]) -> bool:
    """Return whether an entry is the result of exactly this case, version and device."""
    return entry is not None and entry["key"] == key


def record(path: Path, part: Part, name: str, entry: dict[str, Any]) -> None:
    """Write a case's entry into its file, which is replaced atomically."""
    write_json(path, {"part": part.NAME, "cases": read(path, warn=False) | {name: entry}})


def entry_of(part: Part, key: dict[str, Any], machine: dict[str, Any], scale: str) -> dict[str, Any]:
    """Return an entry without measurements: its key, the machine, the date, and the command that repeats it."""
    command = f"python -m benchmarks.gpu --only={part.NAME}" + ("" if scale == "full" else f" --scale={scale}")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    memory = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    return {"command": command, "date": date, "machine": machine, "memory_fraction": memory, "key": key}
