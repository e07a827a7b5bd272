"""The directions that paper A reports (methods.md, section 1), looked for in the table of its suite, whole or reduced.

    python -m sweeps.directions WORKDIR        (prints the table of docs/results.md)

A factor is taken from one value to another with everything else alike; the differences are averaged within each size,
and the sizes are the sample: n of them, a 95 % interval by Student's t. Effects are given in standard deviations over
seeds too, pooled over the configurations that have replicates.
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
from sweeps.table import TABLE

RANK, LOSS = analysis.PRIMARY_PAIR
FIXED_RANK = "unembedding_gauge_fixed/effective_rank_percent"

_TOKENS, _BATCH = "config.tokens", "config.data.batch_size"
_DECAY, _RATE = "config.optimizer.weight_decay", "config.optimizer.learning_rate"
_FINAL = "config.optimizer.final_fraction"
_FACTORS = (_TOKENS, _BATCH, _DECAY, _RATE, _FINAL)
_SIZE = "config.name"
_SIZES = ("4m", "8m", "13m", "19m", "34m", "75m")


class Direction(NamedTuple):
    """One row: what is said, and what was found of it.

    effect, low, high: in the metric's units, of the higher value less the lower one; NaN where there is nothing to tell
    from. n: sizes. in_seeds: the effect in standard deviations over seeds. verdict: agrees, disagrees, unclear or
    untestable.
    """

    claim: str
    metric: str
    effect: float
    low: float
    high: float
    n: int
    in_seeds: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class _Claim:
    """`sign`: of the effect as the paper reports it. `of_size`: the effect in one size's final rows, NaN for none."""

    text: str
    metric: str
    sign: int
    of_size: Callable[[pd.DataFrame, str], float]


def directions(table: pd.DataFrame) -> list[Direction]:
    """Every direction, in the order of methods.md.

    Args:
      table: of a sweep of sweeps/configs/paper.py; runs that diverged, ablations and other text are left out.

    Raises AnalysisError where none of the suite's sizes is in the table.
    """
    rows = analysis.final_rows(table).rows
    rows = rows[rows[_SIZE].isin(_SIZES) & (rows["config.data.name"] == "main")]
    if rows.empty:
        raise analysis.AnalysisError(
            f"no finished run of {', '.join(_SIZES)} in the table; run sweeps/configs/paper.py"
        )
    noise = {metric: _seed_deviation(rows, metric) for metric in (RANK, FIXED_RANK, LOSS)}
    found = [_direction(claim, rows, noise[claim.metric]) for claim in _CLAIMS]
    return [*found, *_UNTESTABLE]


