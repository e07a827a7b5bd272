"""A published claim as a record, and the verdict of sweeps on it."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from olmo_jax.errors import UserError
from sweeps.analysis.contrast import LEAST_SEEDS
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.claims.sweep import Sweep

SUPPORTED, CONTRADICTED, UNCLEAR, UNTESTABLE = "supported", "contradicted", "unclear", "untestable"
_MOST_SEEDS = 1000
_POWER = 0.8


# From the verdict of a study to that on a claim; without "untestable".
VERDICTS = {"agrees": SUPPORTED, "disagrees": CONTRADICTED, "unclear": UNCLEAR}


class Judged(NamedTuple):
    """The verdict of a rule of its own, for a claim with several conditions, and the reason in words."""

    verdict: str
    estimate: Estimate
    reason: str


class NothingOccurredError(NotEstimableError):
    """A sweep of the right kind, in which what the claim is about didn't occur; running it again wouldn't tell."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a publication says, and how it is tested.

    Attributes:
      id: its short name. source: the publication. statement: what it says, as tested here, in one sentence.
      config: the sweep that tests it. least_tokens: with fewer training tokens per run, a sweep isn't asked.
      measure: function of a sweep that returns the effect, with its interval over n replicates, or a verdict. Raises
        NotEstimableError or UserError, with the reason, for a sweep that can't test it.
      direction: the sign of the effect that the claim expects; 0: it says that there is none; None: it is decided by a
        rule of its own. least: the smallest effect that matters, in the effect's unit [ours]; 0 where none is named.
      unit: of the effect.
    """

    id: str
    source: str
    statement: str
    config: str
    least_tokens: int
    measure: Callable[[Sweep], Estimate | Judged]
    direction: int | None
    least: float
    unit: str


class Tested(NamedTuple):
    """The verdict on a claim.

    Attributes:
      estimate: the effect; NaN if untestable. note: why it is untestable, or how many replicates would do, or the
        reason for the verdict.
      workdir: the sweep that it was tested on; "" for none.
    """

    claim: Claim
    verdict: str
    estimate: Estimate
    note: str
    workdir: str

    def as_json(self) -> dict[str, Any]:
        """Return the record for JSON; a number that isn't known is null."""
        record = {
            name: getattr(self.claim, name) for name in ("id", "source", "statement", "config", "least_tokens", "unit")
        }
        numbers = {"estimate": self.estimate.estimate, "low": self.estimate.low, "high": self.estimate.high}
        known = {name: float(x) if math.isfinite(x) else None for name, x in numbers.items()}
        rest = {
            "least": self.claim.least,
            "direction": self.claim.direction,
            "note": self.note,
            "workdir": self.workdir,
        }
        return record | {"verdict": self.verdict, "n": self.estimate.n} | known | rest


def need(table: pd.DataFrame, column: str, remedy: str) -> None:
    """Raise NotEstimableError, with the remedy, unless a table has a column."""
    if column not in table.columns or table[column].isna().all():
        raise NotEstimableError(f"has no {column}: {remedy}")


def verdict_on(claim: Claim, sweeps: Mapping[str, Sweep]) -> Tested:
    """Return the verdict on a claim from the sweep, of those given, with most replicates of what it needs, then tokens.

    Args:
      sweeps: finished sweeps, by their working directories.
    """
    tested: list[Tested] = []
    reasons: list[str] = []
    ran = few = False
    for workdir, sweep in sweeps.items():
        try:
            _check_scale(claim, sweep.table)
            result = claim.measure(sweep)
        except (NotEstimableError, UserError) as error:
            reasons.append(f"{workdir}: {error}")
            ran = ran or isinstance(error, NothingOccurredError)
            continue
        if isinstance(result, Judged):
            tested.append(Tested(claim, *result, workdir))
        elif math.isfinite(result.low) and math.isfinite(result.high):
            tested.append(Tested(claim, verdict(claim, result), result, _note(claim, result), workdir))
        else:
            reasons.append(f"{workdir}: {result.n} replicates are too few for an interval")
            few = True
    if tested:
        return max(tested, key=lambda one: (one.estimate.n, sweeps[one.workdir].table["tokens"].max()))
    nothing = Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    # More seeds may help; the same runs again wouldn't.
    remedy = [] if ran and not few else [f"`olmo-jax run --config={claim.config}` makes the runs"]
    return Tested(claim, UNTESTABLE, nothing, "; ".join(reasons + remedy), "")


def _check_scale(claim: Claim, table: pd.DataFrame) -> None:
    most = table["tokens"].max() if "tokens" in table else 0
    if not most >= claim.least_tokens:
        raise NotEstimableError(f"its runs saw at most {most:,.0f} tokens, and {claim.least_tokens:,} are needed")


def verdict(claim: Claim, estimate: Estimate) -> str:
    """Return what a 95 % interval says of a claim [ours].

    A claim of an effect is supported if the interval lies on its side of 0; else it is contradicted if the interval
    excludes every effect in the claimed direction that matters. A claim of no effect is supported if the interval
    excludes every effect that matters, and contradicted if it lies on one side of 0 and its estimate matters.
    """
    low, high = estimate.low, estimate.high
    if claim.direction:
        near, far = sorted((claim.direction * low, claim.direction * high))
        return SUPPORTED if near > 0 else CONTRADICTED if far < claim.least else UNCLEAR
    if -claim.least < low and high < claim.least:
        return SUPPORTED
    return CONTRADICTED if (low > 0 or high < 0) and abs(estimate.estimate) > claim.least else UNCLEAR


def replicates_needed(claim: Claim, estimate: Estimate) -> int:
    """Return how many replicates would do, from the spread of those at hand; 0 if more than a thousand.

    With them, an interval excludes 0 in four of five cases if the effect is the smallest that matters; for a claim of
    no effect, it lies within effects that don't matter in four of five cases if there is none.
    """
    n = estimate.n
    spread = (estimate.high - estimate.low) / 2 / float(stats.t.ppf(0.975, n - 1)) * math.sqrt(n)
    # Of two sides to be excluded, each with a probability of a tenth to fail.
    power = _POWER if claim.direction else (1 + _POWER) / 2
    for count in range(LEAST_SEEDS, _MOST_SEEDS + 1):
        width = float(stats.t.ppf(0.975, count - 1)) + float(stats.t.ppf(power, count - 1))
        if width * spread / math.sqrt(count) <= claim.least:
            return count
    return 0


def _note(claim: Claim, estimate: Estimate) -> str:
    of_claim = verdict(claim, estimate)
    if of_claim == SUPPORTED and claim.direction and max(abs(estimate.low), abs(estimate.high)) < claim.least:
        return f"smaller than {claim.least:g} {claim.unit}, which would matter"
    if of_claim != UNCLEAR:
        return ""
    count = replicates_needed(claim, estimate)
    if 0 < count <= estimate.n:
        return "borderline: the sweep is precise enough, and the effect lies near the limit"
    enough = f"{count} replicates would do" if count else f"more than {_MOST_SEEDS} replicates would be needed"
    return f"underpowered for an effect of {claim.least:g} {claim.unit}: {enough}"
