"""What interventions say about a metric as the cause of an outcome: numbers for the study's figures, table, sentences.

They are computed for any sweep with runs that have an intervention (config.train.intervention).
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from olmo_jax.config.intervention import KINDS
from sweeps.analysis import doses
from sweeps.analysis.doses import Overidentification
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.report.names import any_name, loss_name
from sweeps.report.numbers import change, format_p
from sweeps.table.columns import final_rows, performance_columns

PLACEBO = "mean_row"
METRICS = ("unembedding/effective_rank_percent", "unembedding_gauge_fixed/effective_rank_percent")


class Effect(NamedTuple):
    """How the arms move a metric and an outcome.

    Attributes:
      doses, arms: see doses.dose_response and doses.arm_slopes. over: the test of one slope for all arms, or None.
      over_note: why there is no test. observed: the slope among runs without intervention.
    """

    metric: str
    outcome: str
    doses: pd.DataFrame
    arms: pd.DataFrame
    over: Overidentification | None
    over_note: str
    observed: Estimate


def effects(
    table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None
) -> tuple[Effect, ...]:
    """Return the effects on each outcome, by each metric of METRICS; none for a sweep without interventions."""
    rows = final_rows(table).rows
    if rows.empty or not intervened(rows):
        return ()
    return tuple(
        effect(table, metric, outcome)
        for outcome in performance_columns(table)
        for metric in METRICS
        if metric in table.columns
    )


def intervened(rows: pd.DataFrame) -> bool:
    """Return whether some run has an intervention."""
    return bool((doses.arms_of(rows)["arm"] != doses.CONTROL).any())


def has_interventions(table: pd.DataFrame) -> bool:
    """Return whether a table has a run with an intervention; older tables lack the columns."""
    columns = [c for kind in KINDS if (c := f"config.intervention.{kind}") in table.columns]
    return bool(columns) and intervened(table[columns].drop_duplicates())


def effect(table: pd.DataFrame, metric: str, outcome: str) -> Effect:
    paired = doses.pairs(table, metric, outcome)
    over, note = None, ""
    try:
        over = doses.overidentification(paired)
    except NotEstimableError as error:
        note = str(error)
    observed = doses.observational_slope(table, metric, outcome)
    return Effect(metric, outcome, doses.dose_response(paired), doses.arm_slopes(paired), over, note, observed)


def sentences(found: tuple[Effect, ...]) -> list[str]:
    """Return what the arms did to the first outcome, in words: the placebo, and the arm that moves each metric most."""
    lines = []
    for one in found:
        if one.outcome != found[0].outcome or one.arms.empty:
            continue
        metric, outcome = any_name(one.metric, []), loss_name(one.outcome)
        placebo = one.arms[one.arms["arm"] == PLACEBO]
        others = one.arms[one.arms["arm"] != PLACEBO].dropna(subset=["metric_change"])
        line = ""
        if len(others):
            most = others.loc[others["metric_change"].abs().idxmax()]
            line = (
                f"Of the arms, {most['arm']} moved {metric} most, by {change(most['metric_change'])}, and {outcome} by "
                f"{change(most['outcome_change'])}"
            )
        if len(placebo):
            row = placebo.iloc[0]
            line += "; the" if line else "The"
            line += f" placebo moved {metric} by {change(row['metric_change'])} and {outcome} by "
            line += change(row["outcome_change"])
        lines.append(f"{line}. {verdict(one)}")
    return lines


def verdict(one: Effect) -> str:
    """Return in one sentence whether the arms are consistent with the metric as the only cause of the outcome."""
    if one.over is None:
        return f"Whether one slope fits all arms can't be tested: {one.over_note}."
    q = f"Q = {one.over.q:.3g} with {one.over.dof} degrees of freedom, p {_p(one.over.p_value)}"
    if one.over.p_value < 0.05:
        return f"One slope doesn't fit all {one.over.arms} arms ({q}): this metric isn't all that moves the outcome."
    return f"One slope of {change(one.over.slope)} fits all {one.over.arms} arms within the noise ({q})."


def _p(value: float) -> str:
    text = format_p(value)
    return text if text.startswith("<") else f"= {text}"
