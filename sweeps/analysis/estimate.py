"""An estimate with its interval, and what takes its place where the rows don't determine it."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np

# With fewer usable rows no statistic is computed.
MIN_ROWS = 4

M = TypeVar("M")
R = TypeVar("R")


class Estimate(NamedTuple):
    """A statistic and its 95 % interval. A value that can't be computed is NaN; `n` counts the rows used."""

    estimate: float
    low: float
    high: float
    p_value: float
    n: int


class Noted(NamedTuple):
    """An estimate, and why a value of it is missing; "" where none is."""

    estimate: Estimate
    note: str


class NotEstimableError(Exception):
    """A statistic that the rows don't determine. The message says why, and becomes the note of a missing estimate."""


def nothing(n: int) -> Estimate:
    """Return the estimate of a statistic that can't be computed from n rows: NaN throughout."""
    return Estimate(np.nan, np.nan, np.nan, np.nan, n)


def estimated(missing: Callable[[str], M], statistic: Callable[..., R], *args: Any) -> M | R:
    """Return statistic(*args), or missing(reason) where it raises NotEstimableError."""
    try:
        return statistic(*args)
    except NotEstimableError as error:
        return missing(str(error))


def join_notes(*notes: str) -> str:
    """Join the notes that say something."""
    return "; ".join(filter(None, notes))
