"""How far seeds alone move a column: what an effect has to be larger than."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sweeps.table.columns import as_levels, numbers, require_column


def seed_deviation(rows: pd.DataFrame, column: str, groups: str = "configuration") -> float:
    """Standard deviation of a column over seeds; see `seed_deviations`."""
    return float(seed_deviations(rows, [column], groups)[column])


def seed_deviations(rows: pd.DataFrame, columns: Sequence[str], groups: str = "configuration") -> pd.Series:
    """Standard deviations of columns over seeds, pooled over configurations.

    The root of the summed squared deviations from the configurations' means, over the values less the configurations
    that have any (methods.md, section 5). Configurations of one run tell nothing and change nothing.

    Args:
      rows: one row a run. columns: of numbers; missing and infinite values are left out, each column's for itself.
      groups: column that runs alike but for their seeds share.

    Returns:
      A Series by column, in its units; NaN where no configuration has two values, and exactly 0 where all seeds agree.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a column that holds something other than numbers.
    """
    if not columns:
        return pd.Series(dtype=float)
    for name in (*columns, groups):
        require_column(rows, name)
    of = as_levels(rows[groups])
    values = pd.DataFrame({name: numbers(rows, name) for name in columns}, index=rows.index)
    values = values.replace([np.inf, -np.inf], np.nan)
    # From each one's first value, so that equal values differ by 0 and not by the rounding of their mean.
    shifted = values - values.groupby(of).transform("first")
    squares = ((shifted - shifted.groupby(of).transform("mean")) ** 2).sum()
    freedom = (values.groupby(of).count() - 1).clip(lower=0).sum()
    return np.sqrt(squares / freedom)  # 0 / 0 without replicates
