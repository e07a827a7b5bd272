"""What the studies with trunks share: a model that trains at a constant rate, and branches that end at a budget."""

import dataclasses
from collections.abc import Iterable

from olmo_jax.config import (
    CheckpointConfig,
    OptimizerConfig,
    TrainConfig,
)
from sweeps.analysis.contrast import LEAST_SEEDS
from sweeps.planning.grid import Point
from sweeps.studies.argument import scale_and_seeds
from sweeps.studies.small import prose, small_model, small_probe

_METRICS = ("effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes [ours]. `budgets`: steps, multiples of 20. `rates`: peak learning rates, one trunk per seed for each."""

    width: int
    layers: int
    vocabulary: int
    length: int
    batch: int
    budgets: tuple[int, ...]
    rates: tuple[float, ...]
    megabytes: float
    tokens_per_domain: int


def read(argument: str, file: str, known: Iterable[str]) -> tuple[str, int]:
    """Return the scale and the number of seeds that an argument "SCALE[,seeds=K]" names; raises ConfigError."""
    name, count = scale_and_seeds(argument, file, known, LEAST_SEEDS)
    return name, count or (LEAST_SEEDS if name != "smoke" else 2)


def train_config(scale: Scale, checkpoints: Iterable[int], ema_decay: float = 0.0) -> TrainConfig:
    """Return the configuration of a trunk of the largest budget, with checkpoints at these steps."""
    longest = max(scale.budgets)
    return TrainConfig(
        tokens=longest * scale.batch * scale.length,
        model=small_model(scale),
        optimizer=OptimizerConfig(
            schedule="wsd", decay_fraction=0.0, final_fraction=0.0, warmup_fraction=0.02, weight_decay=0.1
        ),
        data=prose(scale),
        probe=small_probe(scale, longest, _METRICS),
        checkpoint=CheckpointConfig(at=tuple(sorted(set(checkpoints))), ema_decay=ema_decay),
    )


def trunk(rate: float) -> Point:
    """Return the grid point of the trunk of a peak rate."""
    return {"name": _name(rate), "optimizer.learning_rate": rate}


def start(budget: int, share: float) -> int:
    """Return the step after which the rate decays, over this share of a budget."""
    return budget - round(share * budget)


def end(scale: Scale, rate: float, budget: int, share: float = 0.0) -> Point:
    """Return the grid point of a branch that ends at a budget, the rate decayed to 0 over a share of it.

    Without a decay it takes no step, and needs an average to start from.
    """
    return {
        "optimizer.learning_rate": rate,
        "tokens": budget * scale.batch * scale.length,
        "branch.parent": f"{_name(rate)}@{start(budget, share)}",
        "optimizer.decay_fraction": share,
    }


def _name(rate: float) -> str:
    return f"trunk-{rate:g}"
