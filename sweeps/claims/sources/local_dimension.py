"""The four claims of paper B on local dimension, with the rules of their study (sweeps/studies/paper_b)."""

from sweeps.analysis.estimate import NotEstimableError
from sweeps.claims.claim import VERDICTS, Claim, Judged
from sweeps.claims.registry import add
from sweeps.claims.sweep import Sweep
from sweeps.studies.paper_b.claim import CLAIMS
from sweeps.studies.paper_b.study import measures_texts

_SOURCE = "paper B, arXiv 2506.01034"


class Experiment:
    """The verdict of the study on one of its claims, by its name in CLAIMS."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, sweep: Sweep) -> Judged:
        if not measures_texts(sweep.table):
            raise NotEstimableError("no run measured local dimension: set config.train.probe.texts and train again")
        found = [one for one in sweep.dimension_results if one.name == self.name]
        if not found:
            raise NotEstimableError(f"is no experiment on {self.name}")
        best = max(found, key=lambda one: (one.verdict in VERDICTS, one.estimate.n))
        if best.verdict not in VERDICTS:
            raise NotEstimableError(best.sentence)
        return Judged(VERDICTS[best.verdict], best.estimate, best.sentence)


# The sweep that tests a claim, its least tokens, and the unit of its estimate.
_TESTS = {
    "shift": ("local_dimension:shift", 300_000, "standard deviations over points"),
    "exhaustion": ("local_dimension:exhaustion", 500_000, "steps by which local dimension is ahead"),
    "overfitting": ("local_dimension:overfitting", 200_000, "of the runs"),
    "grokking": ("grokking:cpu", 1_000_000, "of local dimension"),
}

for _name, (_config, _tokens, _unit) in _TESTS.items():
    add(Claim(f"dimension-{_name}", _SOURCE, CLAIMS[_name], _config, _tokens, Experiment(_name), None, 0.0, _unit))
