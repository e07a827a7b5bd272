"""Grokking, claim 4 of paper B (arXiv 2506.01034): does the local dimension drop when a model finally generalises?

    olmo-jax run --config=grokking:cpu --workdir=runs/grokking     (15 models)
    olmo-jax plan --config=grokking:paper

The members of one cohort are all shares of the equations times all data seeds, each with its own training and
validation equations. The argument is a scale, then options, separated by commas:

    paper   as published [B]: a + b modulo 197, 9 shares x 5 seeds, 400,000 steps
    gpu     the same 45 members in a tenth of the steps, with more weight decay: 7 minutes on an H100
    cpu     a + b modulo 59, one block, 5 shares x 3 seeds, more weight decay, a constant rate: minutes on a laptop
    smoke   every stage in seconds; its results mean nothing
    operation=NAME   add, subtract, divide or permute (products of permutations of 5 elements, 4 at `cpu`)

Values marked [B] are those of the paper's code; values marked [ours] are choices of this project.
"""

import dataclasses

from ml_collections import ConfigDict

from olmo_jax.config import (
    ArithmeticConfig,
    CheckpointConfig,
    ConfigError,
    DataConfig,
    OptimizerConfig,
    ProbeConfig,
    TargetConfig,
    TextsConfig,
    TrainConfig,
)
from olmo_jax.config.data import OPERATIONS
from olmo_jax.config.presets import GROKKING
from sweeps.planning.grid import product
from sweeps.planning.plan import sweep_config


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of the experiment; the defaults are the paper's [B] except `probes`.

    Attributes:
      modulus: p. permuted: number of elements that "permute" permutes. fractions: shares of the equations that are
        trained on. seeds: data seeds per share.
      blocks, dropout, batch, steps, decay, final, eps: of the model and its training; see OptimizerConfig.
      probes: how many times during training loss, accuracy and geometry are measured.
      points, neighbors: N and L of local dimension.
    """

    modulus: int = 197
    permuted: int = 5
    fractions: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    seeds: int = 5
    blocks: int = 2
    dropout: float = 0.1
    batch: int = 512
    steps: int = 400_000
    decay: float = 0.01
    final: float = 0.0
    eps: float = 1e-8
    probes: int = 800
    points: int = 3000
    neighbors: int = 64


SCALES = {
    "paper": Scale(),
    "gpu": Scale(steps=40_000, decay=1.0, probes=160),
    "cpu": Scale(
        modulus=59,
        permuted=4,
        fractions=(0.2, 0.35, 0.4, 0.425, 0.45),  # from .5 on, models generalised at once in our trials
        seeds=3,
        blocks=1,
        dropout=0.0,
        batch=256,
        steps=4000,
        decay=1.0,
        final=1.0,
        eps=1e-6,  # at 1e-8, a small loss spikes repeatedly, and so does local dimension
        probes=80,
        points=800,
    ),
    "smoke": Scale(
        modulus=11,
        permuted=3,
        fractions=(0.4, 0.6),
        seeds=1,
        blocks=1,
        dropout=0.0,
        batch=16,
        steps=40,
        probes=10,
        points=60,
        neighbors=16,
    ),
}


def get_config(arg: str = "cpu") -> ConfigDict:
    name, *options = arg.split(",")
    if name not in SCALES:
        raise ConfigError(f"grokking.py has no scale '{name}'; choose {', '.join(SCALES)}")
    operation = "add"
    for option in options:
        key, _, operation = option.partition("=")
        if key != "operation" or operation not in OPERATIONS:
            raise ConfigError(f"grokking.py has no option '{option}'; use operation={'|'.join(OPERATIONS)}")
    scale = SCALES[name]
    equations = ArithmeticConfig(operation, scale.permuted if operation == "permute" else scale.modulus)
    vocabulary = equations.elements + 3
    # In the smallest share the states of tokens "b" and "=" all differ; "a" and "o" have few different ones.
    most_points = int(1.5 * dataclasses.replace(equations, train_fraction=min(scale.fractions)).train_equations)
    train = TrainConfig(
        name=f"grok-{operation}",
        tokens=scale.steps * scale.batch * 4,
        model=dataclasses.replace(GROKKING, vocab_size=vocabulary, n_layers=scale.blocks, dropout=scale.dropout),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            weight_decay=scale.decay,
            beta2=0.98,
            eps=scale.eps,
            clip_norm=0.0,  # [ours]
            warmup_fraction=10 / scale.steps,
            warmup_from=0.0,  # [ours]
            schedule="linear",
            final_fraction=scale.final,
        ),
        data=DataConfig(
            name=operation, corpus="arithmetic", sequence_length=4, batch_size=scale.batch, arithmetic=equations
        ),
        probe=ProbeConfig(
            every=scale.steps // scale.probes,
            final_states=TargetConfig(),
            texts=TextsConfig(
                names=("train", "validation"),
                states=(f"layer_{scale.blocks - 1}",),  # before the final norm [B]
                metrics=(*TextsConfig().metrics, "effective_rank", "isoscore"),  # [ours]
                points=min(scale.points, most_points),
                neighbors=scale.neighbors,
            ),
        ),
        checkpoint=CheckpointConfig(every=scale.steps // 4),
    )
    grid = product({"data.arithmetic.train_fraction": scale.fractions, "data_seed": range(scale.seeds)})
    return sweep_config(train, grid)
