"""The result of the test of one claim."""

import math
from typing import NamedTuple

import numpy as np
import scipy.stats

from sweeps.table.columns import PRIMARY_PAIR

RANK, LOSS = PRIMARY_PAIR
FIXED_RANK = "unembedding_gauge_fixed/effective_rank_percent"
# With fewer differences no interval is given.
LEAST = 3


class Effect(NamedTuple):
    """One row: a claim of the paper and its test on this table.

    Attributes:
      effect, low, high: the difference, correlation or gain of R2, with its 95 % interval; NaN if the table can't give
        it. Differences are in units of the metric.
      n: size of the sample. of: what the sample consists of.
      effect_in_seed_sd: a difference in standard deviations over seeds; else NaN.
      verdict: agrees, disagrees, unclear or untestable.
    """

    claim: str
    metric: str
    effect: float
    low: float
    high: float
    n: int
    effect_in_seed_sd: float
    verdict: str
    of: str = "sizes"


def untestable(claim: str, metric: str, n: int = 0, of: str = "sizes") -> Effect:
    """Return the row of a claim that this table can't test."""
    return Effect(claim, metric, math.nan, math.nan, math.nan, n, math.nan, "untestable", of)


def mean_difference(claim: str, metric: str, sign: int, differences: list[float], noise: float, of: str) -> Effect:
    """Return the mean of differences with Student's interval.

    Args:
      sign: that of the difference in the paper. noise: standard deviation over seeds. of: what
        the sample consists of, such as "sizes".
    """
    values = np.array([d for d in differences if math.isfinite(d)])
    n = len(values)
    if n < LEAST:
        return untestable(claim, metric, n, of)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half_width = float(scipy.stats.t.ppf(0.975, n - 1)) * error
    low, high = mean - half_width, mean + half_width
    return Effect(claim, metric, mean, low, high, n, in_seeds(mean, noise), verdict(sign, mean, low, high), of)


def verdict(sign: int, effect: float, low: float, high: float) -> str:
    """Return the verdict of an interval on a claim that the effect has this sign."""
    if not (low > 0 or high < 0):
        return "unclear"
    return "agrees" if effect * sign > 0 else "disagrees"


def in_seeds(effect: float, noise: float) -> float:
    return effect / noise if noise else math.nan
