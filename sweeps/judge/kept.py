"""Keep what was measured after training in the working directory, so that the next call needn't measure it again."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from etils import epath

from geometry.probe import LIBRARY, METRICS
from olmo_jax.console import say
from olmo_jax.files import DamagedFileError, read_json, write_whole
from sweeps.judge import probing
from sweeps.judge.output import FOLDER
from sweeps.planning.record import recorded_plan

FILE = "measured.json"
# Increase it when a column of the library changes its meaning: what was kept before is then measured again.
_VERSION = 1
_Row = dict[str, float | None]


def values(workdir: epath.Path, columns: Sequence[str], runs: Sequence[str]) -> pd.DataFrame:
    """Return the columns, one row per run, as `probing.measure` does; what it measured before is read.

    They are in judge/measured.json, which is written as the measurement goes on, and may be deleted. A metric of the
    user's may change under its name, so it is measured at every call. An infinite value becomes NaN.
    """
    path = workdir / FOLDER / FILE
    steps = {run.id: run.config.total_steps for run in recorded_plan(workdir).runs}
    rows = _read(path, steps)
    lasting = [column for column in columns if _is_lasting(column)]
    own = [column for column in columns if column not in lasting]
    missing = [run for run in runs if own or not set(lasting) <= set(rows.get(run, {}))]
    wanted = own + [c for c in lasting if any(c not in rows.get(run, {}) for run in missing)]
    measured: dict[str, _Row] = {}
    for found in probing.measure(workdir, wanted, missing) if missing else ():
        for run, row in found.items():
            measured[run] = {c: _finite_or_none(row.get(c, math.nan)) for c in wanted}
            rows[run] = rows.get(run, {}) | {c: measured[run][c] for c in wanted if c in lasting}
        if lasting:
            # Another call may have written since. What two write at the same moment may still be lost, and is then
            # measured again.
            others = _read(path, steps)
            rows = {run: others.get(run, {}) | rows.get(run, {}) for run in others | rows}
            _write(path, rows, steps)
    table = {run: rows.get(run, {}) | measured.get(run, {}) for run in runs}
    return pd.DataFrame.from_dict(table, orient="index", columns=list(columns)).astype(float)


def _is_lasting(column: str) -> bool:
    """Return whether a column has one meaning: whether it isn't a metric that the user defined, or defined again."""
    name = column.rpartition("/")[2]
    return name not in METRICS or METRICS[name] is LIBRARY.get(name)


def _read(path: epath.Path, steps: Mapping[str, int]) -> dict[str, _Row]:
    """Return what was measured before at these steps, by run; nothing of a file, or of rows, that are damaged."""
    try:
        stored = read_json(path, "delete it")
    except (FileNotFoundError, DamagedFileError):
        return {}
    except OSError as error:
        say(f"{path} can't be read, so all is measured again: {error}")
        return {}
    rows = stored.get("runs") if stored.get("version") == _VERSION else {}
    return {
        run: row["values"]
        for run, row in (rows.items() if isinstance(rows, dict) else ())
        if _is_row(row) and row["step"] == steps.get(run)
    }


def _is_row(row: Any) -> bool:
    if not (isinstance(row, dict) and isinstance(row.get("values"), dict) and "step" in row):
        return False
    return all(x is None or isinstance(x, int | float) and not isinstance(x, bool) for x in row["values"].values())


def _write(path: epath.Path, rows: Mapping[str, _Row], steps: Mapping[str, int]) -> None:
    """Write the rows; where they can't be written, say so, since they are only kept to save time."""
    runs = {run: {"step": steps.get(run), "values": row} for run, row in rows.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"version": _VERSION, "runs": runs}) + "\n")
    except OSError as error:
        say(f"{path} can't be written, so what is measured isn't kept: {error}")


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
