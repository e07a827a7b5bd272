"""Causal attention in the form that is fastest on each backend; all forms agree within rounding.

Shapes: B batch, L length, H heads, G heads of keys and values (H a multiple of G), K head width, T rows of a block, S
keys that a block attends to. Scores and softmax are float32 (or wider), whatever the dtype of the heads.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from olmo_jax.execution.matmul import optimization_barrier, transposed

# With fewer rows per block, matmuls are too small to be fast; more blocks take too long to compile.
_MIN_ROWS, _MAX_BLOCKS = 64, 8


class Spans(NamedTuple):
    """What each token of a packed sequence attends to: integers `[B, L]`, places in the sequence.

    A token attends to the places from `context` up to, but excluding, `context_end`, and to those from `start` up to
    its own. Continuations of the same context share its places and have different starts; independent texts in one
    sequence share nothing. If there is no context, `context_end` equals `context`.
    """

    context_BL: Array | np.ndarray
    context_end_BL: Array | np.ndarray
    start_BL: Array | np.ndarray

    @property
    def position_BL(self) -> Array:
        """Return each token's position in its own text: the number of tokens before it that it attends to."""
        context_BL, end_BL, start_BL = map(jnp.asarray, self)
        return end_BL - context_BL + jnp.arange(start_BL.shape[1])[None] - start_BL

    @property
    def seen_B1LL(self) -> Array:
        """Return whether each token attends to each place."""
        context_BL1, end_BL1, start_BL1 = (jnp.asarray(x_BL)[..., None] for x_BL in self)
        place_11L = jnp.arange(start_BL1.shape[1])[None, None]
        in_context_BLL = (context_BL1 <= place_11L) & (place_11L < end_BL1)
        in_own_text_BLL = (start_BL1 <= place_11L) & (place_11L <= jnp.swapaxes(place_11L, 1, 2))
        return (in_context_BLL | in_own_text_BLL)[:, None]


def attended(places: int, window: int = 0, start: Array | int = 0, queries: int | None = None) -> Array:
    """Return whether each query attends to each place, `[queries, places]`: the last `window` up to its own; 0: all.

    The queries are at the places from `start` on; `queries` of None means one per place.
    """
    place_S, query_L = jnp.arange(places), start + jnp.arange(places if queries is None else queries)
    seen_LS = place_S[None] <= query_L[:, None]
    return seen_LS & (place_S[None] > query_L[:, None] - window) if window else seen_LS


def causal_attention(
    q_BLHK: Array, k_BLGK: Array, v_BLGK: Array, form: str, seen_B1LL: Array | None = None, window: int = 0
) -> Array:
    """Return softmax(q k^T / sqrt(K)) v over the positions up to and including each query's, `[B, L, H, K]`.

    Args:
      form: "dense" forms all scores; "blocked" takes blocks of rows with only the keys that they attend to, about half
        of the work, with a custom gradient (fastest on a CPU); "cudnn" is cuDNN's fused kernel.
      seen_B1LL: whether each position attends to each other one: always to itself and never to later ones. If given,
        `window` is ignored and cuDNN's kernel isn't used. None: to all within `window`.
      window: how many positions are attended to, counted back from the query's own; 0: all.
    """
    window = window if window < q_BLHK.shape[1] else 0
    if form == "blocked":
        repeats = q_BLHK.shape[2] // k_BLGK.shape[2]
        k_BLHK, v_BLHK = (jnp.repeat(x, repeats, axis=2) if repeats > 1 else x for x in (k_BLGK, v_BLGK))
        if seen_B1LL is not None:
            return _blocked_forward(q_BLHK, k_BLHK, v_BLHK, window, seen_B1LL)[0]
        return _blocked(q_BLHK, k_BLHK, v_BLHK, window)
    if seen_B1LL is not None:
        return jax.nn.dot_product_attention(q_BLHK, k_BLGK, v_BLGK, mask=seen_B1LL)
    implementation: Literal["cudnn", "xla"] = "cudnn" if form == "cudnn" else "xla"
    return jax.nn.dot_product_attention(
        q_BLHK,
        k_BLGK,
        v_BLGK,
        is_causal=True,
        implementation=implementation,
        local_window_size=(window - 1, 0) if window else None,
    )


