"""Claims that too much pre-training makes fine-tuned models worse."""

from sweeps.analysis.contrast import contrast
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.claims.claim import Claim
from sweeps.claims.registry import add
from sweeps.claims.sweep import Sweep
from sweeps.studies.anneal.effects import OTHER, SEED, TOKENS
from sweeps.studies.overtraining.effects import tuned

_LEAST_BUDGETS = 3  # two of them are compared, and what came before shows that they are late


class LastDoubling:
    """The change of a loss after fine-tuning at the highest rate, from the last budget but one to the last.

    Args:
      measure: "target", the loss on the text of fine-tuning, or "after", that on the text of pre-training.
    """

    def __init__(self, measure: str):
        self.measure = measure

    def __call__(self, sweep: Sweep) -> Estimate:
        rows = tuned(sweep.table)
        if rows.empty or rows[TOKENS].nunique() < _LEAST_BUDGETS:
            raise NotEstimableError(f"has no fine-tuned branches of {_LEAST_BUDGETS} budgets or more")
        rows = rows[(rows["measure"] == self.measure) & (rows["rate"] == rows["rate"].max())]
        *_, before, last = sorted(rows[TOKENS].unique())
        return contrast(rows, "value", TOKENS, (before, last), [OTHER, "target"], SEED)


_SOURCE, _CONFIG, _LEAST_TOKENS = "Springer et al., arXiv 2503.19206", "overtraining:cpu", 500_000

add(
    Claim(
        "overtraining-target", _SOURCE,
        "Late in pre-training, more tokens raise the loss on the new text after fine-tuning at a high rate.",
        _CONFIG, _LEAST_TOKENS, LastDoubling("target"), 1, 0.01, "nats per token",
    ),
    Claim(
        "overtraining-old-text", _SOURCE,
        "Late in pre-training, more tokens raise the loss on the old text after fine-tuning at a high rate.",
        _CONFIG, _LEAST_TOKENS, LastDoubling("after"), 1, 0.01, "nats per token",
    ),
)  # fmt: skip
