"""Comparison of our states with those of another implementation."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from olmo_jax import model
from olmo_jax.config.model import ModelConfig


def first_drift(
    config: ModelConfig,
    params: model.Params,
    tokens_BL: np.ndarray,
    reference: Mapping[str, np.ndarray],
    tolerance: float = 2e-4,
) -> tuple[str, float] | None:
    """Return the first states that differ from those of another implementation, and by how much.

    Args:
      reference: its states by our names, any of "embedding", "blocks_0", "blocks_1" and so on (after each block),
        "final_states", "logits".
      tolerance: largest difference allowed, as a fraction of the reference's range.

    Returns:
      Name and difference, as such a fraction, or None if none differs.

    Raises:
      ValueError: a name or shape that our model doesn't have.
    """
    output = model.apply(config, params, tokens_BL, layers=True)
    ours = {"embedding": model.embed(config, params, jnp.asarray(tokens_BL))}
    ours |= {f"blocks_{i}": x_BLD for i, x_BLD in enumerate(output.hidden.layers)}
    ours |= {"final_states": output.hidden.final_BLD, "logits": output.logits_BLV}
    if unknown := reference.keys() - ours.keys():
        raise ValueError(f"reference has the unknown names {', '.join(sorted(unknown))}; known are {', '.join(ours)}")
    for name, x in ours.items():
        if name in reference:
            theirs = np.asarray(reference[name], np.float64)
            if theirs.shape != x.shape:
                raise ValueError(f"reference['{name}'] has shape {theirs.shape}, but ours has {x.shape}")
            span = np.ptp(theirs) or 1.0
            difference = float(np.max(np.abs(np.asarray(x, np.float64) - theirs)) / span)
            if not difference <= tolerance:
                return name, difference
    return None
