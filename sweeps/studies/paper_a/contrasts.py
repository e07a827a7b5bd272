"""Claims about a factor, which is changed with everything else equal; the sizes are the sample."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from sweeps import analysis
from sweeps.studies.paper_a.effect import FIXED_RANK, LOSS, RANK, Effect, in_seeds, mean_difference, untestable
from sweeps.studies.paper_a.effect import verdict as verdict_of

TOKENS, BATCH = "config.tokens", "config.data.batch_size"
_DECAY, _RATE = "config.optimizer.weight_decay", "config.optimizer.learning_rate"
_FINAL = "config.optimizer.final_fraction"
_FACTORS = (TOKENS, BATCH, _DECAY, _RATE, _FINAL)
_SIZE = "config.name"


def effects(rows: pd.DataFrame) -> list[Effect]:
    """Return the test of each claim about a factor on the final rows of the suite's sizes."""
    suite = _suite(rows, (RANK, FIXED_RANK, LOSS))
    noise = {metric: analysis.seed_deviation(rows, metric) for metric in (RANK, FIXED_RANK, LOSS)}
    tested = [
        mean_difference(
            claim.text,
            claim.metric,
            claim.sign,
            [CHANGES[claim.change](suite, size, claim.metric) for size in suite.sizes],
            noise[claim.metric],
            "sizes",
        )
        for claim in _CLAIMS
    ]
    return [*tested, _sign_change(rows, noise[LOSS])]


def by_size(rows: pd.DataFrame, change: str, metric: str) -> list[float]:
    """Return a change of a metric in each size, from the smallest; NaN for a size that lacks the configurations.

    Args:
      rows: the final rows of the suite's sizes. change: a key of CHANGES: "batch", "batch valley", "decay", "final".
    """
    suite = _suite(rows, (metric,))
    return [CHANGES[change](suite, size, metric) for size in suite.sizes]


def default_configuration(rows: pd.DataFrame, size: str) -> str | None:
    """Return the configuration of a size in which every factor has its default; None if the rows lack it."""
    suite = _suite(rows, (LOSS,))
    at_default = suite.rows[_SIZE] == size
    for factor in _FACTORS:
        at_default &= suite.rows[factor] == suite.default[factor]
    return str(suite.rows.loc[at_default, "configuration"].iloc[0]) if at_default.any() else None


@dataclasses.dataclass(frozen=True)
class _Claim:
    """`sign`: that of the effect in the paper. `change`: a key of CHANGES."""

    text: str
    metric: str
    sign: int
    change: str


class _Suite(NamedTuple):
    """The final rows, the sizes, means over seeds by size and factors, and each factor's default and extreme values."""

    rows: pd.DataFrame
    sizes: list[str]
    means: pd.DataFrame
    default: dict[str, float]
    ends: dict[str, tuple[float, float]]


def _suite(rows: pd.DataFrame, metrics: Sequence[str]) -> _Suite:
    """Return the suite with means of metrics, and rates as multiples of the usual at their size, budget and batch."""
    setting = [_SIZE, TOKENS, BATCH]
    usual = rows.drop_duplicates("configuration").groupby(setting)[_RATE].agg(lambda rates: rates.mode().iloc[0])
    rows = rows.assign(**{_RATE: rows[_RATE] / usual.reindex(pd.MultiIndex.from_frame(rows[setting])).to_numpy()})
    rows = rows.assign(**{factor: rows[factor].map(_rounded) for factor in _FACTORS})
    configurations = rows.drop_duplicates("configuration")
    default = {factor: float(configurations[factor].mode().iloc[0]) for factor in _FACTORS}
    ends = {factor: (float(configurations[factor].min()), float(configurations[factor].max())) for factor in _FACTORS}
    means = rows.groupby([_SIZE, *_FACTORS])[list(metrics)].mean()
    sizes = rows.groupby(_SIZE)["parameters_non_embedding"].first().sort_values(kind="stable").index
    return _Suite(rows, list(sizes), means, default, ends)


def _rounded(value: float) -> float:
    """Return the value to six digits, so that values which differ only by rounding count as one setting."""
    return float(f"{value:.6g}")


def _mean(suite: _Suite, size: str, metric: str, **changes: float) -> float:
    """Return the mean over seeds of the configuration of a size with these changes of the default; NaN without one."""
    values = suite.default | {_NAMES[name]: value for name, value in changes.items()}
    key = (size, *(values[factor] for factor in _FACTORS))
    return float(suite.means.at[key, metric]) if key in suite.means.index else math.nan


