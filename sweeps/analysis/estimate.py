"""What a statistic comes back as, and what is wrong with a table that can't give one."""

import difflib
from typing import NamedTuple

import numpy as np
import pandas as pd

from olmo_jax.errors import UserError

# Fewer usable rows than this give no statistic.
MIN_ROWS = 4


class Estimate(NamedTuple):
    """A statistic and its 95 % interval. A value that the rows can't give is NaN; `n` counts the rows used."""

    estimate: float
    low: float
    high: float
    p_value: float
    n: int


def nothing(n: int) -> Estimate:
    """The estimate of what can't be estimated from n rows."""
    return Estimate(np.nan, np.nan, np.nan, np.nan, n)


class AnalysisError(UserError, ValueError):
    """A table that can't be analysed as asked; the message names the column and what is wrong with it."""


class UnknownColumnError(AnalysisError, KeyError):
    """A column that the table doesn't have; the message names the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


def require_column(table: pd.DataFrame, name: str) -> None:
    """Raises UnknownColumnError unless the table has the column."""
    if name not in table.columns:
        near = difflib.get_close_matches(name, [str(c) for c in table.columns], n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else f"; it has {len(table.columns)} others, none of a like name"
        raise UnknownColumnError(f"the table has no column '{name}'{hint}")


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as floats, missing values NaN. Raises AnalysisError for one that holds something else."""
    try:
        return pd.to_numeric(table[name]).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"column '{name}' of the table holds something that isn't a number: {error}") from None
