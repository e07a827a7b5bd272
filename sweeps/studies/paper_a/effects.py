"""Test the effects that paper A reports (methods.md, section 1) on the table of its suite, in full or reduced.

    python -m sweeps.studies.paper_a.effects WORKDIR        (prints the table of docs/results.md)

A factor is changed from one value to another with everything else equal; the differences are averaged within each size,
and the sizes are the sample: n of them, a 95 % interval by Student's t. Effects are also given in standard deviations
over seeds, pooled over the configurations that have replicates.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from sweeps import analysis
from sweeps.table.table import TABLE

RANK, LOSS = analysis.PRIMARY_PAIR
FIXED_RANK = "unembedding_gauge_fixed/effective_rank_percent"

_TOKENS, _BATCH = "config.tokens", "config.data.batch_size"
_DECAY, _RATE = "config.optimizer.weight_decay", "config.optimizer.learning_rate"
_FINAL = "config.optimizer.final_fraction"
_FACTORS = (_TOKENS, _BATCH, _DECAY, _RATE, _FINAL)
_SIZE = "config.name"
_SIZES = ("4m", "8m", "13m", "19m", "34m", "75m")


class Effect(NamedTuple):
    """One row: a claim of the paper and its test on this table.

    effect, low, high: the metric at the factor's higher value minus that at the lower one, in its units, with the
    interval; NaN if the table can't give it. n: number of sizes. effect_in_seed_sd: the effect in standard deviations
    over seeds. verdict: agrees, disagrees, unclear or untestable.
    """

    claim: str
    metric: str
    effect: float
    low: float
    high: float
    n: int
    effect_in_seed_sd: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class _Claim:
    """`sign`: that of the effect in the paper. `size_effect`: the effect in one size's final rows, NaN for none."""

    text: str
    metric: str
    sign: int
    size_effect: Callable[["_Suite", str, str], float]


def effects(table: pd.DataFrame) -> list[Effect]:
    """Return the test of each effect that methods.md, section 1, expects of a re-run; "untestable" without its runs.

    Args:
      table: that of a sweep of sweeps/studies/paper_a/paper.py; runs that diverged, ablations and other text are left
        out.

    Raises AnalysisError if the table has none of the suite's sizes.
    """
    rows = analysis.final_rows(table).rows
    rows = rows[rows[_SIZE].isin(_SIZES) & (rows["config.data.name"] == "main")]
    if rows.empty:
        raise analysis.AnalysisError(
            f"no finished run of {', '.join(_SIZES)} in the table; run sweeps/studies/paper_a/paper.py"
        )
    suite = _suite(rows)
    noise = {metric: analysis.seed_deviation(rows, metric) for metric in (RANK, FIXED_RANK, LOSS)}
    tested = [_effect(claim, suite, noise[claim.metric]) for claim in _CLAIMS]
    return [*tested, _sign_change(suite), *_UNTESTABLE]


