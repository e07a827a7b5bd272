"""Cross-entropy that never holds all logits: it works on chunks of tokens and tiles of the vocabulary.

The logits of a small model are larger than the model, [B, L, V] against [V, D]. A chunk takes some positions of every
sequence, so that the batch axis keeps its sharding. Its logits are used for the loss and for both gradients before they
are freed, which takes two matmuls more than the forward pass and no recomputation. On a CPU a chunk's logits are
computed and used in tiles of some rows of W, which stay in the CPU's caches. If the states are bfloat16, W and the
logits' gradient enter these matmuls as bfloat16 too; logits, softmax and sums are float32.

Shapes: N tokens of a chunk, C rows of W in a tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax.config import ModelConfig
from olmo_jax.execution.matmul import optimization_barrier, transposed
from olmo_jax.model import Params, hidden, unembed, unembedding

# Logits held at a time in training: on a CPU 32 MiB in float32, in tiles of 4,096 rows of W that fit in its caches; on
# an accelerator 1 GiB, enough for efficient matmuls and little compared with its memory. In evaluation 16 MiB.
_CPU_LOGITS, _CPU_TILE = 2**23, 4096
_LOGITS, _EVALUATION_LOGITS = 2**28, 2**22


class Loss(NamedTuple):
    """Weighted means over the tokens, float32 scalars: the objective, and the cross-entropy in it (nats)."""

    objective: Array
    cross_entropy: Array


class _Pieces(NamedTuple):
    """Positions of each sequence in a chunk, and rows of W in a tile."""

    positions: int
    rows: int


def cross_entropy(
    x_BLD: Array,
    w_VD: Array,
    targets_BL: Array,
    weights_BL: Array | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
    tile: int | None = None,
    members: int = 1,
) -> Loss:
    """Return the mean next-token loss of final states under an unembedding.

    Args:
      x_BLD: final states. w_VD: unembedding. targets_BL: the token to predict at each position.
      weights_BL: weight of each position, 0 to leave it out; None counts each once.
      z_loss: weight of the squared log-partition added to the objective (PaLM, section 5).
      chunk: positions taken at a time; None chooses by size. It need not divide L.
      tile: rows of W taken at a time; None chooses by backend. It need not divide V. If the rows of W are sharded over
        devices, it must be V.
      members: how many members compute their loss side by side under `vmap`; used only to choose `chunk`.

    Differentiate `objective` with respect to x and w; `cross_entropy` is for logging and carries no gradient.
    """
    weights_BL = jnp.ones(targets_BL.shape, jnp.float32) if weights_BL is None else weights_BL
    pieces = _pieces(x_BLD, w_VD, chunk, tile, members)
    objective, entropy = _mean_loss(x_BLD, w_VD, targets_BL, weights_BL, z_loss, pieces)
    return Loss(objective, jax.lax.stop_gradient(entropy))


def mean_loss(
    architecture: ModelConfig, params: Params, inputs_BL: Array, targets_BL: Array, weights_BL: Array
) -> Array:
    """Return a model's mean loss over positions, in nats, with activations in float32.

    Args:
      weights_BL: weight of each position, 0 to leave it out.
    """
    exact = dataclasses.replace(architecture, compute_dtype="float32")
    losses_BL = token_losses(hidden(exact, params, inputs_BL).final_BLD, unembedding(params), targets_BL)
    return jnp.sum(losses_BL * weights_BL) / jnp.sum(weights_BL)


def token_losses(x_BLD: Array, w_VD: Array, targets_BL: Array, chunk: int | None = None) -> Array:
    """Return the cross-entropy in nats at every position, `[B, L]` float32, for evaluation."""
    return _by_position(x_BLD, w_VD, targets_BL, chunk, _entropy)


def token_scores(x_BLD: Array, w_VD: Array, targets_BL: Array, chunk: int | None = None) -> tuple[Array, Array]:
    """Return what `token_losses` does, and whether the target is the most likely token, `[B, L]` of 0 and 1."""

    def both(logits_BCV: Array, targets_BC: Array) -> tuple[Array, Array]:
        right_BC = jnp.argmax(logits_BCV, axis=-1) == targets_BC
        return _entropy(logits_BCV, targets_BC), right_BC.astype(jnp.float32)

    return _by_position(x_BLD, w_VD, targets_BL, chunk, both)


def _entropy(logits_BCV: Array, targets_BC: Array) -> Array:
    hit_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BCV, axis=-1) - hit_BC


def _by_position(x_BLD: Array, w_VD: Array, targets_BL: Array, chunk: int | None, score: Callable[..., Any]) -> Any:
    """Return `score(logits, targets)` of every position, computed for some positions of all sequences at a time."""

    def one(piece: tuple[Array, Array]) -> Any:
        x_BCD, targets_BC = piece
        return score(unembed(x_BCD, w_VD), targets_BC)

    if chunk is None:
        chunk = _EVALUATION_LOGITS // (x_BLD.shape[0] * w_VD.shape[0])
    chunk = max(1, min(chunk, x_BLD.shape[1]))
    values = jax.lax.map(one, _split(chunk, x_BLD, targets_BL))
    return jax.tree.map(lambda a_nBC: _join(a_nBC)[:, : targets_BL.shape[1]], values)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _mean_loss(
    x_BLD: Array, w_VD: Array, targets_BL: Array, weights_BL: Array, z_loss: float, pieces: _Pieces
) -> tuple[Array, Array]:
    def add(total, piece):
        x_ND, targets_N, weights_N = (_flat(a) for a in piece)
        read, _ = _read(x_ND, w_VD, targets_N, pieces.rows, keep=False)
        return total + _sums(read, weights_N), None

    total, _ = jax.lax.scan(add, jnp.zeros(2), _split(pieces.positions, x_BLD, targets_BL, weights_BL))
    entropy, z = total / jnp.sum(weights_BL)
    return entropy + z_loss * z, entropy


def _mean_loss_forward(x_BLD, w_VD, targets_BL, weights_BL, z_loss, pieces):
    scale = 1.0 / jnp.sum(weights_BL)

    def add(carry, piece):
        total, dw_VD = carry
        x_ND, targets_N, weights_N = (_flat(a) for a in piece)
        read, logits = _read(x_ND, w_VD, targets_N, pieces.rows, keep=True)
        gradient_of = functools.partial(_logit_gradient, read, targets_N, scale * weights_N, z_loss)
        dx_ND, dw_VD = _gradients(x_ND, w_VD, logits, gradient_of, dw_VD, pieces.rows)
        return (total + _sums(read, weights_N), dw_VD), dx_ND.reshape(piece[0].shape)

    chunks = _split(pieces.positions, x_BLD, targets_BL, weights_BL)
    (total, dw_VD), dx_nBCD = jax.lax.scan(add, (jnp.zeros(2), jnp.zeros_like(w_VD)), chunks)
    entropy, z = total * scale
    return (entropy + z_loss * z, entropy), (_join(dx_nBCD)[:, : x_BLD.shape[1]], dw_VD)


def _mean_loss_backward(z_loss, pieces, gradients, cotangents):
    dx_BLD, dw_VD = gradients
    objective_cotangent, _ = cotangents
    return (objective_cotangent * dx_BLD).astype(dx_BLD.dtype), objective_cotangent * dw_VD, None, None


_mean_loss.defvjp(_mean_loss_forward, _mean_loss_backward)


class _Read(NamedTuple):
    """For each token of a chunk: the log of the sum of the exponentials of its logits, and the target's logit."""

    log_z_N: Array
    hit_N: Array


