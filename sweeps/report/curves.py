"""Training curves as data of the charts: loss and geometry by run and step, thinned; targets and metrics in words.

Nothing here knows a metric: whatever columns `<target>/<metric>` the runs' metrics have are drawn.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geometry.counts import COUNTS
from sweeps.table.catalog import heads
from sweeps.table.columns import geometry_columns, spread_column, target_of

if TYPE_CHECKING:
    from sweeps.analysis.results import AnalysisResults

# A curve is drawn by at most this many points, each the mean of as many steps.
MAX_POINTS = 300
# All losses together hold about MAX_LOSSES points and all curves of geometry MAX_VALUES, but each keeps MIN_POINTS: a
# page draws some 10,000 points in a second, and a point every four pixels shows no less than one at each pixel.
MAX_LOSSES, MAX_VALUES, MIN_POINTS = 16_000, 120_000, 20

# Targets and metrics with a better name than that of their column; any other target is a parameter's path.
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


def loss_curves(results: "AnalysisResults") -> pd.DataFrame:
    """Return each run's training loss: run, step, tokens, loss, diverged (whether the run did). Gaps are kept."""
    diverged = set(results.table.loc[results.table["diverged_at"].notna(), "run_id"])
    points = min(MAX_POINTS, max(MIN_POINTS, MAX_LOSSES // max(len(results.curves), 1)))
    frames = [pd.DataFrame(columns=["run", "step", "tokens", "loss", "diverged"])]
    for run, curve in results.curves.items():
        if "loss" in curve and curve["loss"].notna().any():
            kept = ["step", "tokens", "loss"]
            value_PC = _thinned(curve.reindex(columns=kept).to_numpy(dtype=float), points)
            frames.append(pd.DataFrame(value_PC, columns=kept).assign(run=str(run), diverged=run in diverged))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def targets_of(curves: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Return the columns of geometry of each target that some run has measured."""
    columns = heads(*curves.values())
    measured = [c for c in geometry_columns(columns) if any(c in of and of[c].notna().any() for of in curves.values())]
    return by_target(measured)


def geometry_curves(results: "AnalysisResults") -> pd.DataFrame:
    """Return one row per run and probe step: run, step, tokens, and `<target>: <metric>` in words for each metric.

    A metric's spread over disjoint probe sets, where there is one, is the column `<target>: <metric> spread`.
    """
    names = {
        c: f"{target_name(t)}: {metric_name(c)}" for t, columns in targets_of(results.curves).items() for c in columns
    }
    spreads = {spread_column(c): f"{name} spread" for c, name in names.items()}
    values = sum(len(curve.columns) for curve in results.curves.values())
    points = min(MAX_POINTS, max(MIN_POINTS, MAX_VALUES // max(values, 1)))
    frames = [pd.DataFrame(columns=["run", "step", "tokens"])]
    for run, curve in results.curves.items():
        columns = [c for c in names if c in curve]
        kept = ["step", "tokens", *columns, *(c for c in spreads if c in curve)]
        value_NC = curve.reindex(columns=kept).to_numpy(dtype=float)
        measured_N = ~np.isnan(value_NC[:, 2 : 2 + len(columns)]).all(axis=1)
        if measured_N.any():
            heads = ["step", "tokens", *((names | spreads)[c] for c in kept[2:])]
            frames.append(pd.DataFrame(_thinned(value_NC[measured_N], points), columns=heads).assign(run=str(run)))
    return pd.concat(frames[1:] or frames, ignore_index=True)


def by_target(columns: Iterable[str]) -> dict[str, list[str]]:
    """Group columns `<target>/<metric>` by their target, in the given order."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        groups.setdefault(target_of(column), []).append(column)
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


def counts_note(results: "AnalysisResults") -> str:
    """Return the counts of each target over all runs and steps: "Final states H: 128 points, rank at most 64."."""
    notes = []
    for target in targets_of(results.curves):
        known = []
        for name in (*_COUNTS, *sorted(COUNTS - set(_COUNTS))):
            columns = [curve[f"{target}/{name}"] for curve in results.curves.values() if f"{target}/{name}" in curve]
            counts_N = np.concatenate([[], *(column.to_numpy(dtype=float) for column in columns)])
            counts_N = counts_N[np.isfinite(counts_N)]
            if len(counts_N):
                low, high = f"{counts_N.min():.0f}", f"{counts_N.max():.0f}"
                words = _COUNTS.get(name, name.replace("_", " ") + " {}")
                known.append(words.format(low if low == high else f"{low} to {high}"))
        if known:
            notes.append(f"{target_name(target)}: {', '.join(known)}.")
    return " ".join(notes)


def _thinned(value_NC: np.ndarray, points: int) -> np.ndarray:
    """Return at most `points` rows, each the mean of neighbouring ones; a mean that isn't finite is NaN."""
    edges_P = np.linspace(0, len(value_NC), min(points, len(value_NC)) + 1).astype(int)
    mean_PC = np.add.reduceat(value_NC, edges_P[:-1], axis=0) / np.diff(edges_P)[:, None]
    return np.where(np.isfinite(mean_PC), mean_PC, np.nan)
