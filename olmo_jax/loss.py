"""Cross-entropy that never holds all logits: chunks of positions, the gradient formed as each chunk passes.

The logits of a small model are larger than the model, [B, L, V] against [V, D]. A chunk takes some positions of every
sequence, so that the batch axis stays where a mesh has put it, and its logits are used for the loss and for both
gradients before they are dropped: two matmuls more than the forward pass and no recomputation. Where the states are
bfloat16, W and the logits' gradient enter these matmuls as bfloat16 too; logits, softmax and sums are float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax.model import unembed

# Elements of one chunk's logits, 16 MiB in float32: enough for full matmuls, little beside a model's activations.
_CHUNK_ELEMENTS = 2**22


class Loss(NamedTuple):
    """Means over the weighted tokens, float32 scalars: what is minimised, and the cross-entropy in it (nats)."""

    objective: Array
    cross_entropy: Array


def cross_entropy(
    x_BLD: Array,
    w_VD: Array,
    targets_BL: Array,
    weights_BL: Array | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> Loss:
    """Mean next-token loss of final states against an unembedding.

    Args:
      x_BLD: final states. w_VD: unembedding. targets_BL: the token to predict at each position.
      weights_BL: weight of each position, 0 to leave it out; None counts each once.
      z_loss: weight of the squared log-partition added to the objective (PaLM, section 5).
      chunk: positions taken at a time; None chooses by size. It need not divide L.

    Differentiate `objective` with respect to x and w; `cross_entropy` is for reading and carries no gradient.
    """
    weights_BL = jnp.ones(targets_BL.shape, jnp.float32) if weights_BL is None else weights_BL
    objective, entropy = _mean_loss(x_BLD, w_VD, targets_BL, weights_BL, z_loss, _chunk_length(x_BLD, w_VD, chunk))
    return Loss(objective, jax.lax.stop_gradient(entropy))


def token_losses(x_BLD: Array, w_VD: Array, targets_BL: Array, chunk: int | None = None) -> Array:
    """Cross-entropy in nats at every position, `[B, L]` float32, for evaluation."""
    chunks = _split(_chunk_length(x_BLD, w_VD, chunk), x_BLD, targets_BL)
    losses_NBC = jax.lax.map(lambda c: _entropy(unembed(c[0], w_VD), c[1])[0], chunks)
    return _join(losses_NBC)[:, : targets_BL.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _mean_loss(
    x_BLD: Array, w_VD: Array, targets_BL: Array, weights_BL: Array, z_loss: float, chunk: int
) -> tuple[Array, Array]:
    def add(total, piece):
        x_BCD, targets_BC, weights_BC = piece
        entropy_BC, log_z_BC = _entropy(unembed(x_BCD, w_VD), targets_BC)
        return total + jnp.stack([jnp.sum(weights_BC * entropy_BC), jnp.sum(weights_BC * log_z_BC**2)]), None

    total, _ = jax.lax.scan(add, jnp.zeros(2), _split(chunk, x_BLD, targets_BL, weights_BL))
    entropy, z = total / jnp.sum(weights_BL)
    return entropy + z_loss * z, entropy


def _mean_loss_forward(x_BLD, w_VD, targets_BL, weights_BL, z_loss, chunk):
    scale = 1.0 / jnp.sum(weights_BL)

    def add(carry, piece):
        total, dw_VD = carry
        x_BCD, targets_BC, weights_BC = piece
        logits_BCV = unembed(x_BCD, w_VD)
        entropy_BC, log_z_BC = _entropy(logits_BCV, targets_BC)
        total += jnp.stack([jnp.sum(weights_BC * entropy_BC), jnp.sum(weights_BC * log_z_BC**2)])
        p_BCV = jnp.exp(logits_BCV - log_z_BC[..., None])
        hit_BCV = targets_BC[..., None] == jnp.arange(w_VD.shape[0])[None, None]
        slope_BC1 = (1.0 + 2.0 * z_loss * log_z_BC)[..., None]
        d_BCV = ((scale * weights_BC)[..., None] * (p_BCV * slope_BC1 - hit_BCV)).astype(x_BCD.dtype)
        dx_BCD = jnp.einsum("bcv,vd->bcd", d_BCV, w_VD.astype(x_BCD.dtype))
        dw_VD += jnp.einsum("bcv,bcd->vd", d_BCV, x_BCD, preferred_element_type=dw_VD.dtype)
        return (total, dw_VD), dx_BCD

    pieces = _split(chunk, x_BLD, targets_BL, weights_BL)
    (total, dw_VD), dx_NBCD = jax.lax.scan(add, (jnp.zeros(2), jnp.zeros_like(w_VD)), pieces)
    entropy, z = total * scale
    return (entropy + z_loss * z, entropy), (_join(dx_NBCD)[:, : x_BLD.shape[1]], dw_VD)


def _mean_loss_backward(z_loss, chunk, gradients, cotangents):
    dx_BLD, dw_VD = gradients
    of_objective, _ = cotangents
    return (of_objective * dx_BLD).astype(dx_BLD.dtype), of_objective * dw_VD, None, None


_mean_loss.defvjp(_mean_loss_forward, _mean_loss_backward)


def _entropy(logits_BCV: Array, targets_BC: Array) -> tuple[Array, Array]:
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    hit_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    return log_z_BC - hit_BC, log_z_BC


def _chunk_length(x_BLD: Array, w_VD: Array, chunk: int | None) -> int:
    length = x_BLD.shape[1]
    if chunk is None:
        chunk = _CHUNK_ELEMENTS // (x_BLD.shape[0] * w_VD.shape[0])
    return max(1, min(chunk, length))


def _split(chunk: int, *arrays: Array) -> tuple[Array, ...]:
    """[B, L, ...] -> [ceil(L / chunk), B, chunk, ...], padded with zeros (so with weight 0)."""

    def one(a: Array) -> Array:
        pad = -a.shape[1] % chunk
        a = jnp.pad(a, [(0, 0), (0, pad)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], -1, chunk, *a.shape[2:]), 1, 0)

    return tuple(one(a) for a in arrays)


def _join(a_NBC: Array) -> Array:
    """[n, B, chunk, ...] -> [B, n chunk, ...], the padding still there."""
    a = jnp.moveaxis(a_NBC, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])