def _read(x_ND: Array, w_VD: Array, targets_N: Array, rows: int, keep: bool) -> tuple[_Read, list[Array]]:
    """Run the first pass over the tiles; with `keep`, also return their logits."""

    def tile(carry, start, size, _):
        max_N, sum_N, hit_N = carry
        logits_NC = unembed(x_ND[None], jax.lax.dynamic_slice_in_dim(w_VD, start, size))[0]
        new_max_N = jnp.maximum(max_N, jnp.max(logits_NC, axis=1))
        sum_N = sum_N * jnp.exp(max_N - new_max_N) + jnp.sum(jnp.exp(logits_NC - new_max_N[:, None]), axis=1)
        index_N = targets_N - start
        target_logit_N = jnp.take_along_axis(logits_NC, jnp.clip(index_N, 0, size - 1)[:, None], axis=1)[:, 0]
        hit_N = jnp.where((index_N >= 0) & (index_N < size), target_logit_N, hit_N)
        return (new_max_N, sum_N, hit_N), logits_NC if keep else None

    zero_N = jnp.zeros(x_ND.shape[0], jnp.promote_types(x_ND.dtype, jnp.float32))
    (max_N, sum_N, hit_N), logits = _over_tiles(tile, (zero_N - jnp.inf, zero_N, zero_N), len(w_VD), rows)
    return _Read(max_N + jnp.log(sum_N), hit_N), logits


