"""The claim that weight decay in pre-training makes models plastic."""

from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.claims.claim import Claim
from sweeps.claims.registry import add
from sweeps.claims.sources.paper_a import mean_by_size, suite_of
from sweeps.claims.sweep import Sweep
from sweeps.studies.paper_a.relations import losses_after_tuning
from sweeps.table.catalog import catalog_of

_GAIN = "gain"


def decay_and_gain(sweep: Sweep) -> Estimate:
    """Return the gain of fine-tuning at the suite's largest weight decay minus that at its smallest, over sizes.

    The gain is the loss on the target before fine-tuning minus that after it, averaged over targets.
    """
    rows = suite_of(sweep)
    catalog = catalog_of(rows)
    pairs = [(f"lm_loss/{catalog[after].of['target']}", after) for after in losses_after_tuning(rows)]
    gains = [rows[before] - rows[after] for before, after in pairs if before in rows]
    if not gains:
        raise NotEstimableError(
            "no domain was scored before and after fine-tuning: set config.evaluation.finetune.targets"
        )
    return mean_by_size(rows.assign(**{_GAIN: sum(gains) / len(gains)}), "decay", _GAIN)


add(
    Claim(
        "decay-plasticity", "Han et al., arXiv 2602.11137",
        "Stronger weight decay in pre-training makes fine-tuning lower the loss on its target by more.",
        "paper:cpu,seeds=5", 100_000, decay_and_gain, 1, 0.01, "nats per token",
    ),
)  # fmt: skip
