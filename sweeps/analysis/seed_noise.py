"""Estimate how much a column varies over seeds alone, to which effects are compared."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sweeps.analysis.encode import finite_numbers
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
