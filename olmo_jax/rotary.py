"""Rotary position embedding (Su 2021), and the scaled frequencies of models for long contexts."""

import math

import jax.numpy as jnp
from jax import Array

from olmo_jax.config.rope import RopeScaling
from olmo_jax.execution.matmul import widened

UNSCALED = RopeScaling()


def rotary(
    x_BLHK: Array,
    theta: float,
    width: int | None = None,
    start: Array | int = 0,
    position_BL: Array | None = None,
    positions: int | None = None,
    scaling: RopeScaling = UNSCALED,
) -> Array:
    """Return x with rotary position embedding; the halves of a head are paired as in GPT-NeoX, Llama and OLMo.

    Angles are float32; the result has the dtype of x.

    Args:
      theta: base of the frequencies.
      width: how many of the K dimensions are rotated, counted from the first; None for all.
      start: position of the first of the L tokens.
      position_BL: position of each token, if they aren't consecutive; `start` is then 0. They are less than
        `positions`, or less than L if that is None.
      scaling: the scaling of the frequencies.
    """
    length, width = positions or x_BLHK.shape[1], width or x_BLHK.shape[3]
    frequency_k = frequencies(theta, width, scaling)
    position_L = (start + jnp.arange(length)).astype(jnp.float32)
    angle_1L1k = jnp.outer(position_L, frequency_k)[None, :, None, :]
    sin, cos = jnp.sin(angle_1L1k), jnp.cos(angle_1L1k)
    if scaling.kind == "yarn":
        sin, cos = sin * scaling.attention_factor, cos * scaling.attention_factor
    if position_BL is not None:  # from a table, since computing the sines of all tokens is slow on a CPU
        sin, cos = (x_1L1k[0][position_BL] for x_1L1k in (sin, cos))
    low_BLHk, high_BLHk = jnp.split(widened(x_BLHK[..., :width]), 2, axis=-1)
    rotated = jnp.concatenate([low_BLHk * cos - high_BLHk * sin, high_BLHk * cos + low_BLHk * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x_BLHK.dtype), x_BLHK[..., width:]], axis=-1)


def frequencies(theta: float, width: int, scaling: RopeScaling = UNSCALED) -> Array:
    """Return the angle by which each pair of dimensions turns from one position to the next, float32 `[width / 2]`.

    "llama3" is Llama 3.1's scaling, "yarn" that of Peng 2023 (section 3.2, "NTK-by-parts"); both as implemented in
    Hugging Face's transformers.
    """
    frequency_k = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling.kind == "none":
        return frequency_k
    slow_k = frequency_k / scaling.factor
    if scaling.kind == "linear":
        return slow_k
    if scaling.kind == "llama3":
        turns_k = scaling.original_length * frequency_k / (2 * math.pi)
        kept_k = jnp.clip((turns_k - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    else:
        first, last = (_pair_that_turns(turns, theta, width, scaling) for turns in (scaling.high, scaling.low))
        first, last = max(math.floor(first), 0), min(math.ceil(last), width - 1)
        kept_k = 1.0 - jnp.clip((jnp.arange(width // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    return kept_k * frequency_k + (1.0 - kept_k) * slow_k


def _pair_that_turns(turns: float, theta: float, width: int, scaling: RopeScaling) -> float:
    """Return the index, not rounded, of the pair that makes this many turns in the original context."""
    return width * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))