def as_markdown(tested: Sequence[Effect]) -> str:
    """Return the effects as a Markdown table."""
    lines = [
        "| paper A says | measured | effect | 95 % interval | in SD over seeds | n (sizes) | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for e in tested:
        known = math.isfinite(e.effect)
        interval = f"{e.low:+.3g} to {e.high:+.3g}" if math.isfinite(e.low) else ""
        seeds = f"{e.effect_in_seed_sd:+.1f}" if math.isfinite(e.effect_in_seed_sd) else ""
        effect = f"{e.effect:+.3g}" if known else ""
        lines.append(f"| {e.claim} | {e.metric} | {effect} | {interval} | {seeds} | {e.n or ''} | {e.verdict} |")
    return "\n".join(lines)


def _effect(claim: _Claim, suite: "_Suite", noise: float) -> Effect:
    by_size = [claim.size_effect(suite, size, claim.metric) for size in _SIZES]
    values = np.array([v for v in by_size if math.isfinite(v)])
    n = len(values)
    if n < 3:
        return Effect(claim.text, claim.metric, math.nan, math.nan, math.nan, n, math.nan, "untestable")
    effect, standard_error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    half_width = float(scipy.stats.t.ppf(0.975, n - 1)) * standard_error
    low, high = effect - half_width, effect + half_width
    significant = low > 0 or high < 0
    verdict = ("agrees" if effect * claim.sign > 0 else "disagrees") if significant else "unclear"
    return Effect(claim.text, claim.metric, effect, low, high, n, effect / noise if noise else math.nan, verdict)


class _Suite(NamedTuple):
    """The final rows, their means over seeds by size and factors, and each factor's default and extreme values."""

    rows: pd.DataFrame
    means: pd.DataFrame
    default: dict[str, float]
    ends: dict[str, tuple[float, float]]


def _suite(rows: pd.DataFrame) -> _Suite:
    """Return the suite, with learning rates as multiples of the usual one at their batch size."""
    configurations = rows.drop_duplicates("configuration")
    usual = {batch: group[_RATE].mode().iloc[0] for batch, group in configurations.groupby(_BATCH)}
    rows = rows.assign(**{_RATE: rows[_RATE] / rows[_BATCH].map(usual)})
    rows = rows.assign(**{factor: rows[factor].map(_rounded) for factor in _FACTORS})
    configurations = rows.drop_duplicates("configuration")
    default = {factor: float(configurations[factor].mode().iloc[0]) for factor in _FACTORS}
    ends = {factor: (float(configurations[factor].min()), float(configurations[factor].max())) for factor in _FACTORS}
    means = rows.groupby([_SIZE, *_FACTORS])[[RANK, FIXED_RANK, LOSS]].mean()
    return _Suite(rows, means, default, ends)


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
    low, high = suite.ends[_BATCH]
    budgets = (suite.ends[_TOKENS][0], suite.default[_TOKENS], suite.ends[_TOKENS][1])
    differences = [
        _mean(suite, size, metric, batch=high, tokens=t) - _mean(suite, size, metric, batch=low, tokens=t)
        for t in budgets
    ]
    return float(np.mean(differences))


def _batch_valley(suite: _Suite, size: str, metric: str) -> float:
    """Return how far the metric at the default batch size lies below the lower of those at both ends."""
    ends = [_mean(suite, size, metric, batch=end) for end in suite.ends[_BATCH]]
    return float(np.min(ends)) - _mean(suite, size, metric)


def _difference(name: str) -> Callable[[_Suite, str, str], float]:
    """Return a function that gives the metric at a factor's highest value minus that at its lowest."""

    def size_effect(suite: _Suite, size: str, metric: str) -> float:
        low, high = suite.ends[_NAMES[name]]
        return _mean(suite, size, metric, **{name: high}) - _mean(suite, size, metric, **{name: low})

    return size_effect


def _sign_change(suite: _Suite) -> Effect:
    """Fit a line to weight decay's effect on loss over log2 of the size: its slope, and whether it crosses 0."""
    claim = "weight decay's effect on loss changes sign with size (slope a doubling)"
    sizes = suite.rows.groupby(_SIZE)["parameters_non_embedding"].first()
    by_size = {size: _difference("decay")(suite, size, LOSS) for size in sizes.index}
    known = [size for size, effect in by_size.items() if math.isfinite(effect)]
    x, y = np.log2(sizes[known].astype(float).to_numpy()), np.array([by_size[size] for size in known])
    if len(known) < 4:
        return Effect(claim, LOSS, math.nan, math.nan, math.nan, len(known), math.nan, "untestable")
    line = scipy.stats.linregress(x, y)
    half_width = float(scipy.stats.t.ppf(0.975, len(known) - 2)) * line.stderr
    low, high = line.slope - half_width, line.slope + half_width
    ends = line.intercept + line.slope * np.array([x.min(), x.max()])
    verdict = "unclear" if low < 0 < high else "agrees" if ends[0] * ends[1] < 0 else "disagrees"
    noise = analysis.seed_deviation(suite.rows, LOSS)
    return Effect(claim, LOSS, line.slope, low, high, len(known), line.slope / noise, verdict)


_NAMES = {"tokens": _TOKENS, "batch": _BATCH, "decay": _DECAY, "rate": _RATE, "final": _FINAL}
_CLAIMS = (
    _Claim("a larger batch raises R(W)", RANK, +1, _batch_difference),
    _Claim("the same, without what the logits can't see", FIXED_RANK, +1, _batch_difference),
    _Claim("loss is U-shaped in batch size", LOSS, +1, _batch_valley),
    _Claim("stronger weight decay keeps R(W) high", RANK, +1, _difference("decay")),
    _Claim("the same, without what the logits can't see", FIXED_RANK, +1, _difference("decay")),
    _Claim("weaker annealing keeps R(W) high", RANK, +1, _difference("final")),
    _Claim("the same, without what the logits can't see", FIXED_RANK, +1, _difference("final")),
    _Claim("weaker annealing gives a worse loss", LOSS, +1, _difference("final")),
)
_NO_EFFECT = (math.nan, math.nan, math.nan, 0, math.nan, "untestable")
# Claims that can't be tested on the suite's table.
_UNTESTABLE = (
    Effect("Pythia-14M saturates late as its rank collapses, its sequential twin doesn't", RANK, *_NO_EFFECT),
    Effect("a small model can be low-rank without degrading", LOSS, *_NO_EFFECT),
    Effect("GPTQ hurts small models of very low rank", LOSS, *_NO_EFFECT),
)


if __name__ == "__main__":
    print(as_markdown(effects(pd.read_parquet(f"{sys.argv[1]}/{TABLE}"))))