def _blocks(length: int, window: int) -> list[tuple[int, int, int]]:
    """Return, for each block of rows, the first key that it attends to, its first row, and its end."""
    rows = max(_MIN_ROWS, -(-length // _MAX_BLOCKS))
    blocks = [(start, min(start + rows, length)) for start in range(0, length, rows)]
    return [(max(0, start - window + 1) if window else 0, start, stop) for start, stop in blocks]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _blocked(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, window: int) -> Array:
    return _blocked_forward(q_BLHK, k_BLHK, v_BLHK, window)[0]


def _blocked_forward(q_BLHK: Array, k_BLHK: Array, v_BLHK: Array, window: int, seen_B1LL: Array | None = None):
    q_BHLK, k_BHLK, v_BHLK = map(_heads_first, (q_BLHK, k_BLHK, v_BLHK))
    mixed, weights = [], []
    for first, start, stop in _blocks(q_BLHK.shape[1], window if seen_B1LL is None else 0):
        if seen_B1LL is None:
            seen = attended(stop - first, window, start - first, stop - start)[None, None]
        else:
            seen = seen_B1LL[:, :, start:stop, first:stop]
        e_BHTS, inverse_sum_BHT1 = _weights(q_BHLK[:, :, start:stop], k_BHLK[:, :, first:stop], seen)
        mixed.append(_matmul(e_BHTS, v_BHLK[:, :, first:stop]) * inverse_sum_BHT1)
        weights.append((e_BHTS, inverse_sum_BHT1))
    mixed_BHLK = jnp.concatenate(mixed, axis=2).astype(q_BLHK.dtype)
    return jnp.swapaxes(mixed_BHLK, 1, 2), (q_BHLK, k_BHLK, v_BHLK, weights)


def _weights(q_BHTK: Array, k_BHSK: Array, seen: Array) -> tuple[Array, Array]:
    """Return the unnormalised weights of the keys for each row of a block, and the inverse of their sum."""
    scores_BHTS = _matmul(q_BHTK, transposed(k_BHSK)) * _scale(q_BHTK)
    scores_BHTS = jnp.where(seen, scores_BHTS, -jnp.inf)
    e_BHTS = optimization_barrier(jnp.exp(scores_BHTS - jnp.max(scores_BHTS, axis=-1, keepdims=True)))
    return e_BHTS, 1.0 / jnp.sum(e_BHTS, axis=-1, keepdims=True)


def _blocked_backward(window: int, saved, dmixed_BLHK: Array) -> tuple[Array, Array, Array]:
    q_BHLK, k_BHLK, v_BHLK, weights = saved
    dmixed_BHLK = _heads_first(dmixed_BLHK)
    scale = _scale(q_BHLK)
    dq, dk, dv = [], [], []
    for (first, start, stop), (e_BHTS, inverse_sum_BHT1) in zip(_blocks(q_BHLK.shape[2], window), weights, strict=True):
        rows = (slice(None), slice(None), slice(start, stop))
        keys = (slice(None), slice(None), slice(first, stop))
        dweights_BHTS = _matmul(dmixed_BHLK[rows], transposed(v_BHLK[keys]))
        # Summed from these products rather than as mixed . dmixed, so that the gradient is exactly 0 for a single key.
        mean_BHT1 = jnp.sum(e_BHTS * dweights_BHTS, axis=-1, keepdims=True) * inverse_sum_BHT1
        ds_BHTS = optimization_barrier((e_BHTS * (dweights_BHTS - mean_BHT1)) * (inverse_sum_BHT1 * scale))
        dq.append(_matmul(ds_BHTS, k_BHLK[keys]))
        dk.append(_after(first, _matmul(transposed(ds_BHTS), q_BHLK[rows])))
        inverse_sum_BHT1 = inverse_sum_BHT1.astype(dmixed_BHLK.dtype)
        dv.append(_after(first, _matmul(transposed(e_BHTS), dmixed_BHLK[rows] * inverse_sum_BHT1)))
    gradients_BHLK = jnp.concatenate(dq, axis=2), _sum_over_blocks(dk), _sum_over_blocks(dv)
    return tuple(jnp.swapaxes(d.astype(q_BHLK.dtype), 1, 2) for d in gradients_BHLK)  # type: ignore[return-value]


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _after(first: int, part_BHSK: Array) -> Array:
    """Return the gradients of keys with zeros for the `first` keys before them."""
    return jnp.pad(part_BHSK, ((0, 0), (0, 0), (first, 0), (0, 0))) if first else part_BHSK


def _sum_over_blocks(parts: Sequence[Array]) -> Array:
    """Return the sum of arrays `[B, H, S, K]` of growing S, aligned at the first key."""
    total_BHSK, *longer = parts
    for part_BHSK in longer:
        total_BHSK = part_BHSK.at[:, :, : total_BHSK.shape[2]].add(total_BHSK)
    return total_BHSK


def _matmul(a: Array, b: Array) -> Array:
    """Return the batched matmul, computed in the dtype of b, with a result of at least float32."""
    return jnp.matmul(a.astype(b.dtype), b, preferred_element_type=jnp.promote_types(b.dtype, jnp.float32))


def _heads_first(x_BLHK: Array) -> Array:
    return optimization_barrier(jnp.swapaxes(x_BLHK, 1, 2))


def _scale(q: Array) -> float:
    return 1.0 / math.sqrt(q.shape[-1])
