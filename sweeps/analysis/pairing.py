"""Pair the runs of two sweeps.

Sweeps that differ in one setting everywhere (another optimiser, another corpus) share no configuration, so runs are
paired by the settings that vary within the sweeps. Letters: N final rows.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sweeps.table.columns import AnalysisError, FinalRows, controls_of, final_rows, require_column

# Significant digits to which floats are compared, so that rounding makes no difference.
_DIGITS = 9
# The most values and settings that a message names.
_MOST_VALUES, _MOST_SETTINGS = 6, 3

Level = str | float | None


class Pairing(NamedTuple):
    """The pairs of final rows of two sweeps.

    Attributes:
      first, second: final rows of each sweep, and how many runs these leave out.
      first_N, second_N: index of each row's pair, from 0; -1 for a row without one.
      pairs: number of pairs.
      paired_by: settings that vary and agree in every pair; or `pair_by`, if it was given.
      differs: the settings that don't agree, each with its values in the pairs of the first and of the second sweep.
      same: number of pairs with the same configuration in both sweeps.
      averaged: number of pairs of several configurations, whose means are compared.
      apart: settings that alone keep some runs from being paired: if one is ignored, some of these have a pair.
    """

    first: FinalRows
    second: FinalRows
    first_N: np.ndarray
    second_N: np.ndarray
    pairs: int
    paired_by: list[str]
    differs: dict[str, tuple[str, str]]
    same: int
    averaged: int
    apart: list[str]

    @property
    def unpaired(self) -> tuple[int, int]:
        """Return the numbers of finished runs of the first and of the second sweep that are in no pair."""
        return int((self.first_N < 0).sum()), int((self.second_N < 0).sum())


def pair(first: pd.DataFrame, second: pd.DataFrame, pair_by: Sequence[str] | None = None) -> Pairing:
    """Pair the finished runs of two sweeps by configuration [ours].

    Runs pair if they agree in the settings that vary within either sweep, their grids. A setting that is constant
    within each sweep, with different values, counts as a difference. So does a setting of the grids that is redundant:
    in both sweeps the others distinguish as many points, for example if each sweep sets the learning rate by a rule of
    its own from the batch size. The settings with the smallest share of common values are tried first.

    Args:
      first, second: tables of the two sweeps, one row per (run, checkpoint).
      pair_by: columns to pair by instead, with or without `config.`; other settings are averaged over.

    Raises:
      AnalysisError: a sweep without a finished run, or no pair; the message names the settings without a common value.
      UnknownColumnError: a name in pair_by that a table lacks.
    """
    finals = _finished(first, "first"), _finished(second, "second")
    named = None if pair_by is None else list(dict.fromkeys(_column(name, finals) for name in pair_by))
    settings = [c for final in finals for c in final.rows.columns if str(c).startswith("config.")]
    one, other = (_levels(final.rows, [*settings, *(named or [])]) for final in finals)
    varied = controls_of(pd.concat([one, other]))
    grid = [c for c in varied if len(set(one[c])) > 1 or len(set(other[c])) > 1]
    key = _shortest(grid, one, other) if named is None else named

    one_points, other_points = _points(one, key), _points(other, key)
    common = set(other_points)
    index = {point: i for i, point in enumerate(p for p in dict.fromkeys(one_points) if p in common)}
    if not index:
        raise AnalysisError(f"no configuration of one sweep pairs with one of the other: {_why_none(key, one, other)}")
    first_N, second_N = (np.array([index.get(point, -1) for point in points]) for points in (one_points, other_points))

    apart = _apart(key, one[first_N < 0], other[second_N < 0])
    one, other = _paired(one, first_N), _paired(other, second_N)
    differing = [c for c in varied if (_sets(one[c]) != _sets(other[c])).any()]
    ids = [
        _sets(_paired(final.rows, pair_N)["configuration"])
        for final, pair_N in zip(finals, (first_N, second_N), strict=True)
    ]
    return Pairing(
        *finals,
        first_N,
        second_N,
        pairs=len(index),
        paired_by=[c for c in grid if c not in differing] if named is None else named,
        differs={c: (_in_words(one[c]), _in_words(other[c])) for c in differing},
        same=int((ids[0] == ids[1]).sum()),
        averaged=int(((ids[0].map(len) > 1) | (ids[1].map(len) > 1)).sum()),
        apart=apart,
    )


def as_level(value: Any) -> Level:
    """Return a setting's value in a form that compares equal between tables, whatever its types; None if missing."""
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(map(str, value))
    if pd.isna(value):
        return None
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return float(value)
    return str(value)


