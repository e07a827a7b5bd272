"""The training curves of the report as data: which targets the probe measured, a panel a metric, values thinned.

Nothing here knows a metric: whatever columns `<target>/<metric>` the runs' metrics have become panels.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from geometry.counts import COUNTS
from sweeps import analysis

# A curve is drawn by at most this many points, each the mean of as many steps.
MAX_POINTS = 300
# All curves of geometry together hold about this many values, 8 bytes each in the page, but each keeps MIN_POINTS.
MAX_VALUES = 1_000_000
MIN_POINTS = 20

LOSS = {"key": "loss", "name": "Training loss, nats a token"}

# Names for those that have a better one than their own; any other target is a parameter's path.
_TARGETS = {
    "unembedding": "Unembedding W",
    "unembedding_gauge_fixed": "W, gauge-fixed",
    "embedding": "Embedding",
    "final_states": "Final states H",
}
_METRICS = {
    "effective_rank": "Effective rank",
    "effective_rank_percent": "Effective rank, % of D",
    "mean_cosine": "Mean cosine of rows",
    "partition_isotropy": "Partition isotropy I",
}
_COUNTS = {"points": "{} points", "rank_cap": "rank at most {}", "duplicates": "{} duplicated"}


def curve_data(curves: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the data that training.js draws.

    Args:
      curves: metrics.jsonl of each run, by run id; geometry is NaN but at probe steps. A frame may be empty.

    Returns:
      `targets`, each with its key, name, panels and a note on its counts; `training_loss`, the panel that is always
      there; `curves`, by run and column `value`, `spread` where there is one, and `at`, the place in the list `at` of
      the steps and tokens, which most curves share; `points`, how many a curve has at most.
    """
    columns = pd.DataFrame(columns=list(dict.fromkeys(c for curve in curves.values() for c in curve.columns)))
    metrics = analysis.geometry_columns(columns)
    values = sum(len(curve.columns) for curve in curves.values())
    points = min(MAX_POINTS, max(MIN_POINTS, MAX_VALUES // max(values, 1)))
    at: list[dict[str, Any]] = []
    drawn = {run: _curves_of(curve, metrics, points, at) for run, curve in curves.items()}
    there = by_target(m for m in metrics if any(m in curve for curve in drawn.values()))
    targets = [
        {
            "key": target,
            "name": target_name(target),
            "panels": [{"key": c, "name": metric_name(c)} for c in panels],
            "note": _note(target, curves.values()),
        }
        for target, panels in there.items()
    ]
    return {
        "training_loss": LOSS,
        "targets": targets,
        "curves": drawn,
        "at": at,
        "points": {"loss": MAX_POINTS, "geometry": points},
    }


def by_target(columns: Iterable[str]) -> dict[str, list[str]]:
    """Group columns `<target>/<metric>` by their target, in the given order."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        groups.setdefault(analysis.target_of(column), []).append(column)
    return groups


def target_name(target: str) -> str:
    """Return a target in words: `layer_3_centred` is "Layer 3, centred"."""
    of = target.removesuffix("_centred")
    layer = re.fullmatch(r"layer_(\d+)", of)
    name = f"Layer {layer[1]}" if layer else _TARGETS.get(of, f"Parameter {of}")
    return name if of == target else f"{name}, centred"


def metric_name(column: str) -> str:
    """Return the metric of a column `<target>/<metric>` in words."""
    name = column.rpartition("/")[2]
    return _METRICS.get(name, name.replace("_", " "))


def to_json(x_N: np.ndarray) -> list[float | None]:
    """Return numbers to six digits as JSON values, with null for values that aren't finite."""
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in x_N.tolist()]


def _curves_of(curve: pd.DataFrame, metrics: list[str], points: int, at: list[dict[str, Any]]) -> dict[str, Any]:
    """One run's loss and metrics by column; their steps and tokens are found in `at` or put there."""
    result = {}
    places: dict[tuple[int, bytes], int] = {}
    for key in (LOSS["key"], *metrics):
        if key not in curve.columns:
            continue
        value_N = curve[key].to_numpy(dtype=float)
        # A loss that became non-finite stays in as a gap; geometry between probes isn't there at all.
        of_loss = key == LOSS["key"]
        there_N = np.full(len(value_N), True) if of_loss else ~np.isnan(value_N)
        if not there_N.any():
            continue
        most = MAX_POINTS if of_loss else points
        same = (most, there_N.tobytes())
        if same not in places:
            places[same] = _place(curve[there_N], most, at)
        result[key] = {"at": places[same], "value": to_json(thinned(value_N[there_N], most))}
        spread = analysis.spread_column(key)
        if spread in curve.columns and curve[spread].notna().any():
            result[key]["spread"] = to_json(thinned(curve[spread].to_numpy(dtype=float)[there_N], most))
    return result


def _place(rows: pd.DataFrame, points: int, at: list[dict[str, Any]]) -> int:
    steps = {name: to_json(thinned(rows[name].to_numpy(dtype=float), points)) for name in ("step", "tokens")}
    if steps not in at:
        at.append(steps)
    return at.index(steps)


def _note(target: str, curves: Iterable[pd.DataFrame]) -> str:
    """The counts of a target over all runs and steps: "Final states H: 128 points, rank at most 64"; "" without any."""
    told = []
    for name in (*_COUNTS, *sorted(COUNTS - set(_COUNTS))):
        column = f"{target}/{name}"
        counts_N = np.concatenate([[], *(c[column].to_numpy(dtype=float) for c in curves if column in c.columns)])
        counts_N = counts_N[np.isfinite(counts_N)]
        if len(counts_N):
            low, high = f"{counts_N.min():.0f}", f"{counts_N.max():.0f}"
            count = low if low == high else f"{low} to {high}"
            told.append(_COUNTS.get(name, name.replace("_", " ") + " {}").format(count))
    return f"{target_name(target)}: {', '.join(told)}" if told else ""


def thinned(x_N: np.ndarray, points: int) -> np.ndarray:
    """Return at most `points` values, each the mean of neighbouring ones."""
    edges_P = np.linspace(0, len(x_N), min(points, len(x_N)) + 1).astype(int)
    return np.add.reduceat(x_N, edges_P[:-1]) / np.diff(edges_P)
