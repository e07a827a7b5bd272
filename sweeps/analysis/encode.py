"""Encode columns of the table as regressors of a linear regression. Letters: N rows, K regressors.

The rule for settings, metrics and losses: a positive column that spans a decade enters in logs. A setting that isn't a
number, or that has zeros among levels that span a decade (a final fraction of 0, .01 and .1), is a category.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from sweeps.table.columns import as_levels, numbers

# From this ratio of maximum to minimum on, ratios matter rather than differences.
DECADE = 10.0

# A column whose range is a smaller share of its values than this is constant up to rounding.
_CONSTANT = 1e-12


def usable(table: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return whether each row has a value in all these columns, finite if they are numeric: `[N]`."""
    usable_N = np.ones(len(table), dtype=bool)
    for name in columns:
        if pd.api.types.is_numeric_dtype(table[name]):
            usable_N &= np.isfinite(numbers(table, name))
        else:
            usable_N &= table[name].notna().to_numpy(dtype=bool)
    return usable_N


def encode(rows: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return the columns as regressors `[N, K]`, without an intercept.

    Numbers, in logs where the rule says so, are scaled to mean 0 and variance 1, so that the rank of the regressors
    doesn't depend on units; a constant becomes zeros. A category has an indicator for each of its levels, without a
    reference level: with the least-squares solution of minimum norm, the prediction for a level that the fitted rows
    lack then doesn't depend on the order of levels.

    Args:
      rows: rows without a missing value in these columns; see `usable`.
      columns: names, without repeats.

    Source: methods.md, section 1; that a category with zeros has at most half as many levels as rows is [ours].
    """
    parts = [np.empty((len(rows), 0))]
    for name in columns:
        if _is_category(rows[name]):
            parts.append(indicators(pd.factorize(as_levels(rows[name]), sort=True)[0]))
        else:
            parts.append(standardised(in_logs_if_wide(numbers(rows, name)[:, None])))
    return np.concatenate(parts, axis=1)


def indicators(codes_N: np.ndarray, first: int = 0) -> np.ndarray:
    """Return a column of 0 and 1 for each code from `first` on; codes count from 0 without gaps: [N, K]."""
    return (codes_N[:, None] == np.arange(first, codes_N.max(initial=-1) + 1)).astype(float)


def finite_numbers(rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """Return columns as floats, infinite values as missing. Raises AnalysisError for values that aren't numbers."""
    values = pd.DataFrame({name: numbers(rows, name) for name in columns}, index=rows.index)
    return values.replace([np.inf, -np.inf], np.nan)


def first_of_equal(columns: Mapping[str, np.ndarray | pd.Series]) -> dict[str, str]:
    """Return for each column the first one that partitions the rows in the same way, which may be itself."""
    firsts: dict[bytes, str] = {}
    # Codes in order of occurrence, so that equal partitions have equal codes.
    return {name: firsts.setdefault(pd.factorize(column)[0].tobytes(), name) for name, column in columns.items()}


def is_wide(x_NK: np.ndarray) -> np.ndarray:
    """Return whether each column is positive and spans a decade or more: `[K]`."""
    if len(x_NK) == 0:
        return np.zeros(x_NK.shape[1], dtype=bool)
    least_K = x_NK.min(axis=0)
    return (least_K > 0) & (x_NK.max(axis=0) >= DECADE * least_K)


def in_logs_if_wide(x_NK: np.ndarray) -> np.ndarray:
    """Return natural logs of the columns for which `is_wide` is true, and the others unchanged."""
    wide_K = is_wide(x_NK)
    return np.where(wide_K, np.log(np.where(wide_K, x_NK, 1.0)), x_NK)


def standardised(x_NK: np.ndarray) -> np.ndarray:
    """Scale columns to mean 0 and variance 1 (over N); one that is constant up to rounding becomes zeros."""
    if len(x_NK) == 0:
        return x_NK
    varies_K = np.ptp(x_NK, axis=0) > _CONSTANT * np.abs(x_NK).max(axis=0)
    # First divided by the largest value, as squares of very large or very small columns over- or underflow.
    x_NK = x_NK / np.where(varies_K, np.abs(x_NK).max(axis=0), 1.0)
    deviation_K = np.where(varies_K, x_NK.std(axis=0), 1.0)
    return np.where(varies_K, (x_NK - x_NK.mean(axis=0)) / deviation_K, 0.0)


def _is_category(column: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(column):
        return True
    values_N = column.to_numpy(dtype=float)
    positive_M = values_N[values_N > 0]
    with_zeros = len(positive_M) and values_N.min() == 0
    return bool(with_zeros and is_wide(positive_M[:, None])[0] and 2 * column.nunique() <= len(column))
