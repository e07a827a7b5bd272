"""What paper A reports: what moves the unembedding's rank and the loss, and what the rank says of performance."""

import numpy as np
import pandas as pd

from sweeps.analysis import controls_of, incremental_r2, partial_spearman
from sweeps.analysis.contrast import mean_estimate
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.analysis.r2 import baseline_columns
from sweeps.claims.claim import CONTRADICTED, SUPPORTED, UNCLEAR, VERDICTS, Claim, Judged, need
from sweeps.claims.registry import add
from sweeps.claims.sweep import Sweep
from sweeps.studies.paper_a import contrasts, relations
from sweeps.studies.paper_a.effect import LOSS, RANK
from sweeps.studies.paper_a.effects import suite_rows
from sweeps.table.columns import AnalysisError

AFTER_GPTQ, AFTER_TUNING = "loss after GPTQ", "loss after fine-tuning"
_MADE = {
    AFTER_GPTQ: (relations.losses_after_gptq, "set config.evaluation.quantize.bits and evaluate again"),
    AFTER_TUNING: (relations.losses_after_tuning, "set config.evaluation.finetune.targets and evaluate again"),
}
_SOURCE, _CONFIG, _LEAST_TOKENS = "paper A, arXiv 2602.20433", "paper:cpu,seeds=5", 100_000
_PERCENT, _NATS, _RHO = 1.0, 0.01, 0.1


def suite_of(sweep: Sweep) -> pd.DataFrame:
    """Return the final rows of the suite of paper A. Raises NotEstimableError for a sweep of another design."""
    try:
        rows = suite_rows(sweep.table)
    except AnalysisError:
        raise NotEstimableError("has no run of paper A's suite") from None
    if rows.groupby("config.name")[contrasts.BATCH].nunique().max() < 2:
        raise NotEstimableError("its runs have the suite's names, but no size has several batch sizes")
    return rows


class BySize:
    """The mean over the sizes of the suite of a change of a metric; see contrasts.by_size."""

    def __init__(self, change: str, metric: str):
        self.change, self.metric = change, metric

    def __call__(self, sweep: Sweep) -> Estimate:
        rows = suite_of(sweep)
        need(rows, self.metric, "evaluate it, with config.train.probe for geometry")
        return mean_by_size(rows, self.change, self.metric)


def mean_by_size(rows: pd.DataFrame, change: str, metric: str) -> Estimate:
    """Return the mean over sizes. Raises NotEstimableError if no size has the configurations."""
    change_N = np.array(contrasts.by_size(rows, change, metric))
    if not np.isfinite(change_N).any():
        raise NotEstimableError("no size has the suite's configurations")
    return mean_estimate(change_N[np.isfinite(change_N)])


class Relation:
    """Spearman's correlation of a metric with a loss over configurations, or the R2 that it adds to a prediction.

    Settings are held fixed as factors, which removes effects of any shape: as ranks, a loss that is U-shaped in a
    setting would pass for a relation. Of several losses of one kind, the mean counts.

    Args:
      kind: "rho", "rho given settings" or "delta R2". outcome: a column, AFTER_GPTQ or AFTER_TUNING.
    """

    def __init__(self, kind: str, metric: str, outcome: str):
        self.kind, self.metric, self.outcome = kind, metric, outcome

    def __call__(self, sweep: Sweep) -> Estimate:
        rows = suite_of(sweep)
        need(rows, self.metric, "set config.train.probe and train again")
        rows = with_outcome(rows, self.outcome)
        rows = rows[np.isfinite(rows[[self.metric, _OUTCOME]].astype(float)).all(axis=1)]
        if self.kind == "delta R2":
            found = incremental_r2(rows, self.metric, _OUTCOME, baseline_columns(rows), "configuration")
        elif self.kind == "rho":
            found = partial_spearman(rows, self.metric, _OUTCOME, [], "rank", "configuration")
        elif settings := controls_of(rows):
            found = partial_spearman(rows, self.metric, _OUTCOME, settings, "factor", "configuration")
        else:
            raise NotEstimableError("no setting varies")
        return found._replace(n=int(rows["configuration"].nunique()))


