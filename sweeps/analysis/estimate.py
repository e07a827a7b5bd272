"""The result type of statistics: an estimate with its interval."""

from typing import NamedTuple

import numpy as np

# With fewer usable rows no statistic is computed.
MIN_ROWS = 4


class Estimate(NamedTuple):
    """A statistic and its 95 % interval. A value that can't be computed is NaN; `n` counts the rows used."""

    estimate: float
    low: float
    high: float
    p_value: float
    n: int


def nothing(n: int) -> Estimate:
    """Return the estimate of a statistic that can't be computed from n rows: NaN throughout."""
    return Estimate(np.nan, np.nan, np.nan, np.nan, n)
