"""Claims about when small models saturate, as logarithms of hazard ratios; the replicates are seeds."""

import math

from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.claims.claim import Claim, NothingOccurredError
from sweeps.claims.registry import add
from sweeps.claims.sweep import Sweep
from sweeps.studies.saturation.effects import hazards

_CONFIG, _LEAST_TOKENS = "saturation:cpu", 500_000
_UNIT, _LEAST = "of ln(hazard ratio)", math.log(1.5)


class LogHazard:
    """The logarithm of the hazard of an event at the last level of a factor over that at the first.

    Args:
      event: "collapse" or "turn". factor: a column.
    """

    def __init__(self, event: str, factor: str):
        self.event, self.factor = event, factor

    def __call__(self, sweep: Sweep) -> Estimate:
        found = [one for one in hazards(sweep.table, {}, None) if (one.event, one.factor) == (self.event, self.factor)]
        if not found:
            raise NotEstimableError(f"it isn't a sweep of what makes models saturate, with several {self.factor}")
        ratio = found[-1].ratio
        if not math.isfinite(ratio.estimate):
            raise (NotEstimableError if found[-1].events else NothingOccurredError)(found[-1].note)
        return Estimate(math.log(ratio.estimate), math.log(ratio.low), math.log(ratio.high), ratio.p_value, ratio.n)


add(
    Claim(
        "narrow-saturates",
        "Godey et al., arXiv 2404.07647",
        "The loss turns sooner, or in more runs, in the narrowest models of the sweep than in the widest.",
        _CONFIG, _LEAST_TOKENS, LogHazard("turn", "config.model.d_model"), -1, _LEAST, _UNIT,
    ),
    Claim(
        "narrow-collapses",
        "Godey et al., arXiv 2404.07647",
        "The rank of the unembedding falls sooner, or in more runs, in the narrowest models than in the widest.",
        _CONFIG, _LEAST_TOKENS, LogHazard("collapse", "config.model.d_model"), -1, _LEAST, _UNIT,
    ),
    Claim(
        "parallel-collapses",
        "paper A, arXiv 2602.20433",
        "The rank falls sooner, or in more runs, with parallel blocks than with sequential ones.",
        _CONFIG, _LEAST_TOKENS, LogHazard("collapse", "config.model.parallel"), 1, _LEAST, _UNIT,
    ),
)  # fmt: skip
