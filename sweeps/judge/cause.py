"""Test 5, cause: where an intervention moved the metric, the outcome moved as the observational slope says."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from scipy import stats

from sweeps.analysis import doses
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.judge.finding import CANT_TELL, FAIL, PASS, Finding, untold
from sweeps.report.names import loss_name
from sweeps.report.numbers import change

NAME = "cause"
REMEDY = "olmo-jax run --config=do_rank:cpu --workdir=DIR, then judge with --interventions=DIR"
_LEVEL = 0.05
_EACH = _LEVEL / 2  # of the two ways to fail


class _OfOutcome(NamedTuple):
    verdict: str
    slope: Estimate
    text: str


def finding(column: str, table: pd.DataFrame | None, outcomes: Sequence[str]) -> Finding:
    """Return whether a metric could be what moves an outcome, from runs with interventions.

    For each outcome three things are needed to PASS: the slope of the outcome over the metric among interventions
    differs from 0 (5 %, corrected for the number of outcomes), it agrees with the slope among runs without intervention
    whose settings differ, and one slope fits all arms. If the slopes differ, or one doesn't fit all arms (2.5 % each),
    it's FAIL: the metric isn't what moves the outcome, or not alone. The metric passes with one outcome that does, and
    fails if all that can be told fail. The number is the interventional slope over the observational one.

    Args:
      table: of a sweep with interventions; None without.
    """
    if table is None:
        return untold(NAME, "the sweep has no interventions", REMEDY)
    if column not in table:
        return untold(NAME, "the sweep with interventions lacks the metric")
    outcomes = [o for o in outcomes if o in table and table[o].notna().any()]
    if not outcomes:
        return untold(NAME, "the sweep with interventions has none of the outcomes")
    results = {o: _of_outcome(column, table, o, _LEVEL / len(outcomes)) for o in outcomes}
    for verdict in (PASS, FAIL, CANT_TELL):
        chosen = {o: r for o, r in results.items() if r.verdict == verdict}
        if chosen:
            break
    best = min(chosen, key=lambda o: p if math.isfinite(p := chosen[o].slope.p_value) else 2.0)
    slope, text = chosen[best].slope, f"{loss_name(best)}: {chosen[best].text}"
    told = sum(r.verdict != CANT_TELL for r in results.values())
    if told > 1:
        text += f"; {sum(r.verdict == PASS for r in results.values())} of {told} outcomes pass"
    return Finding(NAME, verdict, slope.estimate, slope.low, slope.high, text)


def _of_outcome(column: str, table: pd.DataFrame, outcome: str, level: float) -> _OfOutcome:
    paired = doses.pairs(table, column, outcome)
    observed = doses.observational_slope(table, column, outcome)
    try:
        slope = doses.common_slope(paired, 1 - level)
    except NotEstimableError as error:
        return _OfOutcome(CANT_TELL, _ratio(None, observed), str(error))
    ratio = _ratio(slope, observed)
    words = f"by intervention it moves {change(slope.estimate)} per unit, among settings {change(observed.estimate)}"
    p_over = _overidentified(paired)
    if p_over < _EACH:
        return _OfOutcome(FAIL, ratio, f"{words}; one slope doesn't fit all interventions")
    if not math.isfinite(observed.p_value):
        return _OfOutcome(CANT_TELL, ratio, f"{words}; there are too few runs without intervention")
    if observed.p_value >= _LEVEL:
        return _OfOutcome(CANT_TELL, ratio, f"{words}, which doesn't differ from 0")
    if _differ(slope, observed, level):
        return _OfOutcome(FAIL, ratio, f"{words}, which differ")
    if slope.low <= 0 <= slope.high:
        return _OfOutcome(CANT_TELL, ratio, f"{words}; the former may be 0")
    return _OfOutcome(PASS, ratio, f"{words}, which agree")


def _overidentified(paired: doses.Pairs) -> float:
    """Return the p-value of one slope for all arms; 1 if there is nothing to test."""
    try:
        return doses.overidentification(paired).p_value
    except NotEstimableError:
        return 1.0


def _differ(slope: Estimate, observed: Estimate, level: float) -> bool:
    """Return whether two independent slopes differ, from their intervals' widths (`level`, and 5 %)."""
    error = (slope.high - slope.low) / (2 * stats.norm.isf(level / 2))
    observed_error = (observed.high - observed.low) / (2 * stats.norm.isf(0.025))
    return abs(slope.estimate - observed.estimate) > stats.norm.isf(_EACH / 2) * math.hypot(error, observed_error)


def _ratio(slope: Estimate | None, observed: Estimate) -> Estimate:
    """Return the interventional slope in units of the observational one."""
    unit = observed.estimate
    if slope is None or not math.isfinite(unit) or unit == 0:
        p_value = slope.p_value if slope is not None else math.nan
        return Estimate(math.nan, math.nan, math.nan, p_value, 0)
    low, high = sorted((slope.low / unit, slope.high / unit))
    return Estimate(slope.estimate / unit, low, high, slope.p_value, slope.n)
