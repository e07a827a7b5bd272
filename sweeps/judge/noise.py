"""Test 3, seed noise: the metric differs between settings by more than between seeds."""

import pandas as pd

from sweeps.analysis.estimate import NotEstimableError
from sweeps.analysis.seed_noise import intraclass
from sweeps.judge.finding import SUITE, Finding, by_limit, untold

NAME = "noise"


def finding(column: str, rows: pd.DataFrame) -> Finding:
    """Return whether more than half of a metric's variance over runs is between configurations.

    The number is the intraclass correlation, the share of variance between configurations, with its exact interval.
    """
    try:
        share = intraclass(rows, column)
    except NotEstimableError as error:
        runs = rows.groupby("configuration").size()
        return untold(NAME, str(error), "" if len(runs) > 1 and runs.max() > 1 else SUITE)
    text = f"{share.estimate:.0%} of its variance is between configurations, the rest between seeds"
    return Finding(NAME, by_limit(share.low, share.high, 0.5), share.estimate, share.low, share.high, text)
