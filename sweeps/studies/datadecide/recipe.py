"""The published recipe of DataDecide (Magnusson et al. 2025, arXiv 2504.11393): models, rates, batches and steps.

Sizes are from its released configurations; learning rate and batch follow the rules of OLMo's model ladder, which give
the published values (methods.md, section 7) [code].
"""

import math
from typing import NamedTuple

from olmo_jax.config import ModelConfig, OptimizerConfig
from olmo_jax.config.model import head_count
from sweeps.studies.paper_a.sizes import ladder_rate

SEQUENCE = 2048
CHECKPOINT_EVERY = 1250
# The seeds of initial parameters and of the order of the data, by the names that the results use.
SEEDS = {"default": 6198, "small aux 2": 14, "small aux 3": 15}

_TOKENS_PER_PARAMETER = 100
# The published last steps are this many steps beyond 100 tokens per parameter, in every size.
_MORE_STEPS = 10


class _Shape(NamedTuple):
    d_model: int
    n_layers: int
    n_heads: int


_SHAPES = {
    "4m": _Shape(64, 8, 8),
    "6m": _Shape(96, 8, 8),
    "8m": _Shape(128, 8, 8),
    "10m": _Shape(144, 8, 8),
    "14m": _Shape(192, 8, 8),
    "16m": _Shape(208, 8, 8),
    "20m": _Shape(192, 16, 8),
    "60m": _Shape(384, 16, 12),
    "90m": _Shape(528, 16, 12),
    "150m": _Shape(768, 12, 12),
}
SIZES = tuple(_SHAPES)


def model(size: str) -> ModelConfig:
    """Return the architecture: OLMo-1's block with RMSNorm, SwiGLU of hidden width 4 d, GPT-NeoX's vocabulary.

    All matrices start with a standard deviation of .02, truncated at 3 standard deviations.
    """
    shape = _SHAPES[size]
    return ModelConfig(
        vocab_size=50280,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_ff=4 * shape.d_model,
        context_length=SEQUENCE,
        norm="rms_norm",
        norm_eps=1e-6,
        scaled_init=False,
        compute_dtype="bfloat16",
    )


def batch_size(size: str) -> int:
    """Return the sequences of a batch, 160 (N / 108e6)^(2/3) rounded to a multiple of 32."""
    return 32 * max(1, round(160 * (head_count(model(size)) / 108e6) ** (2 / 3) / 32))


def steps(size: str) -> int:
    """Return the steps of the whole run, those of 100 tokens per parameter and ten more.

    Parameters are those of `head_count`, or from 150M on the number in the label, as the published last steps show.
    """
    label = float(size.removesuffix("m")) * 1e6
    count = label if label >= 150e6 else head_count(model(size))
    return math.ceil(_TOKENS_PER_PARAMETER * count / (batch_size(size) * SEQUENCE)) + _MORE_STEPS


def optimizer(size: str) -> OptimizerConfig:
    """Return the optimiser: warm-up from 0 over as many tokens as there are parameters, then a cosine to 1 %."""
    count = head_count(model(size))
    return OptimizerConfig(
        learning_rate=ladder_rate(count),
        weight_decay=0.05,
        warmup_fraction=count / (batch_size(size) * SEQUENCE) / steps(size),
        warmup_from=0.0,
        final_fraction=0.01,
    )
