"""When things happen in the curves of one run: it memorises, it groks, its loss stops improving, a metric turns."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.leads import change_point
from sweeps.table.columns import HELD_OUT_LOSS, TEXTS

TRAIN_LOSS = f"{TEXTS}train/loss"
TRAIN_ACCURACY, ACCURACY = f"{TEXTS}train/accuracy", f"{TEXTS}validation/accuracy"

# Memorised, and grokked, from these shares of right answers; a run groks if it does so many steps after memorising.
MEMORISED, GROKKED, DELAY = 0.999, 0.95, 500
# A loss no longer improves once it is within this share of its whole fall of its least.
STOPPED = 0.05
# A minimum among the last of the steps, later than this share of the way, isn't known to be one.
INSIDE = 0.9


class Grokking(NamedTuple):
    """How one run fared with its equations; what didn't happen is NaN.

    Attributes:
      memorised_step: all that is trained on is known. followed_step: validation passes 95 %.
      accuracy: of validation, at the end.
      groks: whether validation followed at least 500 steps after memorising. outcome_step: of validation's jump.
      before, after: level of the metric in the first half of the time between the two, and from then on.
      stays: of a run that memorised and never followed, its change from the first to the second half of what is left.
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
    """The rows of a run's metrics at which texts were read."""
    return curve[curve[HELD_OUT_LOSS].notna()] if HELD_OUT_LOSS in curve else curve.iloc[:0]


def grokking_of(curve: pd.DataFrame, column: str) -> Grokking:
    """Of a run's metrics at the steps at which texts were read; `column` is the metric."""
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
    """Where a loss stops improving: the first step within 5 % of its fall of its least.

    NaN where the least is the first, or among the last tenth of the steps, for it may yet fall.
    """
    x_N, y_N, best = _least(curve, loss)
    if not best or x_N[best] > _inside(x_N):
        return math.nan
    return float(x_N[np.argmax(y_N <= y_N[best] + STOPPED * (y_N[0] - y_N[best]))])


def least_step(curve: pd.DataFrame, loss: str) -> float:
    """The step of the least loss; NaN where it is the first, or among the last tenth of the steps."""
    x_N, _, best = _least(curve, loss)
    return float(x_N[best]) if best and x_N[best] <= _inside(x_N) else math.nan


def valley_step(curve: pd.DataFrame, column: str) -> float:
    """Where a metric stops falling and begins to rise; NaN where it has no such turn."""
    x_N, y_N, best = _least(curve, column)
    if best is None:
        return math.nan
    found = change_point(x_N, y_N, "turn")
    return found.step if found.after < min(y_N[0], y_N[-1]) else math.nan


def _least(curve: pd.DataFrame, column: str) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Steps and values that are there, and the place of the least."""
    there = curve[["step", column]].astype(float).dropna()
    x_N, y_N = there["step"].to_numpy(), there[column].to_numpy()
    return x_N, y_N, int(np.argmin(y_N)) if len(y_N) else None


def _inside(x_N: np.ndarray) -> float:
    return float(x_N[0] + INSIDE * (x_N[-1] - x_N[0]))


def _first(steps: np.ndarray, there: np.ndarray) -> float:
    return float(steps[np.argmax(there)]) if there.any() else math.nan


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan
