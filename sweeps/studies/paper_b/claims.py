"""What a sweep says of the claims of paper B (arXiv 2506.01034) on local dimension: one verdict an experiment.

Which experiments a sweep holds is told from its columns. Where the lines between verdicts are drawn is ours. Intervals
are over runs, the settings of the grid taken as they are.
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
# Other domains are left nearly unchanged by less than this share of what the fine-tuned one moves.
NEARLY = 0.5
# Two events come together if they are closer than this share of training.
TOGETHER = 0.2
_CORPUS = "config.data.corpus"


def claims(table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None = None) -> list[Claim]:
    """The claims that the sweep has an experiment on, in the paper's order.

    Args:
      table: one row a (run, checkpoint); runs that diverged, or haven't reached their end, are left out.
      curves: metrics.jsonl of each run, by run id. courses: see sweeps.courses; the last checkpoint's count.
    """
    if table.empty:
        return []
    known = final_rows(table).rows.drop_duplicates("run_id").set_index("run_id")
    probed = {run: rows for run in known.index if run in curves and len(rows := probe_rows(curves[run]))}
    settings = known["configuration"].astype(str).to_dict() if "configuration" in known else {}
    found = []
    if courses is None or courses.empty:
        courses = pd.DataFrame({"evaluation": [], "run_id": []})
    for name, course in courses[courses["run_id"].isin(known.index)].groupby("evaluation"):
        last = course[course["step"] == course.groupby("run_id")["step"].transform("max")]
        found.append(_overfitting(last, settings) if str(name).startswith("finetune_task_") else _shift(last))
    equations = {run for run in probed if _CORPUS in known and known.at[run, _CORPUS] == "arithmetic"}
    for experiment, takes in ((_exhaustion, False), (_grokking, True)):
        of = {run: curve for run, curve in probed.items() if (run in equations) == takes}
        found.append(experiment(of, settings) if of else None)
    there = [claim for claim in found if claim is not None]
    if len(there) > 1:  # any training on text could be exhausted; one that wasn't is no experiment beside another
        there = [claim for claim in there if (claim.name, claim.verdict) != ("exhaustion", "untestable")]
    return sorted(there, key=lambda claim: list(CLAIMS).index(claim.name))


def claims_of(results: AnalysisResults) -> Sequence[Claim]:
    """Return the claims among the results of a sweep; none of one that was analysed without this study."""
    return results.studies.get(NAME, ())


def _shift(course: pd.DataFrame) -> Claim | None:
    rows = shifts(course)
    if rows.empty:
        return None
    rows = rows[rows["column"].map(states_of) == states_of(rows["column"].iloc[0])]  # those of the deepest states
    own, others = rows[rows["own"]], rows[~rows["own"]]
    of = (own if len(own) else others).iloc[0]
    estimate = Estimate(of["shift"], of["low"], of["high"], math.nan, int(of["n"]))

    def told(verdict: str, sentence: str) -> Claim:
        none = pd.DataFrame(columns=SIGNALS)
        name = str(course["evaluation"].iloc[0])
        return Claim("shift", name, verdict, sentence, estimate, rows, none, str(of["column"]))

    if own.empty or others.empty:
        lacking = "the fine-tuned domain" if own.empty else "another domain"
        return told("untestable", f"Local dimension wasn't measured on {lacking}.")
    elsewhere = ", ".join(f"on {r.text} by {number(r.shift, r.low, r.high)}" for r in others.itertuples())
    sentence = f"Local dimension on {of['text']}, which is fine-tuned on, moves by {number(*estimate[:3])} standard "
    sentence += f"deviations over points, {elsewhere}; {int(of['n'])} models."
    if diverged := course_ends(course)[2]:
        sentence += f" {diverged} fine-tunings that diverged are left out."
    if math.isnan(estimate.low) or others["low"].isna().any():
        return told("unclear", sentence)
    bound = NEARLY * abs(estimate.estimate)
    still = bool((others["low"] > -bound).all() and (others["high"] < bound).all())
    moved = bool(((others["low"] > bound) | (others["high"] < -bound)).any())
    if estimate.low > 0 or (estimate.high < 0 and moved):
        return told("disagrees", sentence)
    return told("agrees" if estimate.high < 0 and still else "unclear", sentence)


def _exhaustion(curves: Mapping[str, pd.DataFrame], settings: Mapping[str, str]) -> Claim | None:
    if (measured := measured_on(curves, "validation")) is None:
        return None
    column, often = measured
    if not often:
        return too_seldom("exhaustion", "", column, curves)
    left_out, curves = len(curves) - len(often), often
    rows = pd.DataFrame(
        {"run_id": run, "group": run, "outcome_step": stop_step(curve, HELD_OUT_LOSS)} for run, curve in curves.items()
    )

    def changes(signal: str) -> pd.DataFrame:
        return rows.assign(metric_step=[change_step(curve, signal, "level") for curve in curves.values()])

    found = lag_of(changes(column), settings)
    steps = float(np.median([curve["step"].iloc[-1] for curve in curves.values()]))
    stopped = found.changes[found.changes["outcome_step"].notna()]
    level = int(stopped["metric_step"].notna().sum())

    def told(verdict: str, sentence: str) -> Claim:
        signals = rivals(changes, curves, column, settings)
        sentence = f"{sentence}.{left_out_note(left_out)}"
        return Claim("exhaustion", "", verdict, sentence, found.lead, found.changes, signals, column)

    if stopped.empty:
        return told("untestable", f"Validation still improves at the end of all {len(rows)} runs")
    sentence = f"Validation stops improving (within {STOPPED:.0%} of its fall of its least) in {len(stopped)} of "
    sentence += f"{len(rows)} runs of {steps:g} steps; local dimension levels off in {level} of these"
    if level:
        sentence += f", {ahead(found.lead)}"
    low, high = _share(level, len(stopped))
    bound = TOGETHER * steps
    if high < 0.5 or found.lead.low > bound or found.lead.high < -bound:
        return told("disagrees", sentence)
    together = -bound < found.lead.low and found.lead.high < bound
    return told("agrees" if together and low > 0.5 else "unclear", sentence)


def _overfitting(course: pd.DataFrame, of_run: Mapping[str, str]) -> Claim | None:
    name = str(course["evaluation"].iloc[0])
    curves = {
        f"{run}, seed {seed:g}": of.rename(columns={"step": "checkpoint", "at": "step"})
        for (run, seed), of in course.groupby(["run_id", "seed"])
    }
    if (measured := measured_on(curves, "validation")) is None:
        return None
    column, often = measured
    if not often:
        return too_seldom("overfitting", name, column, curves)
    left_out, curves = len(curves) - len(often), often
    settings = {course: of_run[str(of["run_id"].iloc[0])] for course, of in curves.items()} if of_run else {}
    rows = pd.DataFrame(
        {"run_id": name, "group": of["run_id"].iloc[0], "outcome_step": least_step(of, ANSWER_LOSS)}
        for name, of in curves.items()
    )

    def changes(signal: str) -> pd.DataFrame:
        """Valleys; of the training loss, which has none, the step from which it is level."""
        if signal == TRAIN_LOSS:
            return rows.assign(metric_step=[change_step(of, signal, "level") for of in curves.values()])
        return rows.assign(metric_step=[valley_step(of, signal) for of in curves.values()])

    found = lag_of(changes(column), settings)
    overfit = found.changes[found.changes["outcome_step"].notna()]
    by_run = overfit["metric_step"].notna().groupby(overfit["group"]).mean()
    turned = int((by_run > 0.5).sum())
    estimate = nothing(0)
    if len(by_run):
        estimate = Estimate(turned / len(by_run), *_share(turned, len(by_run)), math.nan, len(by_run))

    def told(verdict: str, sentence: str) -> Claim:
        signals = rivals(changes, curves, column, settings)
        sentence = f"{sentence}.{left_out_note(left_out)}"
        return Claim("overfitting", name, verdict, sentence, estimate, found.changes, signals, column)

    runs = rows["group"].nunique()
    if overfit.empty:
        return told("untestable", f"Validation loss turns in none of {runs} runs: nothing overfits")
    sentence = f"Validation loss turns in {len(by_run)} of {runs} runs; in {turned} of these local dimension "
    sentence += f"has a valley, a share of {number(*estimate[:3])}"
    sentence += f", {ahead(found.lead)} the loss's turn" if found.lead.n else ""
    bound = TOGETHER * float(course["at"].max())
    together = -bound < found.lead.low and found.lead.high < bound
    if estimate.high < 0.5 or found.lead.low > bound or found.lead.high < -bound:
        return told("disagrees", sentence)
    return told("agrees" if estimate.low > 0.5 and together else "unclear", sentence)


def _grokking(curves: Mapping[str, pd.DataFrame], settings: Mapping[str, str]) -> Claim | None:
    """It agrees if local dimension falls, its jump comes near that of validation accuracy, and one of two holds: it
    falls by more than in runs that memorise and don't grok, or shuffled runs' jumps lie farther apart.
    """
    if (measured := measured_on(curves, "train")) is None:
        return None
    column, often = measured
    if not often:
        return too_seldom("grokking", "", column, curves)
    left_out, curves = len(curves) - len(often), often
    rows = pd.DataFrame(
        {"run_id": run, "group": run} | grokking_of(curve, column)._asdict() for run, curve in curves.items()
    )
    groks = rows[rows["groks"]]

    def changes(signal: str) -> pd.DataFrame:
        """After memorising: before that the states change for another reason."""
        steps = [
            change_step(curves[row.run_id][curves[row.run_id]["step"] >= row.memorised_step], signal, "jump")
            for row in groks.itertuples()
        ]
        return groks.assign(metric_step=np.asarray(steps, float))

    found = lag_of(changes(column), settings)
    moves, stays = groks["after"] - groks["before"], rows["stays"].dropna()
    contrast = float(stats.mannwhitneyu(moves.dropna(), stays).pvalue) if len(groks) and len(stays) else math.nan
    estimate = Estimate(*middle(moves.to_numpy(float)), contrast, len(groks))
    sentence = f"{len(groks)} of {len(rows)} runs grok: validation passes {GROKKED:.0%} at least {DELAY} steps after "
    sentence += "all that is trained on is known"
    if len(groks):
        sentence += f". From then till it has followed, local dimension moves by {number(*estimate[:3])}"
        apart = f", Mann-Whitney p = {contrast:.2g}"
        sentence += f" (by {stays.mean():+.2g} in {len(stays)} that memorise alone{apart})" if len(stays) else ""
    if found.lead.n:
        jumped = int(found.changes[["metric_step", "outcome_step"]].notna().all(axis=1).sum())
        sentence += f"; where both have one jump, in {jumped} runs, it comes {ahead(found.lead)} validation accuracy's"
    if found.lead.p_value <= 1:
        sentence += f", p = {found.lead.p_value:.2g} against shuffled runs"
    bound = TOGETHER * float(np.median([curve["step"].iloc[-1] for curve in curves.values()]))
    together = -bound < found.lead.low and found.lead.high < bound
    farther = contrast < 0.05 and moves.median() < stays.median()
    verdict = "untestable" if groks.empty else "unclear"
    if estimate.low > 0:
        verdict = "disagrees"
    elif estimate.high < 0 and together and (found.lead.p_value < 0.05 or farther):
        verdict = "agrees"
    rows = rows.merge(found.changes[["run_id", "metric_step"]], how="left", on="run_id")
    signals = rivals(changes, curves, column, settings)
    return Claim("grokking", "", verdict, f"{sentence}.{left_out_note(left_out)}", estimate, rows, signals, column)


def _share(count: int, n: int) -> tuple[float, float]:
    """The exact 95 % interval of a share."""
    low, high = stats.binomtest(count, n).proportion_ci(method="exact")
    return float(low), float(high)
