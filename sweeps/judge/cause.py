"""Test 5, cause: where an intervention moved the metric, the outcome moved as the observational slope says."""

import math
from typing import NamedTuple

import pandas as pd
from scipy import stats

from sweeps.analysis import doses
from sweeps.analysis.estimate import Estimate, NotEstimableError, nothing
from sweeps.judge.finding import CANT_TELL, FAIL, PASS, Finding, untold
from sweeps.report.names import loss_name
from sweeps.report.numbers import change
from sweeps.table.columns import performance_columns

NAME = "cause"
REMEDY = "olmo-jax run --config=do_rank:cpu --workdir=DIR, then judge with --interventions=DIR"
AGREE = (0.5, 2.0)  # of the interventional slope over the observational one
_LEVEL = 0.05


class _OfOutcome(NamedTuple):
    """`ratio`: the interventional slope over the observational one; its p-value is that of the former."""

    verdict: str
    ratio: Estimate
    text: str


def finding(column: str, table: pd.DataFrame | None) -> Finding:
    """Return whether a metric could be what moves an outcome, from runs with interventions.

    For each outcome, the slope over the metric among interventions is compared with that among runs without, whose
    settings differ. PASS if the ratio of the slopes is surely within AGREE, and one slope fits all arms. FAIL if the
    ratio is surely outside, or one slope doesn't fit (5 %): the metric isn't what moves the outcome, or not alone. The
    interval of the ratio is Fieller's, from both slopes' errors, at 5 % over the number of outcomes. The metric passes
    with one outcome that does, and fails if all that can be told fail. The number is the ratio.

    Args:
      table: of a sweep with interventions; None without.
    """
    if table is None:
        return untold(NAME, "the sweep has no interventions", REMEDY)
    if column not in table:
        return untold(NAME, "the sweep with interventions lacks the metric")
    outcomes = [outcome for outcome in performance_columns(table) if outcome != column]
    if not outcomes:
        return untold(NAME, "the sweep with interventions has no outcome")
    results = {o: _of_outcome(column, table, o, _LEVEL / len(outcomes)) for o in outcomes}
    verdicts = [result.verdict for result in results.values()]
    verdict = next(v for v in (PASS, FAIL, CANT_TELL) if v in verdicts)
    chosen = {outcome: result for outcome, result in results.items() if result.verdict == verdict}
    best = min(chosen, key=lambda o: p if math.isfinite(p := chosen[o].ratio.p_value) else 2.0)
    ratio, text = chosen[best].ratio, f"{loss_name(best)}: {chosen[best].text}"
    told = len(verdicts) - verdicts.count(CANT_TELL)
    if told > 1:
        text += f"; {verdicts.count(PASS)} of {told} outcomes pass"
    return Finding(NAME, verdict, ratio.estimate, ratio.low, ratio.high, text)


def _of_outcome(column: str, table: pd.DataFrame, outcome: str, level: float) -> _OfOutcome:
    paired = doses.pairs(table, column, outcome)
    observed = doses.observational_slope(table, column, outcome)
    try:
        slope = doses.common_slope(paired)
    except NotEstimableError as error:
        return _OfOutcome(CANT_TELL, nothing(0), str(error))
    ratio = _ratio(slope, observed, level)
    words = f"by intervention it moves {change(slope.estimate)} per unit, among settings {change(observed.estimate)}"
    try:
        over = doses.overidentification(paired)
    except NotEstimableError as error:
        return _OfOutcome(CANT_TELL, ratio, f"{words}; whether one slope fits all arms can't be tested: {error}")
    if over.p_value < _LEVEL:
        return _OfOutcome(FAIL, ratio, f"{words}; one slope doesn't fit all interventions")
    if not math.isfinite(observed.p_value):
        return _OfOutcome(CANT_TELL, ratio, f"{words}; there are too few runs without intervention")
    if not math.isfinite(ratio.low):
        return _OfOutcome(CANT_TELL, ratio, f"{words}, which doesn't differ from 0")
    if ratio.high < AGREE[0] or ratio.low > AGREE[1]:
        return _OfOutcome(FAIL, ratio, f"{words}, which differ")
    if AGREE[0] <= ratio.low and ratio.high <= AGREE[1]:
        return _OfOutcome(PASS, ratio, f"{words}, which agree")
    return _OfOutcome(CANT_TELL, ratio, f"{words}; whether they agree is uncertain")


def _ratio(slope: Estimate, observed: Estimate, level: float) -> Estimate:
    """Return the ratio of two independent slopes with Fieller's interval; NaN where the second may be 0.

    Errors are taken from the 95 % intervals as if these were normal, which makes them slightly too large.
    """
    unit, quantile = observed.estimate, stats.norm.isf(level / 2)
    if not math.isfinite(unit) or unit == 0:
        return Estimate(math.nan, math.nan, math.nan, slope.p_value, slope.n)
    ratio = slope.estimate / unit
    var, var_unit = (((s.high - s.low) / (2 * stats.norm.isf(0.025))) ** 2 for s in (slope, observed))
    g = quantile**2 * var_unit / unit**2
    if not g < 1:
        return Estimate(ratio, math.nan, math.nan, slope.p_value, slope.n)
    half = quantile / abs(unit) * math.sqrt(var * (1 - g) + ratio**2 * var_unit)
    return Estimate(ratio, (ratio - half) / (1 - g), (ratio + half) / (1 - g), slope.p_value, slope.n)
