"""What fine-tuning did to the mean local dimension of each text, in standard deviations over points."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from olmo_jax.storage.names import file_name
from sweeps.analysis.leads import middle

DIMENSION = "local_two_nn"


def dimension_columns(columns: Iterable[str], text: str = "") -> list[str]:
    """Mean local dimensions `<states>.<text>/local_two_nn`, of one text or of all, the deepest states first."""
    ending = f".{text}/{DIMENSION}" if text else f"/{DIMENSION}"
    found = [c for c in columns if c.endswith(ending) and "." in c.rpartition("/")[0]]
    return sorted(found, key=lambda c: -_depth(states_of(c)))


def text_of(column: str) -> str:
    """`final_states.prose/local_two_nn` -> prose."""
    return column.rpartition("/")[0].partition(".")[2]


def states_of(column: str) -> str:
    """`final_states.prose/local_two_nn` -> final_states."""
    return column.partition(".")[0]


def _depth(states: str) -> float:
    return float(states.removeprefix("layer_")) if states.startswith("layer_") else math.inf


def course_ends(course: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """First and last rows of each course by run, checkpoint and seed, and how many more ended without a number.

    A fine-tuning that diverged has no numbers along the way.
    """
    key = ["run_id", "step", "seed"]
    ordered = course.sort_values("at").groupby(key, sort=True)
    first, last = (rows.set_index(key).sort_index() for rows in (ordered.head(1), ordered.tail(1)))
    columns = [c for c in course.columns if c.endswith(f"/{DIMENSION}")]
    there = first[columns].notna().any(axis=1) & last[columns].notna().any(axis=1)
    return first[there], last[there], int((~there).sum())


def shifts(course: pd.DataFrame) -> pd.DataFrame:
    """Of each text's mean local dimension, from before a fine-tuning to its end, over models.

    In standard deviations over points, the root of the mean of the variances before and after. A row a column: column,
    text, own (whether it was fine-tuned on), before, after, shift, low, high, n. Seeds and checkpoints of a run count
    as one; the shift is the median of pairwise means, with the interval of signed ranks, which takes 6 runs.
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
