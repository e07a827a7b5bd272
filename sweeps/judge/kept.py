"""Keep what was measured after training in the working directory, so that the next call needn't measure it again."""

import json
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from etils import epath

from geometry.probe import METRICS
from olmo_jax.files import DamagedFileError, read_json, write_whole
from sweeps.judge import probing
from sweeps.judge.output import FOLDER

FILE = "measured.json"
_LIBRARY = "geometry."
_Rows = dict[str, dict[str, float | None]]


def values(workdir: epath.Path, columns: Sequence[str], runs: Sequence[str]) -> pd.DataFrame:
    """Return the columns, one row per run, as `probing.measure` does; what it measured before is read.

    They are in judge/measured.json, which is written as the measurement goes on, and may be deleted. A metric of the
    user's may change under its name, so it is measured at every call.
    """
    path = workdir / FOLDER / FILE
    stored = _read(path)
    lasting = [column for column in columns if _is_lasting(column)]
    own = [column for column in columns if column not in lasting]
    missing = [run for run in runs if own or not set(lasting) <= set(stored.get(run, {}))]
    wanted = own + [c for c in lasting if any(c not in stored.get(run, {}) for run in missing)]
    measured: dict[str, Mapping[str, float]] = {}
    for run_rows in probing.measure(workdir, wanted, missing) if missing else ():
        measured |= run_rows
        for run, row in run_rows.items():
            kept = {c: _finite_or_none(row.get(c, math.nan)) for c in wanted if c in lasting}
            stored[run] = stored.get(run, {}) | kept
        if lasting:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(stored) + "\n")
    rows = {run: stored.get(run, {}) | dict(measured.get(run, {})) for run in runs}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).astype(float)


def _is_lasting(column: str) -> bool:
    """Return whether a column has one meaning: whether it isn't a metric that the user defined."""
    function = METRICS.get(column.rpartition("/")[2])
    return function is None or function.__module__.startswith(_LIBRARY)


def _read(path: epath.Path) -> _Rows:
    """Return what was measured before, by run; nothing of a file, or of rows, that are damaged."""
    try:
        rows = read_json(path, "delete it")
    except (FileNotFoundError, DamagedFileError):
        return {}
    return {run: row for run, row in rows.items() if isinstance(row, dict) and all(map(_is_number, row.values()))}


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float) and not isinstance(value, bool)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
