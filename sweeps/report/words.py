"""Columns, estimates and counts as they stand in a sentence."""

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from sweeps.analysis.estimate import Estimate
from sweeps.report.numbers import gained, number, signed

TITLE = "Geometry, performance and training"  # of a report


def describe(estimate: Estimate) -> str:
    """Return the number with its interval for a sentence."""
    if math.isnan(estimate.estimate):
        return "not estimable"
    if math.isnan(estimate.low):
        return f"{signed(estimate.estimate)} (no interval: too few configurations)"
    return f"{signed(estimate.estimate)} (95 % interval {signed(estimate.low)} to {signed(estimate.high)})"


def setting_name(column: str) -> str:
    """Return a setting, such as `config.optimizer.weight_decay`, in words."""
    return column.rsplit(".", 1)[-1].replace("_", " ")


def as_level(x: object) -> str:
    return f"{x:g}" if isinstance(x, float) else str(x)


def counted(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def spanned(x: np.ndarray) -> str:
    low, high = number(np.nanmin(x)), number(np.nanmax(x))
    return low if low == high else f"{low} to {high}"


def below(gap: np.ndarray) -> str:
    if np.nanmax(gap) < 0:
        return f"the runs lie {spanned(-gap)} above it"
    if np.nanmin(gap) < 0:
        return f"the runs lie from {number(-np.nanmin(gap))} above to {number(np.nanmax(gap))} below it"
    return f"the runs lie {spanned(gap)} below it"


def change(x: np.ndarray) -> str:
    low, high, mean = (gained(f(x)) for f in (np.nanmin, np.nanmax, np.nanmean))
    text = f"{mean} nats"
    return text if low == high else f"{text} on average ({low} to {high})"


def moved(means: pd.Series, unit: str = "") -> str:
    return f"{number(means.iloc[0])} to {number(means.iloc[-1])}{unit}"


def listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
