"""What paper A reports: what moves the unembedding's rank and the loss, and what the rank says of performance."""

import numpy as np
import pandas as pd

from sweeps import analysis
from sweeps.analysis.contrast import mean_estimate
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.analysis.r2 import baseline_columns
from sweeps.claims.claim import CONTRADICTED, SUPPORTED, UNCLEAR, Claim, Judged, need
from sweeps.claims.evidence import Evidence
from sweeps.claims.registry import add
from sweeps.studies.paper_a import contrasts, relations
from sweeps.studies.paper_a.effect import LOSS, RANK, Effect
from sweeps.studies.paper_a.effects import suite_rows

STATES = "final_states/effective_rank_percent"
AFTER_GPTQ, AFTER_TUNING = "the loss after GPTQ", "the loss after fine-tuning"
_MADE = {
    AFTER_GPTQ: (relations.losses_after_gptq, "set config.evaluation.quantize.bits and evaluate again"),
    AFTER_TUNING: (relations.losses_after_tuning, "set config.evaluation.finetune.targets and evaluate again"),
}
_VERDICTS = {"agrees": SUPPORTED, "disagrees": CONTRADICTED, "unclear": UNCLEAR}
_SOURCE, _CONFIG, _LEAST_TOKENS = "paper A, arXiv 2602.20433", "paper:cpu,seeds=5", 100_000
_PERCENT, _NATS, _RHO, _R2 = 1.0, 0.01, 0.1, 0.02


class BySize:
    """The mean over the sizes of the suite of a change of a metric; see contrasts.by_size."""

    def __init__(self, change: str, metric: str):
        self.change, self.metric = change, metric

    def __call__(self, sweep: Evidence) -> Estimate:
        rows = suite_rows(sweep.table)
        need(rows, self.metric, "evaluate it, with config.train.probe for geometry")
        change_N = np.array(contrasts.by_size(rows, self.change, self.metric))
        if not np.isfinite(change_N).any():
            raise NotEstimableError("no size has the suite's configurations")
        return mean_estimate(change_N[np.isfinite(change_N)])


class Relation:
    """Spearman's correlation of a metric with a loss over configurations, or the R2 that it adds to a prediction.

    Args:
      outcome: a column, AFTER_GPTQ or AFTER_TUNING. kind: "rho", "rho given settings" or "delta R2".
    """

    def __init__(self, kind: str, metric: str, outcome: str):
        self.kind, self.metric, self.outcome = kind, metric, outcome

    def __call__(self, sweep: Evidence) -> Estimate:
        rows = suite_rows(sweep.table)
        need(rows, self.metric, "set config.train.probe and train again")
        outcome = self._column(rows)
        if self.kind == "delta R2":
            found = analysis.incremental_r2(rows, self.metric, outcome, baseline_columns(rows), "configuration")
        else:
            settings = analysis.controls_of(rows) if self.kind == "rho given settings" else []
            found = analysis.partial_spearman(rows, self.metric, outcome, settings, "rank", "configuration")
        return found._replace(n=int(rows["configuration"].nunique()))

    def _column(self, rows: pd.DataFrame) -> str:
        if self.outcome not in _MADE:
            need(rows, self.outcome, "evaluate it")
            return self.outcome
        columns, remedy = _MADE[self.outcome]
        if not (found := columns(rows)):
            raise NotEstimableError(f"has no {self.outcome.removeprefix('the ')}: {remedy}")
        return found[0]


class NoGain:
    """The verdict that a metric adds nothing to a prediction: its gain of R2 is surely below what matters.

    An uninformative metric makes an out-of-fold prediction slightly worse, so a gain below 0 is none.
    """

    def __init__(self, metric: str, outcome: str):
        self.gain = Relation("delta R2", metric, outcome)

    def __call__(self, sweep: Evidence) -> Judged:
        found = self.gain(sweep)
        if not np.isfinite(found.high):
            raise NotEstimableError(f"{found.n} configurations are too few for an interval")
        verdict = SUPPORTED if found.high < _R2 else CONTRADICTED if found.low > 0 else UNCLEAR
        return Judged(
            verdict, found, "a gain below 0 is none: an uninformative metric makes a prediction slightly worse"
        )


def _estimate(effect: Effect) -> Estimate:
    return Estimate(effect.effect, effect.low, effect.high, float("nan"), effect.n)


def _sign_change(sweep: Evidence) -> Judged:
    """Return the verdict of contrasts.sign_change, which asks for a slope over sizes and a line that crosses 0."""
    effect = contrasts.sign_change(suite_rows(sweep.table))
    if effect.verdict not in _VERDICTS:
        raise NotEstimableError(f"{effect.n} sizes have several weight decays, and 4 are needed")
    reason = "the effect's slope over log2 of the size, and whether the line crosses 0 within the sizes, decide"
    return Judged(_VERDICTS[effect.verdict], _estimate(effect), reason)


def _low_rank_without_harm(sweep: Evidence) -> Estimate:
    return _estimate(relations.low_rank_without_harm(suite_rows(sweep.table)))


def _low_rank_and_gptq(sweep: Evidence) -> Estimate:
    return _estimate(relations.gptq_and_rank(suite_rows(sweep.table))[0])


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
        _CONFIG, _LEAST_TOKENS, _sign_change, 0, 0.0, "nats per doubling of the size",
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
        _CONFIG, _LEAST_TOKENS, NoGain(RANK, LOSS), 0, _R2, "of R2",
    ),
    Claim(
        "rank-tuning", _SOURCE,
        "The rank of the unembedding adds nothing to such a prediction of the loss after fine-tuning.",
        _CONFIG, _LEAST_TOKENS, NoGain(RANK, AFTER_TUNING), 0, _R2, "of R2",
    ),
    Claim(
        "states-tuning", _SOURCE,
        "The rank of the final states adds to such a prediction of the loss after fine-tuning.",
        _CONFIG, _LEAST_TOKENS, Relation("delta R2", STATES, AFTER_TUNING), 1, _R2, "of R2",
    ),
    Claim(
        "low-rank-harmless", _SOURCE,
        "A small model can have a lower rank than the default's at no worse a loss.",
        _CONFIG, _LEAST_TOKENS, _low_rank_without_harm, -1, _PERCENT, "% of D",
    ),
    Claim(
        "low-rank-gptq", _SOURCE,
        "Among small models, GPTQ hurts those of low rank more.",
        _CONFIG, _LEAST_TOKENS, _low_rank_and_gptq, -1, _RHO, "of Spearman's rho",
    ),
)  # fmt: skip
