"""Estimate how much a column varies over seeds alone, to which effects are compared."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from sweeps.analysis.encode import finite_numbers
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.table.columns import as_levels, require_column


def seed_deviation(rows: pd.DataFrame, column: str, groups: str = "configuration") -> float:
    """Return the standard deviation of a column over seeds; see `seed_deviations`."""
    return float(seed_deviations(rows, [column], groups)[column])


def seed_deviations(rows: pd.DataFrame, columns: Sequence[str], groups: str = "configuration") -> pd.Series:
    """Return standard deviations of columns over seeds, pooled over configurations.

    It is the square root of the summed squared deviations from the configurations' means, divided by the number of
    values minus the number of configurations that have any (methods.md, section 5). Configurations of one run have no
    influence.

    Args:
      rows: one row per run. columns: numeric; missing and infinite values are left out of each column separately.
      groups: column that is equal for runs which differ only in their seeds.

    Returns:
      A Series by column, in its units; NaN where no configuration has two values, and exactly 0 where all seeds agree.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a column that holds something other than numbers.
    """
    if not columns:
        return pd.Series(dtype=float)
    for name in (*columns, groups):
        require_column(rows, name)
    groups_N = as_levels(rows[groups])
    values = finite_numbers(rows, columns)
    # Relative to each group's first value, so that equal values deviate by exactly 0, without rounding of the mean.
    shifted = values - values.groupby(groups_N).transform("first")
    squares = ((shifted - shifted.groupby(groups_N).transform("mean")) ** 2).sum()
    dof = (values.groupby(groups_N).count() - 1).clip(lower=0).sum()
    return np.sqrt(squares / dof)  # 0 / 0 without replicates


def intraclass(rows: pd.DataFrame, column: str, groups: str = "configuration") -> Estimate:
    """Return the share of a column's variance that is between configurations: the intraclass correlation.

    It is the estimate of one-way analysis of variance, (F - 1) / (F - 1 + n) for n seeds per configuration, cut at 0.
    The interval inverts the F test and is exact for equal numbers of seeds; for others n is their mean, corrected as
    usual, (N - sum n_i^2 / N) / (G - 1). The p-value is that of F.

    Args:
      rows: one row per run. column: numeric; missing and infinite values are left out.
      groups: column that is equal for runs which differ only in their seeds.

    Raises:
      UnknownColumnError, AnalysisError: as seed_deviations.
      NotEstimableError: fewer than two configurations, no replicates, or the same value throughout.

    Source: methods.md, section 5; Shrout & Fleiss 1979, ICC(1, 1).
    """
    for name in (column, groups):
        require_column(rows, name)
    value_N = finite_numbers(rows, [column])[column]
    kept_N = value_N.notna()
    if (missing := int((~kept_N).sum())) and not kept_N.any():
        raise NotEstimableError(f"it is missing or not finite in all {missing} runs")
    value_N = value_N[kept_N]
    grouped = value_N.groupby(as_levels(rows[groups])[kept_N])
    size_G = grouped.size().to_numpy()
    n, count = len(value_N), len(size_G)
    if count < 2:
        raise NotEstimableError("comparing configurations takes two or more of them, with two seeds each")
    if n == count:
        raise NotEstimableError("no configuration has two seeds")
    if value_N.nunique() < 2:
        raise NotEstimableError("the metric has the same value in all runs")
    per_group = (n - np.sum(size_G**2) / n) / (count - 1)
    mean_N = grouped.transform("mean")
    within = float(((value_N - mean_N) ** 2).sum()) / (n - count)
    between = float(((mean_N - value_N.mean()) ** 2).sum()) / (count - 1)
    if within == 0:
        return Estimate(1.0, 1.0, 1.0, 0.0, n)
    ratio, dof = between / within, (count - 1, n - count)

    def share(f: float) -> float:
        return max((f - 1) / (f - 1 + per_group), 0.0)

    low, high = (ratio / stats.f.ppf(p, *dof) for p in (0.975, 0.025))
    return Estimate(share(ratio), share(low), share(high), float(stats.f.sf(ratio, *dof)), n)
