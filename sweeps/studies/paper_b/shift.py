"""Measure how fine-tuning shifts the mean local dimension of each text, in standard deviations over points."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from olmo_jax.storage.names import file_name
from sweeps.analysis.leads import middle
from sweeps.table.catalog import describe

DIMENSION = "local_two_nn"


def dimension_columns(columns: Iterable[str], text: str = "") -> list[str]:
    """Return columns <states>.<text>/local_two_nn of mean local dimension, of one text or all, deepest states first."""
    dimensions = {name: describe(name).of for name in columns}
    on_text = [
        name
        for name, of in dimensions.items()
        if of.get("metric") == DIMENSION and "text" in of and "after" not in of and text in ("", of["text"])
    ]
    return sorted(on_text, key=lambda name: -_depth(states_of(name)))


def text_of(column: str) -> str:
    """Return the text of a column: prose for `final_states.prose/local_two_nn`."""
    return str(describe(column).of["text"])


def states_of(column: str) -> str:
    """Return the states of a column: final_states for `final_states.prose/local_two_nn`."""
    return str(describe(column).of["states"])


def _depth(states: str) -> float:
    return float(states.removeprefix("layer_")) if states.startswith("layer_") else math.inf


def course_ends(course: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Return first and last rows of each fine-tuning by run, checkpoint and seed, and the number of those left out.

    A fine-tuning that diverged has no local dimension along the way and is left out.
    """
    key = ["run_id", "step", "seed"]
    ordered = course.sort_values("at").groupby(key, sort=True)
    first, last = (rows.set_index(key).sort_index() for rows in (ordered.head(1), ordered.tail(1)))
    columns = [c for c in course.columns if c.endswith(f"/{DIMENSION}")]
    known = first[columns].notna().any(axis=1) & last[columns].notna().any(axis=1)
    return first[known], last[known], int((~known).sum())


def shifts(course: pd.DataFrame) -> pd.DataFrame:
    """Return the shift of each text's mean local dimension from before a fine-tuning to its end, over models.

    It is in standard deviations over points, the root of the mean of the variances before and after. One row per
    column: column, text, own (whether it was fine-tuned on), before, after, shift, low, high, n. Seeds and checkpoints
    of a run are averaged; the shift is the median of pairwise means, with the signed-rank interval, which needs 6 runs.
    """
    first, last, _ = course_ends(course)
    rows = []
    for column in dimension_columns(map(str, course.columns)):
        spread = f"{column}_std"
        if spread not in course:
            continue
        pooled = np.sqrt((first[spread].astype(float) ** 2 + last[spread].astype(float) ** 2) / 2)
        shift = ((last[column] - first[column]) / pooled).astype(float).groupby(level="run_id").mean().dropna()
        text = text_of(column)
        own = text in ("train", "validation") or file_name(text) == course["target"].iloc[0]
        levels = float(first[column].mean()), float(last[column].mean())
        rows.append((column, text, own, *levels, *middle(shift.to_numpy()), len(shift)))
    return pd.DataFrame(rows, columns=["column", "text", "own", "before", "after", "shift", "low", "high", "n"])
