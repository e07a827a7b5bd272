"""Test the claims of paper B (arXiv 2506.01034) on local dimension with a sweep: one verdict per experiment.

The experiments of a sweep are determined by its columns. The thresholds between verdicts are ours. Intervals are over
runs, conditional on the settings of the grid.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from sweeps.analysis.estimate import Estimate, nothing
from sweeps.analysis.leads import lag_of, middle
from sweeps.analysis.results import AnalysisResults
from sweeps.studies.paper_b.claim import (
    CLAIMS,
    SIGNALS,
    Claim,
    ahead,
    change_step,
    left_out_note,
    measured_on,
    number,
    rivals,
    too_seldom,
)
from sweeps.studies.paper_b.events import (
    DELAY,
    GROKKED,
    STOPPED,
    TRAIN_LOSS,
    grokking_of,
    least_step,
    probe_rows,
    stop_step,
    valley_step,
)
from sweeps.studies.paper_b.shift import course_ends, shifts, states_of
from sweeps.table.columns import HELD_OUT_LOSS, final_rows

NAME = "paper_b"
ANSWER_LOSS = "target/loss"
# Other domains count as nearly unchanged if they move by less than this share of the fine-tuned one's shift.
NEARLY = 0.5
# Two events count as simultaneous if they are closer than this share of training.
TOGETHER = 0.2
_CORPUS = "config.data.corpus"


def claims(table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None = None) -> list[Claim]:
    """Return the claims for which the sweep has an experiment, in the paper's order.

    Args:
      table: one row per (run, checkpoint); runs that diverged, or haven't finished, are left out.
      curves: metrics.jsonl of each run, by run id. courses: fine-tuning curves (sweeps.table.curves), of which those of
        the last checkpoint are used.
    """
    if table.empty:
        return []
    known = final_rows(table).rows.drop_duplicates("run_id").set_index("run_id")
    probed = {run: rows for run in known.index if run in curves and len(rows := probe_rows(curves[run]))}
    settings = known["configuration"].astype(str).to_dict() if "configuration" in known else {}
    results: list[Claim | None] = []
    if courses is None or courses.empty:
        courses = pd.DataFrame({"evaluation": [], "run_id": []})
    for name, course in courses[courses["run_id"].isin(known.index)].groupby("evaluation"):
        last = course[course["step"] == course.groupby("run_id")["step"].transform("max")]
        results.append(_overfitting(last, settings) if str(name).startswith("finetune_task_") else _shift(last))
    equations = {run for run in probed if _CORPUS in known and known.at[run, _CORPUS] == "arithmetic"}
    for experiment, on_equations in ((_exhaustion, False), (_grokking, True)):
        selected = {run: curve for run, curve in probed.items() if (run in equations) == on_equations}
        results.append(experiment(selected, settings) if selected else None)
    tested = [claim for claim in results if claim is not None]
    if len(tested) > 1:  # any sweep on text might test exhaustion; if untestable, it isn't reported beside other claims
        tested = [claim for claim in tested if (claim.name, claim.verdict) != ("exhaustion", "untestable")]
    return sorted(tested, key=lambda claim: list(CLAIMS).index(claim.name))


def claims_of(results: AnalysisResults) -> Sequence[Claim]:
    """Return the claims among the results of a sweep; none if it was analysed without this study."""
    return results.studies.get(NAME, ())


def _shift(course: pd.DataFrame) -> Claim | None:
    rows = shifts(course)
    if rows.empty:
        return None
    rows = rows[rows["column"].map(states_of) == states_of(rows["column"].iloc[0])]  # those of the deepest states
    tuned, others = rows[rows["own"]], rows[~rows["own"]]
    main = (tuned if len(tuned) else others).iloc[0]
    estimate = Estimate(main["shift"], main["low"], main["high"], math.nan, int(main["n"]))

    def claim(verdict: str, sentence: str) -> Claim:
        no_signals = pd.DataFrame(columns=SIGNALS)
        name = str(course["evaluation"].iloc[0])
        return Claim("shift", name, verdict, sentence, estimate, rows, no_signals, str(main["column"]))

    if tuned.empty or others.empty:
        lacking = "the fine-tuned domain" if tuned.empty else "another domain"
        return claim("untestable", f"Local dimension wasn't measured on {lacking}.")
    elsewhere = ", ".join(f"by {number(r.shift, r.low, r.high)} on {r.text}" for r in others.itertuples())
    sentence = f"Local dimension on {main['text']}, the fine-tuning text, changes by {number(*estimate[:3])} standard "
    sentence += f"deviations over points, {elsewhere}; {int(main['n'])} models."
    if diverged := course_ends(course)[2]:
        sentence += f" {diverged} fine-tunings that diverged are left out."
    if math.isnan(estimate.low) or others["low"].isna().any():
        return claim("unclear", sentence)
    bound = NEARLY * abs(estimate.estimate)
    unchanged = bool((others["low"] > -bound).all() and (others["high"] < bound).all())
    moved = bool(((others["low"] > bound) | (others["high"] < -bound)).any())
    if estimate.low > 0 or (estimate.high < 0 and moved):
        return claim("disagrees", sentence)
    return claim("agrees" if estimate.high < 0 and unchanged else "unclear", sentence)


def _exhaustion(curves: Mapping[str, pd.DataFrame], settings: Mapping[str, str]) -> Claim | None:
    if (measured := measured_on(curves, "validation")) is None:
        return None
    column, measured_curves = measured
    if not measured_curves:
        return too_seldom("exhaustion", "", column, curves)
    left_out, curves = len(curves) - len(measured_curves), measured_curves
    rows = pd.DataFrame(
        {"run_id": run, "group": run, "outcome_step": stop_step(curve, HELD_OUT_LOSS)} for run, curve in curves.items()
    )

    def changes(signal: str) -> pd.DataFrame:
        return rows.assign(metric_step=[change_step(curve, signal, "level") for curve in curves.values()])

    lag = lag_of(changes(column), settings)
    steps = float(np.median([curve["step"].iloc[-1] for curve in curves.values()]))
    stopped = lag.changes[lag.changes["outcome_step"].notna()]
    level = int(stopped["metric_step"].notna().sum())

    def claim(verdict: str, sentence: str) -> Claim:
        signals = rivals(changes, curves, column, settings)
        sentence = f"{sentence}.{left_out_note(left_out)}"
        return Claim("exhaustion", "", verdict, sentence, lag.lead, lag.changes, signals, column)

    if stopped.empty:
        return claim("untestable", f"Validation loss still improves at the end of all {len(rows)} runs")
    sentence = f"Validation loss stops improving (it comes within {STOPPED:.0%} of its whole fall to its minimum) in "
    sentence += f"{len(stopped)} of {len(rows)} runs of {steps:g} steps; local dimension levels off in {level} of these"
    if level:
        sentence += f", {ahead(lag.lead, 'the loss stops improving')}"
    low, high = _share(level, len(stopped))
    bound = TOGETHER * steps
    if high < 0.5 or lag.lead.low > bound or lag.lead.high < -bound:
        return claim("disagrees", sentence)
    together = -bound < lag.lead.low and lag.lead.high < bound
    return claim("agrees" if together and low > 0.5 else "unclear", sentence)


def _overfitting(course: pd.DataFrame, run_settings: Mapping[str, str]) -> Claim | None:
    name = str(course["evaluation"].iloc[0])
    curves = {
        f"{run}, seed {seed:g}": rows.rename(columns={"step": "checkpoint", "at": "step"})
        for (run, seed), rows in course.groupby(["run_id", "seed"])
    }
    if (measured := measured_on(curves, "validation")) is None:
        return None
    column, measured_curves = measured
    if not measured_curves:
        return too_seldom("overfitting", name, column, curves)
    left_out, curves = len(curves) - len(measured_curves), measured_curves
    settings = {key: run_settings[str(c["run_id"].iloc[0])] for key, c in curves.items()} if run_settings else {}
    rows = pd.DataFrame(
        {"run_id": key, "group": curve["run_id"].iloc[0], "outcome_step": least_step(curve, ANSWER_LOSS)}
        for key, curve in curves.items()
    )

    def changes(signal: str) -> pd.DataFrame:
        """Find the valley of a signal, or for the training loss, which has none, the step at which it levels off."""
        if signal == TRAIN_LOSS:
            return rows.assign(metric_step=[change_step(curve, signal, "level") for curve in curves.values()])
        return rows.assign(metric_step=[valley_step(curve, signal) for curve in curves.values()])

    lag = lag_of(changes(column), settings)
    overfit = lag.changes[lag.changes["outcome_step"].notna()]
    by_run = overfit["metric_step"].notna().groupby(overfit["group"]).mean()
    turned = int((by_run > 0.5).sum())
    estimate = nothing(0)
    if len(by_run):
        estimate = Estimate(turned / len(by_run), *_share(turned, len(by_run)), math.nan, len(by_run))

    def claim(verdict: str, sentence: str) -> Claim:
        signals = rivals(changes, curves, column, settings)
        sentence = f"{sentence}.{left_out_note(left_out)}"
        return Claim("overfitting", name, verdict, sentence, estimate, lag.changes, signals, column)

    runs = rows["group"].nunique()
    if overfit.empty:
        return claim("untestable", f"Validation loss begins to rise in none of {runs} runs: nothing overfits")
    sentence = f"Validation loss begins to rise in {len(by_run)} of {runs} runs; in {turned} of these local dimension "
    sentence += f"falls and then rises, a share of {number(*estimate[:3])}"
    sentence += f"; it turns {ahead(lag.lead, 'the minimum of the loss')}" if lag.lead.n else ""
    bound = TOGETHER * float(course["at"].max())
    together = -bound < lag.lead.low and lag.lead.high < bound
    if estimate.high < 0.5 or lag.lead.low > bound or lag.lead.high < -bound:
        return claim("disagrees", sentence)
    return claim("agrees" if estimate.low > 0.5 and together else "unclear", sentence)


def _grokking(curves: Mapping[str, pd.DataFrame], settings: Mapping[str, str]) -> Claim | None:
    """Test the claim on grokking.

    It agrees if local dimension falls, its jump comes near that of validation accuracy, and one of two holds: it falls
    by more than in runs that memorise and don't grok, or the jumps of shuffled runs are farther apart.
    """
    if (measured := measured_on(curves, "train")) is None:
        return None
    column, measured_curves = measured
    if not measured_curves:
        return too_seldom("grokking", "", column, curves)
    left_out, curves = len(curves) - len(measured_curves), measured_curves
    rows = pd.DataFrame(
        {"run_id": run, "group": run} | grokking_of(curve, column)._asdict() for run, curve in curves.items()
    )
    groks = rows[rows["groks"]]

    def changes(signal: str) -> pd.DataFrame:
        """Find the jump after memorising, as before it the states change for another reason."""
        steps = [
            change_step(curves[row.run_id][curves[row.run_id]["step"] >= row.memorised_step], signal, "jump")
            for row in groks.itertuples()
        ]
        return groks.assign(metric_step=np.asarray(steps, float))

    lag = lag_of(changes(column), settings)
    moves, stays = groks["after"] - groks["before"], rows["stays"].dropna()
    contrast = float(stats.mannwhitneyu(moves.dropna(), stays).pvalue) if len(groks) and len(stays) else math.nan
    estimate = Estimate(*middle(moves.to_numpy(float)), contrast, len(groks))
    sentence = f"{len(groks)} of {len(rows)} runs grok: validation accuracy reaches {GROKKED:.0%} at least {DELAY} "
    sentence += "steps after the training equations are memorised"
    if len(groks):
        sentence += f". From memorising to generalising, local dimension changes by {number(*estimate[:3])}"
        p_text = f", Mann-Whitney p = {contrast:.2g}"
        sentence += f" (by {stays.mean():+.2g} in {len(stays)} that only memorise{p_text})" if len(stays) else ""
    if lag.lead.n:
        jumped = int(lag.changes[["metric_step", "outcome_step"]].notna().all(axis=1).sum())
        sentence += f"; in the {jumped} runs where both jump, local dimension does so "
        sentence += ahead(lag.lead, "validation accuracy")
    if lag.lead.p_value <= 1:
        sentence += f", p = {lag.lead.p_value:.2g} against shuffled runs"
    bound = TOGETHER * float(np.median([curve["step"].iloc[-1] for curve in curves.values()]))
    together = -bound < lag.lead.low and lag.lead.high < bound
    falls_more = contrast < 0.05 and moves.median() < stays.median()
    verdict = "untestable" if groks.empty else "unclear"
    if estimate.low > 0:
        verdict = "disagrees"
    elif estimate.high < 0 and together and (lag.lead.p_value < 0.05 or falls_more):
        verdict = "agrees"
    rows = rows.merge(lag.changes[["run_id", "metric_step"]], how="left", on="run_id")
    signals = rivals(changes, curves, column, settings)
    return Claim("grokking", "", verdict, f"{sentence}.{left_out_note(left_out)}", estimate, rows, signals, column)


def _share(count: int, n: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a proportion."""
    low, high = stats.binomtest(count, n).proportion_ci(method="exact")
    return float(low), float(high)
