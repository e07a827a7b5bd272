"""How fast a metric changes: its change since the checkpoint before, per ln(tokens)."""

import numpy as np
import pandas as pd

from sweeps.table.columns import numbers, require_column

PREFIX = "rate/"


def is_rate(column: str) -> bool:
    """Return whether a name is that of the rate of another column: "rate/unembedding/effective_rank"."""
    return column.startswith(PREFIX)


def with_rates(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return the table with these rates, `rate/<column>`, in every row of a run but the first that has the column.

    The rate is (x - x before) / (ln(tokens) - ln(tokens before)), in the column's unit, since the last checkpoint
    before at which the column was measured after a token or more.

    Raises UnknownColumnError for a column that the table lacks.
    """
    added = {}
    for column in columns:
        of = column.removeprefix(PREFIX)
        require_column(table, of)
        tokens_N = numbers(table, "tokens")
        known = table[["run_id"]].assign(x=numbers(table, of), tokens=np.where(tokens_N > 0, tokens_N, np.nan)).dropna()
        known = known.assign(t=np.log(known["tokens"])).sort_values(["run_id", "t"], kind="stable")
        step = known.groupby("run_id")[["x", "t"]].diff()
        added[column] = (step["x"] / step["t"].where(step["t"] > 0)).reindex(table.index)
    result = table.assign(**added)
    result.attrs = table.attrs
    return result
