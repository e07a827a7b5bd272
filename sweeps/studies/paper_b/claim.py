"""A claim of paper B (arXiv 2506.01034) and the verdict on it, with the functions that all experiments use.

A verdict is "agrees", "disagrees", "unclear" (the interval allows both, or there are too few runs for an interval) or
"untestable" (the event that the claim is about didn't happen, or it wasn't measured often enough to be detected).
"""

import collections
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.estimate import Estimate, nothing
from sweeps.analysis.leads import LEAST_VALUES, change_point, lag_of
from sweeps.analysis.r2 import incremental_r2
from sweeps.studies.paper_b.events import TRAIN_LOSS
from sweeps.studies.paper_b.shift import DIMENSION, dimension_columns

CLAIMS = {
    "shift": "Fine-tuning lowers the mean local dimension on its own domain and leaves others nearly unchanged.",
    "exhaustion": "The mean local dimension levels off when training is exhausted.",
    "overfitting": "The mean local dimension falls, then rises, when a classifier overfits.",
    "grokking": "The mean local dimension drops when a model groks.",
}
SIGNALS = ["signal", "lead", "low", "high", "p_value", "n", "claimed", "adds", "adds_low", "adds_high", "note"]
# Metrics of the same states and text whose changes are compared with local dimension's.
_METRICS = (DIMENSION, "effective_rank", "isoscore")

# From a column to the change points of each run: run_id, group, metric_step, outcome_step.
Changes = Callable[[str], pd.DataFrame]


class Claim(NamedTuple):
    """A claim and its test on this sweep.

    Attributes:
      name: a key of CLAIMS. evaluation: name of the fine-tuning that it was tested on, or "".
      verdict: see the module. sentence: its reason, with the numbers. estimate: the statistic behind the verdict.
      rows: for "shift" one row per column (see `shifts`), else one row per run.
      signals: one row per signal (columns SIGNALS): how many steps before the outcome it changes, and the R2 that its
        step adds to that of the training loss in predicting the outcome's. column: the first of them.
    """

    name: str
    evaluation: str
    verdict: str
    sentence: str
    estimate: Estimate
    rows: pd.DataFrame
    signals: pd.DataFrame
    column: str

    @property
    def text(self) -> str:
        """Return the claim and its verdict in words."""
        return f"{CLAIMS[self.name]} Verdict: {self.verdict}. {self.sentence}"


def rivals(
    changes: Changes, curves: Mapping[str, pd.DataFrame], column: str, settings: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Compare when each signal and the outcome change, and what the signal's step adds in predicting the outcome's.

    The signals are local dimension, effective rank and IsoScore of the same states, where all runs have them, and the
    training loss, to whose step the others are added.
    """
    shared = _shared(curves)
    states = column.rpartition("/")[0]
    signals = [f"{states}/{metric}" for metric in _METRICS if f"{states}/{metric}" in shared]
    signals += [TRAIN_LOSS] if TRAIN_LOSS in shared else []
    loss_steps = changes(TRAIN_LOSS)["metric_step"] if TRAIN_LOSS in shared else None
    rows = []
    for signal in signals:
        lag = lag_of(changes(signal), settings)
        adds = nothing(0)
        if loss_steps is not None and signal != TRAIN_LOSS:
            table = lag.changes.assign(loss_step=loss_steps).dropna(subset=["metric_step", "outcome_step", "loss_step"])
            adds = incremental_r2(table, "metric_step", "outcome_step", ["loss_step"], "group")
        lead = lag.lead
        rows.append((signal, *lead, lag.claimed, adds.estimate, adds.low, adds.high, lag.note))
    return pd.DataFrame(rows, columns=SIGNALS)


def _shared(curves: Mapping[str, pd.DataFrame]) -> set[str]:
    """Return the columns that all curves have."""
    return set.intersection(*({str(c) for c in curve.columns} for curve in curves.values()))


def measured_on(curves: Mapping[str, pd.DataFrame], text: str) -> tuple[str, dict[str, pd.DataFrame]] | None:
    """Return the column of the mean local dimension on a text, and the curves that measure it often enough.

    It is that of the deepest states among those that most runs have; None without such a column.
    """
    counts = collections.Counter(str(c) for curve in curves.values() for c in curve.columns)
    if not (columns := dimension_columns(set(counts), text)):
        return None
    column = max(columns, key=counts.__getitem__)
    measured = {
        run: curve
        for run, curve in curves.items()
        if column in curve and np.isfinite(curve[column].astype(float)).sum() >= LEAST_VALUES
    }
    return column, measured


def too_seldom(name: str, evaluation: str, column: str, curves: Mapping[str, pd.DataFrame]) -> Claim:
    """Return an untestable claim: no run measured local dimension often enough."""
    most = max(int(curve[column].notna().sum()) for curve in curves.values() if column in curve)
    remedy = "raise config.evaluation.finetune.points" if evaluation else "lower config.train.probe.every"
    sentence = f"Local dimension was measured at most {most} times in a run; detecting a change takes {LEAST_VALUES} "
    sentence += f"measurements or more: {remedy}."
    rows = pd.DataFrame({"run_id": list(curves), "group": list(curves), "metric_step": math.nan})
    rows = rows.assign(outcome_step=math.nan, lag=math.nan, groks=False, stays=math.nan)
    signals = pd.DataFrame(columns=SIGNALS)
    return Claim(name, evaluation, "untestable", sentence, nothing(0), rows, signals, column)


def left_out_note(count: int) -> str:
    """Return how many curves are left out, because they measure local dimension too seldom, or ""."""
    return f" Left out, with fewer than {LEAST_VALUES} measurements of local dimension: {count} more." if count else ""


def change_step(curve: pd.DataFrame, column: str, kind: str) -> float:
    return change_point(curve["step"].to_numpy(float), curve[column].to_numpy(float), kind).step


def number(estimate: float, low: float, high: float) -> str:
    text = f"{estimate:.2f}"
    return text if math.isnan(low) else f"{text} (95 % interval {low:.2f} to {high:.2f})"


def ahead(lead: Estimate, event: str) -> str:
    """Return how many steps before or after an event a signal changes, with the interval of the lead."""
    text = f"{abs(lead.estimate):.0f} steps {'before' if lead.estimate >= 0 else 'after'} {event}"
    return text if math.isnan(lead.low) else f"{text} (95 % interval of the lead {lead.low:.0f} to {lead.high:.0f})"