def _finished(table: pd.DataFrame, which: str) -> FinalRows:
    if "run_id" not in table.columns:
        raise AnalysisError(f"the {which} sweep has no run")
    final = final_rows(table)
    if final.rows.empty:
        why = f"{final.diverged} diverged, {final.unfinished} aren't finished"
        raise AnalysisError(f"the {which} sweep has no finished run: {why}")
    return final


def _column(name: str, finals: Iterable[FinalRows]) -> str:
    """Return the name of a column that both tables have, given with or without `config.`."""
    column = name
    for final in finals:
        column = name if name in final.rows.columns else f"config.{name.removeprefix('config.')}"
        require_column(final.rows, column)
    return column


def _levels(rows: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    values = {c: map(as_level, rows[c]) if c in rows.columns else [None] * len(rows) for c in dict.fromkeys(columns)}
    # As objects, since pandas would turn None into NaN, which isn't equal to itself.
    return pd.DataFrame({c: pd.Series(list(v), rows.index, dtype=object) for c, v in values.items()}, rows.index)


def _shortest(grid: list[str], one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Return the settings of the grid without the redundant ones, which distinguish no points in either sweep.

    This loses no pair. Of settings with equal shares of common values, the later column is dropped first.
    """

    def common(setting: str) -> float:
        one_values, other_values = set(one[setting]), set(other[setting])
        return len(one_values & other_values) / len(one_values | other_values)

    def different(key: list[str]) -> tuple[int, int]:
        return len(set(_points(one, key))), len(set(_points(other, key)))

    key = grid
    for setting in sorted(grid, key=lambda c: (common(c), -grid.index(c))):
        rest = [c for c in key if c != setting]
        key = rest if different(rest) == different(key) else key
    return key


def _points(levels: pd.DataFrame, key: list[str]) -> list[tuple[Level, ...]]:
    return list(zip(*(levels[c] for c in key), strict=True)) if key else [()] * len(levels)


def _apart(key: list[str], one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Return each setting of the key without which some of these unpaired rows would have a pair."""
    rests = {setting: [c for c in key if c != setting] for setting in key}
    return [s for s, rest in rests.items() if set(_points(one, rest)) & set(_points(other, rest))]


def _paired(rows: pd.DataFrame, pair_N: np.ndarray) -> pd.DataFrame:
    return rows[pair_N >= 0].set_axis(pair_N[pair_N >= 0])


def _sets(column: pd.Series) -> pd.Series:
    """Return the set of values in each pair."""
    return column.groupby(level=0).agg(frozenset)


def _why_none(key: list[str], one: pd.DataFrame, other: pd.DataFrame) -> str:
    apart = [c for c in key if not set(one[c]) & set(other[c])]
    reasons = [f"{c} is {_in_words(one[c])} in the first, {_in_words(other[c])} in the second" for c in apart]
    if not reasons:
        reasons = [f"{', '.join(key)} have common values, but no combination of them is in both"]
    more = f" and {len(reasons) - _MOST_SETTINGS} more" if len(reasons) > _MOST_SETTINGS else ""
    return f"{'; '.join(reasons[:_MOST_SETTINGS])}{more}; pair_by can name the settings that have to agree"


def _in_words(levels: pd.Series) -> str:
    """Return the different values of a setting in words, from low to high."""
    known = sorted({v for v in levels if v is not None}, key=lambda v: (isinstance(v, str), v))
    words = [v or "none" if isinstance(v, str) else f"{v:.{_DIGITS}g}" for v in known]
    words += ["missing"] if levels.isna().any() else []
    return ", ".join(words[:_MOST_VALUES]) + (f" and {len(words) - _MOST_VALUES} more" if words[_MOST_VALUES:] else "")
