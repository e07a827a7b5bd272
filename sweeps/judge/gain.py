"""Test 4, gain: the metric improves a prediction of performance beyond settings, size, tokens and training loss."""

import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.r2 import Increment, baseline_columns, increments
from sweeps.analysis.results import with_size
from sweeps.judge.finding import CANT_TELL, FAIL, PASS, SUITE, Finding, untold
from sweeps.report.names import loss_name
from sweeps.report.numbers import signed
from sweeps.table.columns import HELD_OUT_LOSS, PRIMARY_PAIR, controls_of, missing_as_level, performance_columns

NAME = "gain"
LIMIT = 0.01  # of R2: a gain that is surely smaller is none
_ENOUGH = 30  # configurations; below, a report is called a demonstration
_TRAINING_LOSSES = ("train/loss", PRIMARY_PAIR[1], HELD_OUT_LOSS)
_SQUARED = " squared"


class Gains(NamedTuple):
    """What metrics add to the prediction of each outcome.

    Attributes:
      by_pair: increments by (metric, outcome). outcomes: all columns of performance that were predicted.
      configurations: how many there are.
    """

    by_pair: Mapping[tuple[str, str], Increment]
    outcomes: tuple[str, ...]
    configurations: int


def outcomes_of(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns of performance, without the losses that count as training loss, and without constant ones."""
    return tuple(c for c in performance_columns(rows) if c not in _TRAINING_LOSSES and rows[c].nunique() > 1)


def gains(columns: Sequence[str], rows: pd.DataFrame, outcomes: Sequence[str]) -> Gains:
    """Return what each metric adds to linear predictions of outcomes, out of fold, with folds of configurations.

    The baseline has the settings that vary, size, tokens, compute, and the losses on the training batch and on held-out
    text of the training domains, each also squared: a metric that follows training along a curve adds nothing to it.

    Args:
      rows: the last row of each run.
    """
    settings = with_size(rows, controls_of(rows))
    rows = missing_as_level(rows, settings)
    baseline = [*settings, *(c for c in baseline_columns(rows) if rows[c].notna().any())]
    for loss in (c for c in _TRAINING_LOSSES if c in rows and rows[c].notna().any()):
        value_N = rows[loss].to_numpy(float)
        # Negative, as a positive column that spans a decade would enter in logs.
        rows = rows.assign(**{f"{loss}{_SQUARED}": -np.square(value_N - np.nanmean(value_N))})
        baseline += [loss, f"{loss}{_SQUARED}"]
    by_pair = increments(rows, columns, outcomes, baseline, "configuration")
    return Gains(by_pair, tuple(outcomes), rows["configuration"].nunique())


def finding(column: str, found: Gains) -> Finding:
    """Return whether a metric adds to the prediction of some outcome.

    PASS if the interval of a gain of R2 is above 0 and the metric's coefficient differs from 0 at 5 %, corrected for
    the number of outcomes (Bonferroni). FAIL if every gain is surely below LIMIT. The number is the gain with the
    highest lower bound among those that pass, and else with the highest upper bound. Outcomes are left out that aren't
    predicted better than by their mean, even with the metric: less of an error beyond that isn't a gain.
    """
    if not found.outcomes:
        return untold(NAME, "the table has no outcome besides the training loss", SUITE)
    of_metric = {outcome: found.by_pair[column, outcome] for outcome in found.outcomes if outcome != column}
    bounded = {o: i for o, i in of_metric.items() if np.isfinite(i.estimate.low)}
    known = {o: i for o, i in bounded.items() if i.baseline_r2 + i.estimate.estimate > 0}
    if not known:
        why = "no outcome is predicted better than by its mean"
        if not bounded:
            why = next((i.note for i in of_metric.values() if i.note), "no outcome has enough finite values")
        return untold(NAME, why, SUITE if found.configurations < _ENOUGH else "")
    passed = [o for o, i in known.items() if i.estimate.low > 0 and i.estimate.p_value <= 0.05 / len(found.outcomes)]
    key = operator.attrgetter("low" if passed else "high")
    best = max(passed or known, key=lambda o: key(known[o].estimate))
    estimate = known[best].estimate
    verdict = PASS if passed else FAIL if all(i.estimate.high < LIMIT for i in known.values()) else CANT_TELL
    text = (
        f"it adds {signed(estimate.estimate, 3)} of R2 to the prediction of {loss_name(best)} beyond settings, size, "
        f"tokens and training loss; it adds to {len(passed)} of {len(known)} outcomes, of {estimate.n} runs"
    )
    if verdict == CANT_TELL and (note := known[best].note):
        text += f"; {note}"
    return Finding(NAME, verdict, estimate.estimate, estimate.low, estimate.high, text)