def _gradients(
    x_ND: Array, w_VD: Array, logits: list[Array], gradient_of: Callable[..., Array], dw_VD: Array, rows: int
) -> tuple[Array, Array]:
    """Run the second pass: return the gradient of the chunk's states, and `dw_VD` plus the gradient of W."""

    def tile(carry, start, size, logits_NC):
        dx_ND, dw_VD = carry
        d_NC = optimization_barrier(gradient_of(logits_NC, start).astype(x_ND.dtype))
        w_CD = jax.lax.dynamic_slice_in_dim(w_VD, start, size).astype(x_ND.dtype)
        dx_ND += jnp.matmul(d_NC, w_CD, preferred_element_type=dx_ND.dtype)
        dw_CD = jnp.matmul(transposed(d_NC), x_ND, preferred_element_type=dw_VD.dtype)
        dw_CD += jax.lax.dynamic_slice_in_dim(dw_VD, start, size)
        return (dx_ND, jax.lax.dynamic_update_slice_in_dim(dw_VD, dw_CD, start, axis=0)), None

    dx_ND = jnp.zeros(x_ND.shape, jnp.promote_types(x_ND.dtype, jnp.float32))
    (dx_ND, dw_VD), _ = _over_tiles(tile, (dx_ND, dw_VD), len(w_VD), rows, logits)
    return dx_ND.astype(x_ND.dtype), dw_VD


def _logit_gradient(
    read: _Read, targets_N: Array, scale_N: Array, z_loss: float, logits_NC: Array, start: Array | int
) -> Array:
    p_NC = jnp.exp(logits_NC - read.log_z_N[:, None])
    hit_NC = targets_N[:, None] == (start + jnp.arange(logits_NC.shape[1]))[None]
    return (scale_N * (1.0 + 2.0 * z_loss * read.log_z_N))[:, None] * p_NC - scale_N[:, None] * hit_NC


def _sums(read: _Read, weights_N: Array) -> Array:
    entropy_N = read.log_z_N - read.hit_N
    return jnp.stack([jnp.sum(weights_N * entropy_N), jnp.sum(weights_N * read.log_z_N**2)])


def _over_tiles(
    tile: Callable[..., Any], carry: Any, vocabulary: int, rows: int, kept: list[Array] | None = None
) -> tuple[Any, list[Array]]:
    """Apply `tile(carry, start, size, kept)` to all rows of W: whole tiles in a loop, then the remaining rows.

    Returns the carry and a list of outputs: those of the whole tiles, stacked, and that of the remaining rows. `kept`
    has the same form.
    """
    whole, rest = divmod(vocabulary, rows)
    kept_whole, kept_rest = (kept[0], kept[-1]) if kept else (None, None)

    def one(carry, tile_and_kept):
        i, piece = tile_and_kept
        return tile(carry, i * rows, rows, piece)

    if whole == 1:  # needs neither a loop nor a slice
        carry, out = tile(carry, 0, rows, kept_whole)
    else:
        carry, out = jax.lax.scan(one, carry, (jnp.arange(whole), kept_whole))
    outputs = [out]
    if rest:
        carry, out = tile(carry, whole * rows, rest, kept_rest)
        outputs.append(out)
    return carry, outputs


def _pieces(x_BLD: Array, w_VD: Array, chunk: int | None, tile: int | None, members: int) -> _Pieces:
    length, cpu = x_BLD.shape[1], jax.default_backend() == "cpu"
    if chunk is None:
        chunk = (_CPU_LOGITS if cpu else _LOGITS // members) // (x_BLD.shape[0] * w_VD.shape[0])
        chunk = even_chunk(length, max(1, min(chunk, length)))
    if tile is None:
        tile = _CPU_TILE if cpu else w_VD.shape[0]
    return _Pieces(max(1, min(chunk, length)), max(1, min(tile, w_VD.shape[0])))


def even_chunk(length: int, most: int) -> int:
    """Return positions per chunk, at most `most`, with little padding: a large divisor of L, else equal shares."""
    divisors = [c for c in range(1, most + 1) if length % c == 0 and 4 * c >= 3 * most]
    return max(divisors, default=math.ceil(length / math.ceil(length / most)))


def _split(chunk: int, *arrays: Array) -> tuple[Array, ...]:
    """Reshape [B, L, ...] to [ceil(L / chunk), B, chunk, ...], padded with zeros (so with weight 0)."""

    def one(a: Array) -> Array:
        pad = -a.shape[1] % chunk
        a = jnp.pad(a, [(0, 0), (0, pad)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)

    return tuple(one(a) for a in arrays)


def _join(a_nBC: Array) -> Array:
    """Reshape [n, B, chunk, ...] to [B, n chunk, ...], padding included."""
    a = jnp.moveaxis(a_nBC, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])


def _flat(a_BC: Array) -> Array:
    return a_BC.reshape(-1, *a_BC.shape[2:])
