"""When do small models saturate, and what makes them?

    olmo-jax plan --config=saturation:cpu
    olmo-jax run --config=saturation:cpu --workdir=runs/saturation

The argument is a scale, then `seeds=K` for K seeds of each configuration (5 by default; with fewer, hazards have no
intervals):

    smoke   takes seconds; its results mean nothing
    cpu     minutes on a laptop
    gpu     widths of Pythia's smallest models, for one GPU (not measured)

Pythia's architecture at small widths, trained for long, with every combination of parallel or sequential blocks, a
learning rate that decays to a tenth of the peak or to zero, single or half precision, weak or strong weight decay, and
width. Along each run it is recorded when the effective rank of the unembedding collapses and when the loss turns; the
report compares the hazards by factor, all else equal.

Claims it bears on: small models saturate, and their rank collapses (Godey et al., arXiv 2404.07647); Pythia-14M
saturates late and its sequential twin does not (paper A). Sizes and levels are ours.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from eval.config import DynamicsConfig, EvalConfig, QuantizeConfig
from olmo_jax.config import (
    CheckpointConfig,
    OptimizerConfig,
    ProbeConfig,
    TargetConfig,
    TrainConfig,
)
from olmo_jax.config.presets import PYTHIA
from sweeps.planning.grid import Grid, product, seeds
from sweeps.planning.plan import sweep_config
from sweeps.studies.argument import scale_and_seeds
from sweeps.studies.small import prose

_SEEDS, _LEAST_SEEDS = 5, 2
_CHECKPOINTS, _DOCUMENTS = 16, 16
_HEAD = 8  # width of a head


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes [ours]; `decays`, `floors`, `precisions`, `parallel` and `widths` are the levels of the factors."""

    widths: tuple[int, ...]
    layers: int
    vocabulary: int
    length: int
    batch: int
    steps: int
    rate: float
    megabytes: float
    tokens_per_domain: int
    decays: tuple[float, ...] = (0.01, 0.3)
    floors: tuple[float, ...] = (0.1, 0.0)
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    parallel: tuple[bool, ...] = (True, False)


SCALES = {
    "smoke": Scale((8, 16), 1, 280, 16, 4, 32, 3e-3, 0.4, 256, (0.3,), (0.0,), ("float32",)),
    # A high rate, at which the rank falls within minutes.
    "cpu": Scale((8, 16, 32), 2, 512, 64, 8, 1280, 3e-2, 8.0, 4096),
    "gpu": Scale((64, 128, 256), 6, 8192, 512, 32, 40_000, 1e-3, 2000.0, 32768),
}


def get_config(argument: str = "cpu") -> ConfigDict:
    name, count = scale_and_seeds(argument, "saturation.py", SCALES, _LEAST_SEEDS)
    count = count or (_SEEDS if name != "smoke" else 1)
    scale = SCALES[name]
    grid = seeds(_points(scale), count, ("init_seed", "data_seed"))
    # Nothing but the losses along the training, of several documents, since a rise needs a standard error.
    evaluation = EvalConfig(
        tokens_per_domain=scale.tokens_per_domain,
        tokens_per_document=scale.tokens_per_domain // _DOCUMENTS,
        quantize=QuantizeConfig(bits=()),
        # At a high rate, the rank falls early; what is left out is the fall from its value at random initialisation.
        dynamics=DynamicsConfig(collapse_after=0.1),
    )
    return sweep_config(_train(scale), grid, evaluation)


def _train(scale: Scale) -> TrainConfig:
    width = scale.widths[0]
    model = dataclasses.replace(
        PYTHIA["14m"],
        vocab_size=scale.vocabulary,
        pad_vocab_to=1,
        n_layers=scale.layers,
        context_length=scale.length,
        **_width(width),
    )
    return TrainConfig(
        name="small",
        tokens=scale.steps * scale.batch * scale.length,
        model=model,
        optimizer=OptimizerConfig(learning_rate=scale.rate),
        data=prose(scale),
        probe=ProbeConfig(
            every=scale.steps // _CHECKPOINTS,
            unembedding=TargetConfig(metrics=("effective_rank", "effective_rank_percent", "mean_cosine")),
            final_states=TargetConfig(),
        ),
        checkpoint=CheckpointConfig(every=scale.steps // _CHECKPOINTS),
    )


def _width(width: int) -> dict[str, Any]:
    return {"d_model": width, "n_heads": max(1, width // _HEAD), "d_ff": 4 * width}


def _points(scale: Scale) -> Grid:
    factors = {
        "model.parallel": scale.parallel,
        "model.compute_dtype": scale.precisions,
        "optimizer.final_fraction": scale.floors,
        "optimizer.weight_decay": scale.decays,
    }
    widths = [{f"model.{key}": value for key, value in _width(width).items()} for width in scale.widths]
    return [point | width for width in widths for point in product(factors)]
