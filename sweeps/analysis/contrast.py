"""The mean change of an outcome between two levels of a factor, paired within blocks, with seeds as replicates.

Letters: N rows, S seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from sweeps.analysis.encode import finite_numbers
from sweeps.analysis.estimate import Estimate, nothing

# With fewer seeds no interval is computed.
LEAST_SEEDS = 5


def contrast(
    rows: pd.DataFrame, outcome: str, factor: str, levels: tuple[object, object], within: Sequence[str], seed: str
) -> Estimate:
    """Return the mean of the outcome at the second level minus the first, over blocks that have both [ours].

    A block is the rows of one seed that agree in `within`. The differences are averaged within each seed, so that seeds
    are the replicates: blocks of one seed share its initial parameters and its text, and so aren't independent. The
    interval and the p-value are Student's t over seeds.

    Args:
      rows: one row per run. factor: the column whose levels are compared. within: columns that pairs agree in.
      seed: the column that names the replicates.

    Returns:
      An Estimate whose n is the number of seeds; without an interval if there are fewer than LEAST_SEEDS.
    """
    value_N = finite_numbers(rows, [outcome])[outcome]
    data = rows[[factor, seed, *within]].assign(value=value_N).dropna(subset=["value"])
    block = [seed, *within]
    first, second = (data[data[factor] == level].groupby(block, dropna=False)["value"].mean() for level in levels)
    change = (second - first).dropna()
    if change.empty:
        return nothing(0)
    change_S = change.groupby(level=0).mean().to_numpy()
    return mean_estimate(change_S)


def mean_estimate(x_S: np.ndarray) -> Estimate:
    """Return the mean of independent values with Student's interval, and the p-value of a mean of 0."""
    n = len(x_S)
    return student(float(np.mean(x_S)), float(np.std(x_S, ddof=1)) / math.sqrt(n) if n >= LEAST_SEEDS else math.nan, n)


def student(value: float, error: float, n: int) -> Estimate:
    """Return a value with Student's interval from its standard error over n replicates, and the p-value of 0.

    Without an interval if there are fewer than LEAST_SEEDS replicates.
    """
    if n < LEAST_SEEDS:
        return Estimate(value, math.nan, math.nan, math.nan, n)
    half = float(special.stdtrit(n - 1, 0.975)) * error
    p_value = float(value == 0) if error == 0 else float(2 * special.stdtr(n - 1, -abs(value) / error))
    return Estimate(value, value - half, value + half, p_value, n)
