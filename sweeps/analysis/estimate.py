"""What a statistic comes back as: an estimate with its interval."""

from typing import NamedTuple

import numpy as np

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
