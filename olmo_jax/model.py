"""OLMo-1's decoder: tokens in, final states and logits out.

Flax Linen is a thin layer here that names the parameters; everything outside calls the three pure functions `init`,
`hidden` and `apply`, which know one model and leave members to `jax.vmap`.

Shapes: B batch, L length, D model width, H heads, K head width, F hidden width, V vocabulary (padded).
Parameters are float32, projections 2-D `[in, out]`, embedding and unembedding `[V, D]`. Matmuls of the blocks run in
`config.compute_dtype`; norms, attention's softmax and logits are float32.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax.config import ModelConfig

Params = dict[str, Any]


class Hidden(NamedTuple):
    """States of a forward pass: after the final norm, and before it after each block (empty unless asked for)."""

    final_BLD: Array
    layers: tuple[Array, ...]


class Output(NamedTuple):
    """Logits over the padded vocabulary, float32, and the states they came from."""

    logits_BLV: Array
    hidden: Hidden


@functools.partial(jax.jit, static_argnames="config")
def init(config: ModelConfig, key: Array) -> Params:
    """Parameters of one model, a nested dict of float32 arrays, from a key made by `jax.random.key`.

    Truncated normal at 3 standard deviations (OLMo's cut-off): `init_std` everywhere, divided by sqrt(2 n_layers) where
    a matrix writes to the residual stream. The unembedding's is at most .3 / sqrt(D) [ours]: the final states have norm
    sqrt(D), so the logits start with a variance of at most .09 and the loss within .05 nats of ln V at any width.
    """
    return _Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.partial(jax.jit, static_argnames=("config", "layers"))
def hidden(config: ModelConfig, params: Params, tokens_BL: Array, layers: bool = False) -> Hidden:
    """States after the final norm and, with `layers`, after each block."""
    return _Decoder(config).apply({"params": params}, tokens_BL, layers)  # type: ignore[return-value]


@functools.partial(jax.jit, static_argnames=("config", "layers"))
def apply(config: ModelConfig, params: Params, tokens_BL: Array, layers: bool = False) -> Output:
    """Logits at every position, and the states. Training and evaluation use loss.py, which never holds all logits."""
    states = hidden(config, params, tokens_BL, layers)
    return Output(unembed(states.final_BLD, params["unembedding"]), states)


def unembed(x_BLD: Array, w_VD: Array) -> Array:
    """Logits x W^T in at least float32, the matmul in the dtype of x."""
    wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
    return jnp.einsum("bld,vd->blv", x_BLD, w_VD.astype(x_BLD.dtype), preferred_element_type=wide)


def layer_norm(x_BLD: Array, eps: float) -> Array:
    """OLMo-1's LayerNorm, with no scale and no bias, in float32; the result has the dtype of x."""
    x32_BLD = x_BLD.astype(jnp.float32)
    centred_BLD = x32_BLD - jnp.mean(x32_BLD, axis=-1, keepdims=True)
    variance_BL1 = jnp.mean(jnp.square(centred_BLD), axis=-1, keepdims=True)
    return (centred_BLD * jax.lax.rsqrt(variance_BL1 + eps)).astype(x_BLD.dtype)


def rotary(x_BLHK: Array, theta: float) -> Array:
    """Rotary position embedding (Su 2021), halves of a head paired as GPT-NeoX and OLMo do, angles in float32."""
    length, d_head = x_BLHK.shape[1], x_BLHK.shape[3]
    frequency_k = theta ** (-jnp.arange(0, d_head, 2, dtype=jnp.float32) / d_head)
    angle_1L1k = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequency_k)[None, :, None, :]
    sin, cos = jnp.sin(angle_1L1k), jnp.cos(angle_1L1k)
    low_BLHk, high_BLHk = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([low_BLHk * cos - high_BLHk * sin, high_BLHk * cos + low_BLHk * sin], axis=-1)
    return turned.astype(x_BLHK.dtype)


def parameter_count(config: ModelConfig) -> tuple[int, int]:
    """Parameters in all, and those without the embedding and the unembedding."""
    shapes = jax.eval_shape(functools.partial(init, config), jax.random.key(0))
    sizes = {k: sum(math.prod(x.shape) for x in jax.tree.leaves(v)) for k, v in shapes.items()}
    total = sum(sizes.values())
    return total, total - sizes["embedding"] - sizes["unembedding"]


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


class _Attention(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        heads = (*x_BLD.shape[:2], c.n_heads, c.d_head)
        into, out = _normal(c.init_std), _normal(c.init_std / math.sqrt(2 * c.n_layers))
        q_BLHK, k_BLHK, v_BLHK = (
            (x_BLD @ self.param(name, into, (c.d_model, c.d_model)).astype(x_BLD.dtype)).reshape(heads)
            for name in ("query", "key", "value")
        )
        q_BLHK, k_BLHK = rotary(q_BLHK, c.rope_theta), rotary(k_BLHK, c.rope_theta)
        mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BLHK, v_BLHK, is_causal=True)
        return mixed_BLHK.reshape(x_BLD.shape) @ self.param("out", out, (c.d_model, c.d_model)).astype(x_BLD.dtype)


class _MLP(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        into, out = _normal(c.init_std), _normal(c.init_std / math.sqrt(2 * c.n_layers))
        gate_DF = self.param("gate", into, (c.d_model, c.d_ff)).astype(x_BLD.dtype)
        up_DF = self.param("up", into, (c.d_model, c.d_ff)).astype(x_BLD.dtype)
        down_FD = self.param("down", out, (c.d_ff, c.d_model)).astype(x_BLD.dtype)
        return (nn.silu(x_BLD @ gate_DF) * (x_BLD @ up_DF)) @ down_FD


class _Block(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        eps = self.config.norm_eps
        x_BLD = x_BLD + _Attention(self.config, name="attention")(layer_norm(x_BLD, eps))
        return x_BLD + _MLP(self.config, name="mlp")(layer_norm(x_BLD, eps))


class _Decoder(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BL: Array, layers: bool = False) -> Hidden:
        c = self.config
        embedding_VD = self.param("embedding", _normal(c.init_std), (c.padded_vocab_size, c.d_model))
        # Declared here though used by the loss: one module names every parameter.
        unembedding_std = min(c.init_std, 0.3 / math.sqrt(c.d_model))
        self.param("unembedding", _normal(unembedding_std), (c.padded_vocab_size, c.d_model))
        x_BLD = embedding_VD[tokens_BL].astype(c.compute_dtype)
        states = []
        for i in range(c.n_layers):
            x_BLD = _Block(c, name=f"blocks_{i}")(x_BLD)
            states.append(x_BLD)
        return Hidden(layer_norm(x_BLD, c.norm_eps), tuple(states) if layers else ())