def as_markdown(found: Sequence[Direction]) -> str:
    """A Markdown table."""
    lines = [
        "| paper A says | measured | effect | 95 % interval | in SD over seeds | n (sizes) | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for d in found:
        known = math.isfinite(d.effect)
        interval = f"{d.low:+.3g} to {d.high:+.3g}" if math.isfinite(d.low) else ""
        seeds = f"{d.in_seeds:+.1f}" if math.isfinite(d.in_seeds) else ""
        effect = f"{d.effect:+.3g}" if known else ""
        lines.append(f"| {d.claim} | {d.metric} | {effect} | {interval} | {seeds} | {d.n or ''} | {d.verdict} |")
    return "\n".join(lines)


def _direction(claim: _Claim, rows: pd.DataFrame, noise: float) -> Direction:
    by_size = [claim.of_size(rows[rows[_SIZE] == size], claim.metric) for size in _SIZES]
    values = np.array([v for v in by_size if math.isfinite(v)])
    n = len(values)
    if n < 3:
        return Direction(claim.text, claim.metric, math.nan, math.nan, math.nan, n, math.nan, "untestable")
    effect, spread = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    reach = float(scipy.stats.t.ppf(0.975, n - 1)) * spread
    low, high = effect - reach, effect + reach
    sure = low > 0 or high < 0
    verdict = ("agrees" if effect * claim.sign > 0 else "disagrees") if sure else "unclear"
    return Direction(claim.text, claim.metric, effect, low, high, n, effect / noise if noise else math.nan, verdict)


def _seed_deviation(rows: pd.DataFrame, metric: str) -> float:
    """Standard deviation over seeds, pooled over configurations; NaN without replicates."""
    groups = [g[metric].dropna() for _, g in rows.groupby("configuration")]
    squares = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    freedom = sum(len(g) - 1 for g in groups if len(g))
    return math.sqrt(squares / freedom) if freedom else math.nan


def _default(rows: pd.DataFrame) -> dict[str, float]:
    """The value that most configurations of a size have of each factor."""
    return {factor: rows.drop_duplicates("configuration")[factor].mode().median() for factor in _FACTORS}


def _along(rows: pd.DataFrame, factor: str, metric: str, varied: Sequence[str] = ()) -> pd.DataFrame:
    """Means over seeds by the factor's values, all but it and `varied` at the default; a column a combination."""
    default = _default(rows)
    for other in set(_FACTORS) - {factor, *varied}:
        rows = rows[np.isclose(rows[other].astype(float), default[other])]
    return rows.pivot_table(index=factor, columns=list(varied) or (lambda _: 0), values=metric, aggfunc="mean")


def _batch_difference(rows: pd.DataFrame, metric: str) -> float:
    """Largest batch less smallest, averaged over budgets."""
    by_batch = _along(rows, _BATCH, metric, varied=(_TOKENS,))
    return float((by_batch.iloc[-1] - by_batch.iloc[0]).mean()) if len(by_batch) > 1 else math.nan


def _batch_valley(rows: pd.DataFrame, metric: str) -> float:
    """How far the default batch size lies below the better end, at the default budget."""
    by_batch = _along(rows, _BATCH, metric)[0] if len(rows) else pd.Series(dtype=float)
    if len(by_batch) < 3:
        return math.nan
    return float(min(by_batch.iloc[0], by_batch.iloc[-1]) - by_batch.loc[_default(rows)[_BATCH]])


def _difference(factor: str) -> Callable[[pd.DataFrame, str], float]:
    def of_size(rows: pd.DataFrame, metric: str) -> float:
        along = _along(rows, factor, metric)
        return float(along.iloc[-1, 0] - along.iloc[0, 0]) if len(along) > 1 else math.nan

    return of_size


_CLAIMS = (
    _Claim("a larger batch raises R(W)", RANK, +1, _batch_difference),
    _Claim("the same, less what the logits can't see", FIXED_RANK, +1, _batch_difference),
    _Claim("loss is U-shaped in batch size", LOSS, +1, _batch_valley),
    _Claim("stronger weight decay keeps R(W) high", RANK, +1, _difference(_DECAY)),
    _Claim("the same, less what the logits can't see", FIXED_RANK, +1, _difference(_DECAY)),
    _Claim("weaker annealing keeps R(W) high", RANK, +1, _difference(_FINAL)),
    _Claim("the same, less what the logits can't see", FIXED_RANK, +1, _difference(_FINAL)),
    _Claim("weaker annealing gives a worse loss", LOSS, +1, _difference(_FINAL)),
)
_NOTHING = (math.nan, math.nan, math.nan, 0, math.nan, "untestable")
_UNTESTABLE = (
    Direction("the effect of weight decay on loss changes sign with model size (sizes up to 75M)", LOSS, *_NOTHING),
    Direction("Pythia-14M saturates late as its rank collapses, its sequential twin doesn't", RANK, *_NOTHING),
    Direction("GPTQ hurts small models of very low rank", LOSS, *_NOTHING),
)


if __name__ == "__main__":
    print(as_markdown(directions(pd.read_parquet(f"{sys.argv[1]}/{TABLE}"))))