_OUTCOME = "outcome"


def with_outcome(rows: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """Return rows with the column "outcome": a column's value, or the mean of the losses of a kind."""
    if outcome not in _MADE:
        need(rows, outcome, "evaluate it")
        return rows.assign(**{_OUTCOME: rows[outcome]})
    columns, remedy = _MADE[outcome]
    if not (found := columns(rows)):
        raise NotEstimableError(f"has no {outcome}: {remedy}")
    return rows.assign(**{_OUTCOME: rows[found].mean(axis=1, skipna=False)})


class NoGain:
    """The verdict that a metric adds nothing that matters to a prediction."""

    def __init__(self, metric: str, outcome: str):
        self.gain = Relation("delta R2", metric, outcome)

    def __call__(self, sweep: Sweep) -> Judged:
        found = self.gain(sweep)
        if not np.isfinite(found.high):
            raise NotEstimableError(f"{found.n} configurations are too few for an interval")
        reason = "a gain below 0 is none: an uninformative metric makes a prediction slightly worse"
        return Judged(VERDICTS[relations.no_gain(found.low, found.high)], found, reason)


def _sign_change(sweep: Sweep) -> Judged:
    """Return whether the effect of weight decay surely has opposite signs at the smallest and the largest size."""
    rows = suite_of(sweep)
    need(rows, LOSS, "evaluate it")
    line = contrasts.decay_line(rows)
    if not np.isfinite(line.slope):
        raise NotEstimableError(f"{line.n} sizes have several weight decays, and 4 are needed")
    (small, small_low, small_high), (large, large_low, large_high) = line.ends
    sure = (small_low > 0 or small_high < 0) and (large_low > 0 or large_high < 0)
    verdict = UNCLEAR if not sure else SUPPORTED if small * large < 0 else CONTRADICTED
    reason = (
        f"by the line, the largest decay changes the loss by {small:+.3g} [{small_low:+.3g}, {small_high:+.3g}] nats "
        f"in the smallest size and by {large:+.3g} [{large_low:+.3g}, {large_high:+.3g}] in the largest"
    )
    return Judged(verdict, Estimate(line.slope, line.low, line.high, float("nan"), line.n), reason)


def _low_rank_without_harm(sweep: Sweep) -> Judged:
    """Return whether some configuration surely has a lower rank than the default, and surely no worse a loss."""
    rows = suite_of(sweep)
    for column in (RANK, LOSS):
        need(rows, column, "evaluate it, with config.train.probe for geometry")
    models = relations.low_rank_models(rows)
    if models.empty:
        raise NotEstimableError("the smallest size has no default configuration, no other one, or no replicates")
    lower = models[models["rank_high"] < 0]
    harmless = lower[lower["loss_high"] < _NATS]
    verdict = SUPPORTED if len(harmless) else CONTRADICTED
    if not len(harmless) and (lower.empty or (lower["loss_low"] <= 0).any()):
        verdict = UNCLEAR
    shown = (harmless if len(harmless) else models).sort_values("rank").iloc[0]
    reason = (
        f"of {len(models)} configurations, {len(lower)} surely have a lower rank, and of these {len(harmless)} surely "
        f"no worse a loss; at the lowest rank, the loss changes by {shown['loss']:+.3g} [{shown['loss_low']:+.3g}, "
        f"{shown['loss_high']:+.3g}] nats"
    )
    estimate = Estimate(shown["rank"], shown["rank_low"], shown["rank_high"], float("nan"), len(models))
    return Judged(verdict, estimate, reason)


def _low_rank_and_gptq(sweep: Sweep) -> Estimate:
    effect = relations.gptq_and_rank(suite_of(sweep))[0]
    if effect.verdict == "untestable":
        raise NotEstimableError(f"has too few configurations with a {AFTER_GPTQ}: {_MADE[AFTER_GPTQ][1]}")
    return Estimate(effect.effect, effect.low, effect.high, float("nan"), effect.n)


add(
    Claim(
        "batch-rank", _SOURCE,
        "A larger batch raises the effective rank of the unembedding.",
        _CONFIG, _LEAST_TOKENS, BySize("batch", RANK), 1, _PERCENT, "% of D",
    ),
    Claim(
        "batch-loss", _SOURCE,
        "The loss is U-shaped in the batch size: higher at both ends than in between.",
        _CONFIG, _LEAST_TOKENS, BySize("batch valley", LOSS), 1, _NATS, "nats per token",
    ),
    Claim(
        "decay-rank", _SOURCE,
        "Stronger weight decay keeps the effective rank of the unembedding high.",
        _CONFIG, _LEAST_TOKENS, BySize("decay", RANK), 1, _PERCENT, "% of D",
    ),
    Claim(
        "decay-loss", _SOURCE,
        "The effect of weight decay on the loss changes its sign with the size of the model.",
        _CONFIG, _LEAST_TOKENS, _sign_change, None, 0.0, "nats per doubling of the size",
    ),
    Claim(
        "annealing-rank", _SOURCE,
        "A higher final learning rate keeps the effective rank of the unembedding high.",
        _CONFIG, _LEAST_TOKENS, BySize("final", RANK), 1, _PERCENT, "% of D",
    ),
    Claim(
        "annealing-loss", _SOURCE,
        "A higher final learning rate gives a worse loss.",
        _CONFIG, _LEAST_TOKENS, BySize("final", LOSS), 1, _NATS, "nats per token",
    ),
    Claim(
        "rank-loss", _SOURCE,
        "A higher rank of the unembedding goes with a lower loss.",
        _CONFIG, _LEAST_TOKENS, Relation("rho", RANK, LOSS), -1, _RHO, "of Spearman's rho",
    ),
    Claim(
        "rank-loss-given-settings", _SOURCE,
        "Given the training settings too, a higher rank of the unembedding goes with a lower loss.",
        _CONFIG, _LEAST_TOKENS, Relation("rho given settings", RANK, LOSS), -1, _RHO, "of partial rho",
    ),
    Claim(
        "rank-gptq-given-settings", _SOURCE,
        "Given the training settings, a higher rank of the unembedding goes with a lower loss after GPTQ.",
        _CONFIG, _LEAST_TOKENS, Relation("rho given settings", RANK, AFTER_GPTQ), -1, _RHO, "of partial rho",
    ),
    Claim(
        "rank-adds-nothing", _SOURCE,
        "The rank of the unembedding adds nothing to a prediction of the loss from size, tokens and compute.",
        _CONFIG, _LEAST_TOKENS, NoGain(RANK, LOSS), None, relations.NO_GAIN, "of R2",
    ),
    Claim(
        "rank-tuning", _SOURCE,
        "The rank of the unembedding adds nothing to such a prediction of the loss after fine-tuning.",
        _CONFIG, _LEAST_TOKENS, NoGain(RANK, AFTER_TUNING), None, relations.NO_GAIN, "of R2",
    ),
    Claim(
        "states-tuning", _SOURCE,
        "The rank of the final states adds to such a prediction of the loss after fine-tuning.",
        _CONFIG, _LEAST_TOKENS, Relation("delta R2", relations.STATES, AFTER_TUNING), 1, relations.NO_GAIN, "of R2",
    ),
    Claim(
        "low-rank-harmless", _SOURCE,
        "A small model can have a lower rank than the default's at no worse a loss.",
        _CONFIG, _LEAST_TOKENS, _low_rank_without_harm, None, _NATS, "% of D",
    ),
    Claim(
        "low-rank-gptq", _SOURCE,
        "Among small models, GPTQ hurts those of low rank more.",
        _CONFIG, _LEAST_TOKENS, _low_rank_and_gptq, -1, _RHO, "of Spearman's rho",
    ),
)  # fmt: skip
