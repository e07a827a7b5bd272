"""Make tables of out-of-fold R2: one row for each set of features, and one for what a set adds to another.

Letters: N rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweeps.analysis.folds import DRAWS, shares

# The columns of each row, after those that say what it is of.
COLUMNS = ("features", "r2", "low", "high", "n", "note")
GAIN = "geometry's gain"
UNUSED = "the fits leave geometry out"

Row = dict[str, Any]


def scores(
    errors: Mapping[str, np.ndarray | str],
    gain: tuple[str, str],
    notes: Mapping[str, str],
    y_N: np.ndarray,
    groups_N: np.ndarray,
) -> list[Row]:
    """Return R2 of each set of features with its interval, then GAIN: R2 of the second set of `gain` minus the first's.

    Args:
      errors: squared errors out of fold by set of features, or why there are none, which becomes the note.
      notes: by set of features and for GAIN, for those with errors.
    """
    rows = []
    for name, error_N in errors.items():
        if isinstance(error_N, str):
            rows += missing_scores([name], len(y_N), error_N)
        else:
            r2_3 = 1 + shares(-error_N[None], y_N, groups_N, DRAWS)[0]
            rows.append(_row(name, r2_3.tolist(), len(y_N), notes[name]))
    less, more = (errors[name] for name in gain)
    if isinstance(less, str) or isinstance(more, str):
        return rows + missing_scores([GAIN], len(y_N), more if isinstance(more, str) else str(less))
    gain_1N = (less - more)[None]
    r2_3 = shares(gain_1N, y_N, groups_N, DRAWS)[0]
    return [*rows, _row(GAIN, r2_3.tolist(), len(y_N), notes[GAIN] if gain_1N.any() else UNUSED)]


def missing_scores(features: Iterable[str], n: int, why: str) -> list[Row]:
    """Return the rows of sets of features without an R2."""
    return [_row(name, [np.nan] * 3, n, why) for name in features]


def score_table(rows: list[Row], of: Sequence[str]) -> pd.DataFrame:
    """Return the rows as a table, whose first columns say what each row is of."""
    return pd.DataFrame(rows, columns=[*of, *COLUMNS]).astype({"r2": float, "low": float, "high": float, "n": int})


def _row(features: str, r2_3: list[float], n: int, note: str) -> Row:
    return dict(zip(COLUMNS, (features, *r2_3, n, note), strict=True))
