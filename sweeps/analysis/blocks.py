"""Compute a statistic for each pair of a metric and a target; pairs with values in the same rows share work.

Letters: N rows, C metrics, E targets.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from sweeps.analysis.encode import usable
from sweeps.analysis.estimate import MIN_ROWS, Estimate, NotEstimableError, estimated, nothing
from sweeps.table.columns import numbers, require_column

Pair = tuple[str, str]
R = TypeVar("R")
PAIR = ("metric", "target")


class Block(NamedTuple):
    """Metrics and targets that all have values in the N rows."""

    metrics_NC: np.ndarray
    targets_NE: np.ndarray
    rows: pd.DataFrame


def by_missing(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Group columns that have values in the same rows: (names, values [N, C], mask of these rows [N])."""
    classes: dict[bytes, list[str]] = {}
    values = {name: numbers(table, name) for name in names}
    for name in values:
        classes.setdefault(np.isfinite(values[name]).tobytes(), []).append(name)
    return [
        (same, np.stack([values[n] for n in same], axis=1), np.isfinite(values[same[0]])) for same in classes.values()
    ]


def of_pairs(
    table: pd.DataFrame,
    metrics: Sequence[str],
    targets: Sequence[str],
    used: Sequence[str],
    fit: Callable[[Block], Callable[[int, int], R]],
    missing: Callable[[Estimate, str], R],
) -> dict[Pair, R]:
    """Return a statistic of every (metric, target), over the rows that have values of both and of the columns `used`.

    Args:
      fit: function that returns a function of the indexes of a metric and a target of a block. Either may raise
        NotEstimableError.
      missing: function that returns the result of a pair without an estimate, from an empty Estimate and the reason.

    Raises UnknownColumnError for a column that the table lacks.
    """
    for name in (*metrics, *targets, *used):
        require_column(table, name)
    used_N = usable(table, used)
    results: dict[Pair, R] = {}
    for metric_names, metrics_NC, metric_known_N in by_missing(table, metrics):
        for target_names, targets_NE, target_known_N in by_missing(table, targets):
            mask_N = metric_known_N & target_known_N & used_N
            block = Block(metrics_NC[mask_N], targets_NE[mask_N], table[mask_N])
            places = {(m, t): (i, j) for i, m in enumerate(metric_names) for j, t in enumerate(target_names)}
            results |= _of_block(block, places, fit, missing)
    return results


def _of_block(
    block: Block,
    places: dict[Pair, tuple[int, int]],
    fit: Callable[[Block], Callable[[int, int], R]],
    missing: Callable[[Estimate, str], R],
) -> dict[Pair, R]:
    def none(why: str) -> R:
        return missing(nothing(len(block.rows)), why)

    def each() -> dict[Pair, R]:
        require_rows(len(block.rows))
        statistic = fit(block)
        return {pair: estimated(none, statistic, *place) for pair, place in places.items()}

    return estimated(lambda why: dict.fromkeys(places, none(why)), each)


def require_rows(n: int) -> None:
    """Raise NotEstimableError for too few rows."""
    if n < MIN_ROWS:
        raise NotEstimableError(f"fewer than {MIN_ROWS} usable rows")


def require_variation(constant_2: np.ndarray) -> None:
    """Raise NotEstimableError if the metric or the target is constant."""
    for name, constant in zip(PAIR, constant_2, strict=True):
        if constant:
            raise NotEstimableError(f"the {name} is the same in all rows")


def require_freedom(dof: float, what_takes: str) -> None:
    """Raise NotEstimableError if no degree of freedom is left; what_takes begins the message: "controls take"."""
    if dof <= 0:
        raise NotEstimableError(f"{what_takes} up every degree of freedom")


def require_unexplained(left_2: np.ndarray, what_explains: str) -> None:
    """Raise NotEstimableError if nothing of the metric or of the target is left given the columns held fixed."""
    for name, left in zip(PAIR, left_2, strict=True):
        if not left:
            raise NotEstimableError(f"{what_explains} the {name} completely")
