"""Measure how sharp the loss is around a member's weights, on the probe's documents."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from geometry.curvature import critical_sharpness, hessian_trace, top_eigenvalue
from olmo_jax import loss, model
from olmo_jax.config import ModelConfig
from olmo_jax.config.probe import SharpnessConfig

_SEED = 0  # of the random vectors, the same at every measurement


def measure_sharpness(
    config: SharpnessConfig, architecture: ModelConfig, tokens_NL: Any, lengths_N: Any, params: Any
) -> dict[str, Array]:
    """Return the sharpness of one member's mean loss on documents: float32 scalars by "sharpness/metric".

    Args:
      tokens_NL: documents, each after a BOS, padded on the right. lengths_N: their tokens without BOS and padding.
    """
    tokens_NL, lengths_N = jnp.asarray(tokens_NL)[: config.documents], jnp.asarray(lengths_N)[: config.documents]
    weights_NL = (jnp.arange(tokens_NL.shape[1] - 1)[None] < lengths_N[:, None]).astype(jnp.float32)
    # A head of two factors is one matrix here, as in every evaluation, so that sharpness doesn't depend on the factors.
    architecture, params = model.folded(architecture, params)

    def mean_loss(params: Any) -> Array:
        return loss.mean_loss(architecture, params, tokens_NL[:, :-1], tokens_NL[:, 1:], weights_NL)

    results = {"critical": critical_sharpness(mean_loss, params, jax.grad(mean_loss)(params))}
    key = jax.random.key(_SEED)
    if config.draws:
        trace, error = hessian_trace(mean_loss, params, key, config.draws)
        results |= {"trace": trace, "trace_standard_error": error}
    if config.lanczos_steps:
        results["top_eigenvalue"] = top_eigenvalue(mean_loss, params, key, config.lanczos_steps)
    return {f"sharpness/{name}": value.astype(jnp.float32) for name, value in results.items()}