def _batch_difference(suite: _Suite, size: str, metric: str) -> float:
    """Return the metric at the largest batch minus that at the smallest, averaged over the budgets."""
    low, high = suite.ends[BATCH]
    budgets = (suite.ends[TOKENS][0], suite.default[TOKENS], suite.ends[TOKENS][1])
    differences = [
        _mean(suite, size, metric, batch=high, tokens=t) - _mean(suite, size, metric, batch=low, tokens=t)
        for t in budgets
    ]
    return float(np.mean(differences))


def _batch_valley(suite: _Suite, size: str, metric: str) -> float:
    """Return how far the metric at the default batch size lies below the lower of those at both ends."""
    ends = [_mean(suite, size, metric, batch=end) for end in suite.ends[BATCH]]
    return float(np.min(ends)) - _mean(suite, size, metric)


def _difference(name: str) -> Callable[[_Suite, str, str], float]:
    """Return a function that gives the metric at a factor's highest value minus that at its lowest."""

    def size_effect(suite: _Suite, size: str, metric: str) -> float:
        low, high = suite.ends[_NAMES[name]]
        return _mean(suite, size, metric, **{name: high}) - _mean(suite, size, metric, **{name: low})

    return size_effect


class Line(NamedTuple):
    """A line through the effects of weight decay on loss over log2 of the size.

    Attributes:
      slope, low, high: per doubling, with its 95 % interval. ends: the effect at the smallest and the largest size,
        each with its interval, `[2, 3]`. n: sizes.
    """

    slope: float
    low: float
    high: float
    ends: np.ndarray
    n: int


def decay_line(rows: pd.DataFrame) -> Line:
    """Fit the line by least squares; all but n is NaN with fewer than four sizes that have several weight decays."""
    suite = _suite(rows, (LOSS,))
    sizes = suite.rows.groupby(_SIZE)["parameters_non_embedding"].first()
    by_size = {size: _difference("decay")(suite, size, LOSS) for size in suite.sizes}
    known = [size for size, effect in by_size.items() if math.isfinite(effect)]
    x, y = np.log2(sizes[known].astype(float).to_numpy()), np.array([by_size[size] for size in known])
    if len(known) < 4:
        return Line(math.nan, math.nan, math.nan, np.full((2, 3), np.nan), len(known))
    line = scipy.stats.linregress(x, y)
    t = float(scipy.stats.t.ppf(0.975, len(known) - 2))
    at = np.array([x.min(), x.max()])
    middle = line.intercept + line.slope * at
    residual = math.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / (len(known) - 2))
    half = t * residual * np.sqrt(1 / len(known) + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2))
    ends = np.stack([middle, middle - half, middle + half], axis=1)
    return Line(line.slope, line.slope - t * line.stderr, line.slope + t * line.stderr, ends, len(known))


def _sign_change(rows: pd.DataFrame, noise: float) -> Effect:
    """Return the slope of decay_line, and whether the line crosses 0."""
    claim = "weight decay's effect on loss changes sign with size (slope per doubling)"
    line = decay_line(rows)
    if not math.isfinite(line.slope):
        return untestable(claim, LOSS, line.n)
    crosses = -1 if line.ends[0, 0] * line.ends[1, 0] > 0 else 1
    verdict = verdict_of(crosses * int(np.sign(line.slope)), line.slope, line.low, line.high)
    return Effect(claim, LOSS, line.slope, line.low, line.high, line.n, in_seeds(line.slope, noise), verdict)


_NAMES = {"tokens": TOKENS, "batch": BATCH, "decay": _DECAY, "rate": _RATE, "final": _FINAL}
# From a size of the suite and a metric to a change of the metric; NaN without the configurations.
CHANGES: dict[str, Callable[[_Suite, str, str], float]] = {
    "batch": _batch_difference,
    "batch valley": _batch_valley,
    "decay": _difference("decay"),
    "final": _difference("final"),
}
_CLAIMS = (
    _Claim("a larger batch raises R(W)", RANK, +1, "batch"),
    _Claim("the same for the gauge-fixed W", FIXED_RANK, +1, "batch"),
    _Claim("loss is U-shaped in batch size", LOSS, +1, "batch valley"),
    _Claim("stronger weight decay keeps R(W) high", RANK, +1, "decay"),
    _Claim("the same for the gauge-fixed W", FIXED_RANK, +1, "decay"),
    _Claim("weaker annealing keeps R(W) high", RANK, +1, "final"),
    _Claim("the same for the gauge-fixed W", FIXED_RANK, +1, "final"),
    _Claim("weaker annealing gives a worse loss", LOSS, +1, "final"),
)
