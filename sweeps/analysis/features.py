"""Choose and encode the columns from which a loss is predicted: settings and measurements.

Letters: N rows, K regressors, C columns.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.encode import encode, finite_numbers, first_of_equal
from sweeps.analysis.estimate import join_notes
from sweeps.table.columns import (
    FIRST_TARGETS,
    PRIMARY_PAIR,
    as_levels,
    controls_of,
    geometry_columns,
    numbers,
    target_of,
)

# A measurement missing in a larger share of the rows is left out; for others the rows that lack it are left out.
MAX_MISSING = 0.2
MAX_GEOMETRY = 12
# Columns whose correlation is this close to 1 or -1 are copies.
_COPY = 1e-6
# The scale of a run, which comes before its `config.` settings: of equivalent settings the first is kept.
_SCALE = ("parameters_non_embedding", "tokens")


class Features(NamedTuple):
    """Columns as regressors.

    Attributes:
      names: the columns. owner_K: the index in `names` of each regressor's column.
      x_NK: regressors as `encode` returns them; none if there is no column.
      note: what was left out and why; "" if nothing.
    """

    names: list[str]
    owner_K: np.ndarray
    x_NK: np.ndarray
    note: str


def setting_features(rows: pd.DataFrame) -> Features:
    """Return those of non-embedding parameters, tokens and the settings that vary.

    Text and lists are categories, and so is a number that is missing in some rows: missing is a level. Of settings that
    partition the rows in the same way the first is kept, after parameters and tokens; the note names the others.
    """
    scale = [c for c in _SCALE if c in rows.columns and rows[c].nunique() > 1]
    filled = pd.DataFrame({name: _filled(rows[name]) for name in (*scale, *controls_of(rows))}, index=rows.index)
    firsts = first_of_equal(dict(filled.items()))
    notes = [f"{name} is equivalent to {first}" for name, first in firsts.items() if name != first]
    return _features(filled, list(dict.fromkeys(firsts.values())), "; ".join(notes))


def geometry_candidates(columns: Iterable[str]) -> list[str]:
    """Return the metrics of FIRST_TARGETS among `columns`, in an order that depends only on their names.

    They alternate between targets, so that the first few have some of each; within a target the metric declared
    beforehand comes first, the others follow by name [ours].
    """
    first = PRIMARY_PAIR[0].rpartition("/")[2]
    by_target: dict[str, list[str]] = {target: [] for target in FIRST_TARGETS}
    for column in geometry_columns(pd.DataFrame(columns=list(columns))):
        if target_of(column) in by_target:
            by_target[target_of(column)].append(column)
    places: dict[str, tuple[int, int]] = {}
    for target, names in by_target.items():
        ordered = sorted(names, key=lambda c: (c.rpartition("/")[2] != first, c))
        places |= {name: (i, FIRST_TARGETS.index(target)) for i, name in enumerate(ordered)}
    return sorted(places, key=lambda name: places[name])


def measured(rows: pd.DataFrame, names: Iterable[str]) -> tuple[pd.DataFrame, str]:
    """Return columns as floats, infinite as missing, without those missing in over 20 % of rows, and a note."""
    values = finite_numbers(rows, names)
    kept = values.loc[:, values.isna().mean() <= MAX_MISSING] if len(values) else values
    lacking = values.shape[1] - kept.shape[1]
    note = (
        f"measurements left out: {lacking} (missing in over {100 * MAX_MISSING:.0f} % of the runs)" if lacking else ""
    )
    return kept, note


def measured_features(values: pd.DataFrame, most: int | None = None) -> Features:
    """Return columns without missing values as regressors, in order: no constants, no copies, at most `most`."""
    kept: list[str] = []
    columns: list[np.ndarray] = []
    constant = copies = over = 0
    for name in values.columns:
        x_N = encode(values, [name])[:, 0] if len(values) else np.zeros(0)
        if not x_N.any():
            constant += 1
        elif any(abs(x_N @ other_N) > (1 - _COPY) * len(x_N) for other_N in columns):
            copies += 1
        elif most is not None and len(kept) == most:
            over += 1
        else:
            kept.append(name)
            columns.append(x_N)
    reasons = [(constant, "constant"), (copies, "copies of others"), (over, f"beyond the first {most}")]
    left_out = ", ".join(f"{count} ({why})" for count, why in reasons if count)
    return _features(values, kept, f"measurements left out: {left_out}" if left_out else "")


def joined(*parts: Features) -> Features:
    """Concatenate the columns of several features."""
    names: list[str] = []
    owners = []
    for part in parts:
        owners.append(part.owner_K + len(names))
        names += part.names
    x_NK = np.concatenate([part.x_NK for part in parts], axis=1)
    return Features(names, np.concatenate(owners), x_NK, join_notes(*(part.note for part in parts)))


def _features(rows: pd.DataFrame, names: list[str], note: str) -> Features:
    blocks = [encode(rows, [name]) for name in names]
    owner_K = np.repeat(np.arange(len(names)), [block.shape[1] for block in blocks])
    return Features(names, owner_K, np.concatenate([np.empty((len(rows), 0)), *blocks], axis=1), note)


def _filled(column: pd.Series) -> pd.Series:
    """Return the column for `encode`: a category with missing as a level, unless all its values are finite numbers."""
    if pd.api.types.is_numeric_dtype(column):
        finite_N = np.isfinite(numbers(column.to_frame("x"), "x"))
        return column if finite_N.all() else column.map(str)
    return as_levels(column).astype(object).fillna("missing").map(str)
