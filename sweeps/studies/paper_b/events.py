"""Find events in the curves of one run: it memorises, it groks, its loss stops improving, a metric turns."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.leads import change_point
from sweeps.table.columns import HELD_OUT_LOSS, TEXTS

TRAIN_LOSS = f"{TEXTS}train/loss"
TRAIN_ACCURACY, ACCURACY = f"{TEXTS}train/accuracy", f"{TEXTS}validation/accuracy"

# Accuracies from which a run has memorised and generalised; it groks if DELAY steps or more lie between the two.
MEMORISED, GROKKED, DELAY = 0.999, 0.95, 500
# A loss has stopped improving once its distance to its minimum is within this share of its whole fall.
STOPPED = 0.05
# A minimum later than this share of the steps may not be the final one, as the curve may still fall.
INSIDE = 0.9


class Grokking(NamedTuple):
    """When one run learned its equations; NaN for an event that didn't happen.

    Attributes:
      memorised_step: training accuracy reaches 99.9 %. followed_step: validation accuracy reaches 95 %.
      accuracy: validation accuracy at the end.
      groks: whether validation followed at least 500 steps after memorising. outcome_step: the jump of validation
        accuracy.
      before, after: level of the metric in the first half of the time between the two, and from followed_step on.
      stays: for a run that never followed, the metric's change between the two halves of the steps after memorising.
    """

    memorised_step: float
    followed_step: float
    accuracy: float
    groks: bool
    outcome_step: float
    before: float
    after: float
    stays: float


def probe_rows(curve: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a run's metrics at which texts were evaluated."""
    return curve[curve[HELD_OUT_LOSS].notna()] if HELD_OUT_LOSS in curve else curve.iloc[:0]


def grokking_of(curve: pd.DataFrame, column: str) -> Grokking:
    """Return the events of a run from its metrics at steps at which texts were evaluated; `column` is the metric."""
    steps, values = curve["step"].to_numpy(float), curve[column].to_numpy(float)
    trained, accuracy = curve[TRAIN_ACCURACY].to_numpy(float), curve[ACCURACY].to_numpy(float)
    memorised, followed = _first(steps, trained >= MEMORISED), _first(steps, accuracy >= GROKKED)
    before = after = stays = outcome = math.nan
    groks = followed - memorised >= DELAY  # False with a NaN
    if math.isnan(followed):
        half = (steps[-1] + memorised) / 2
        stays = _mean(values[steps >= half]) - _mean(values[(steps >= memorised) & (steps < half)])
    else:
        before = _mean(values[(steps >= memorised) & (steps <= (memorised + followed) / 2)])
        after = _mean(values[steps >= followed])
        outcome = change_point(steps, accuracy, "jump", least=0.5).step
    return Grokking(memorised, followed, float(accuracy[-1]), bool(groks), outcome, before, after, stays)


def stop_step(curve: pd.DataFrame, loss: str) -> float:
    """Return where a loss stops improving: the first step whose distance to the minimum is within 5 % of the fall.

    NaN where the minimum is the first value, or in the last tenth of the steps, as the loss may still fall.
    """
    x_N, y_N, best = _minimum(curve, loss)
    if not best or x_N[best] > _last_known_minimum(x_N):
        return math.nan
    return float(x_N[np.argmax(y_N <= y_N[best] + STOPPED * (y_N[0] - y_N[best]))])


def least_step(curve: pd.DataFrame, loss: str) -> float:
    """Return the step of the minimum loss; NaN where it is the first, or in the last tenth of the steps."""
    x_N, _, best = _minimum(curve, loss)
    return float(x_N[best]) if best and x_N[best] <= _last_known_minimum(x_N) else math.nan


def valley_step(curve: pd.DataFrame, column: str) -> float:
    """Return where a metric stops falling and begins to rise; NaN where it has no such turn."""
    x_N, y_N, best = _minimum(curve, column)
    if best is None:
        return math.nan
    turn = change_point(x_N, y_N, "turn")
    return turn.step if turn.after < min(y_N[0], y_N[-1]) else math.nan


def _minimum(curve: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Return the steps and values that aren't NaN, and the index of the least value."""
    known = curve[["step", column]].astype(float).dropna()
    x_N, y_N = known["step"].to_numpy(), known[column].to_numpy()
    return x_N, y_N, int(np.argmin(y_N)) if len(y_N) else None


def _last_known_minimum(x_N: np.ndarray) -> float:
    return float(x_N[0] + INSIDE * (x_N[-1] - x_N[0]))


def _first(steps: np.ndarray, mask: np.ndarray) -> float:
    return float(steps[np.argmax(mask)]) if mask.any() else math.nan


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan
