"""The layers of a decoder block, as Flax modules that name and create their parameters: norms, attention, MLP.

Shapes: B batch, L length, D model width, H heads, G heads of keys and values, K head width, k half of the rotated part
of a head, F hidden width, S positions of a cache.
Matmuls run in the dtype of the states; norms, rotary embedding and attention's softmax are float32. Flax is a thin
layer here: model.py calls these modules from pure functions.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax.config.model import ModelConfig
from olmo_jax.execution.attention import causal_attention
from olmo_jax.execution.matmul import linear
from olmo_jax.execution.plan import ExecutionPlan


class Packing(NamedTuple):
    """The position of each token of packed sequences, and whether it attends to each place of its sequence."""

    position_BL: Array
    seen_B1LL: Array


def layer_norm(x_BLD: Array, eps: float) -> Array:
    """Return OLMo-1's LayerNorm of x, with no scale and no bias, in float32; the result has the dtype of x."""
    x32_BLD = x_BLD.astype(jnp.float32)
    centred_BLD = x32_BLD - jnp.mean(x32_BLD, axis=-1, keepdims=True)
    return rms_norm(centred_BLD, eps).astype(x_BLD.dtype)


def rms_norm(x_BLD: Array, eps: float) -> Array:
    """Return x divided by its root mean square, with no scale, in float32; the result has the dtype of x."""
    x32_BLD = x_BLD.astype(jnp.float32)
    square_BL1 = jnp.mean(jnp.square(x32_BLD), axis=-1, keepdims=True)
    return (x32_BLD * jax.lax.rsqrt(square_BL1 + eps)).astype(x_BLD.dtype)


def rotary(
    x_BLHK: Array,
    theta: float,
    width: int | None = None,
    start: Array | int = 0,
    position_BL: Array | None = None,
    positions: int | None = None,
) -> Array:
    """Return x with rotary position embedding (Su 2021), halves of a head paired as GPT-NeoX and OLMo do.

    Angles are float32; the result has the dtype of x.

    Args:
      width: how many of the K dimensions are rotated, counted from the first; None for all.
      start: position of the first of the L tokens.
      position_BL: position of each token, if they aren't consecutive; `start` is then 0. They are less than
        `positions`, or less than L if that is None.
    """
    length, width = positions or x_BLHK.shape[1], width or x_BLHK.shape[3]
    frequency_k = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    position_L = (start + jnp.arange(length)).astype(jnp.float32)
    angle_1L1k = jnp.outer(position_L, frequency_k)[None, :, None, :]
    sin, cos = jnp.sin(angle_1L1k), jnp.cos(angle_1L1k)
    if position_BL is not None:  # from a table, since computing the sines of all tokens is slow on a CPU
        sin, cos = (x_1L1k[0][position_BL] for x_1L1k in (sin, cos))
    low_BLHk, high_BLHk = jnp.split(x_BLHK[..., :width].astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([low_BLHk * cos - high_BLHk * sin, high_BLHk * cos + low_BLHk * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x_BLHK.dtype), x_BLHK[..., width:]], axis=-1)


class Norm(nn.Module):
    """The norm that the configuration names, with its scale and bias if it has them."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        if c.norm == "layer_norm":
            return layer_norm(x_BLD, c.norm_eps)
        scale_D = self.param("scale", nn.initializers.ones, x_BLD.shape[-1:])
        x32_BLD = x_BLD.astype(jnp.float32)
        if c.norm == "rms_norm":
            return (rms_norm(x32_BLD, c.norm_eps) * scale_D[None, None]).astype(x_BLD.dtype)
        bias_D = self.param("bias", nn.initializers.zeros, x_BLD.shape[-1:])
        return (layer_norm(x32_BLD, c.norm_eps) * scale_D[None, None] + bias_D[None, None]).astype(x_BLD.dtype)


def truncated_normal(std: float) -> nn.initializers.Initializer:
    """Return the initializer of a normal distribution truncated at 3 standard deviations; `std` is that before it."""
    return nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


def _project(module: Any, name: str, x_BLI: Array, outputs: int, std: float, bias: bool) -> Array:
    """Return x W, plus b if `bias`; the parameters are `<name>` and `<name>_bias` of the module."""
    module.sow("inputs", name, x_BLI)  # stored only if `block_inputs` asks for it
    w_IO = module.param(name, truncated_normal(std), (x_BLI.shape[-1], outputs))
    y_BLO = x_BLI @ w_IO.astype(x_BLI.dtype) if module.compute.gathered else linear(x_BLI, w_IO)
    if bias:
        y_BLO += module.param(f"{name}_bias", nn.initializers.zeros, (outputs,)).astype(x_BLI.dtype)[None, None]
    return y_BLO


class Attention(nn.Module):
    """Causal self-attention; with `last`, only the last position has a query."""

    config: ModelConfig
    compute: ExecutionPlan
    last: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, start: Array | int, past: tuple[Array, Array] | None, packing: Packing | None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Return attention's output, and the keys and values read: those of x or, with `past`, the updated cache."""
        c = self.config
        queried_BLD = x_BLD[:, -1:] if self.last else x_BLD

        def heads(name: str, count: int, x_BLD: Array = x_BLD) -> Array:
            x_BLE = _project(self, name, x_BLD, count * c.d_head, c.init_std, c.attention_bias)
            if c.clip_qkv:
                x_BLE = jnp.clip(x_BLE, -c.clip_qkv, c.clip_qkv)
            if c.qk_norm and name != "value":
                x_BLE = Norm(c, name=f"{name}_norm")(x_BLE)
            return x_BLE.reshape(*x_BLD.shape[:2], count, c.d_head)

        q_BLHK = heads("query", c.n_heads, queried_BLD)
        k_BLGK, v_BLGK = heads("key", c.kv_heads), heads("value", c.kv_heads)
        if c.positions == "rotary":
            length, queries = x_BLD.shape[1], queried_BLD.shape[1]
            if packing is None:
                q_BLHK = rotary(q_BLHK, c.rope_theta, c.rotary_width, start + length - queries)
                k_BLGK = rotary(k_BLGK, c.rope_theta, c.rotary_width, start)
            else:
                position_BL = packing.position_BL
                q_BLHK = rotary(q_BLHK, c.rope_theta, c.rotary_width, 0, position_BL[:, -queries:], length)
                k_BLGK = rotary(k_BLGK, c.rope_theta, c.rotary_width, 0, position_BL, length)
        if past is None:
            kept = k_BLGK, v_BLGK
            seen_B1LL = None if packing is None else packing.seen_B1LL
            if self.last:  # which attends to all positions that spans don't exclude
                seen_B11L = None if seen_B1LL is None else seen_B1LL[:, :, -1:]
                mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BLGK, v_BLGK, mask=seen_B11L)
            else:
                mixed_BLHK = causal_attention(q_BLHK, k_BLGK, v_BLGK, self.compute.attention, seen_B1LL)
        else:
            k_BSGK, v_BSGK = (
                jax.lax.dynamic_update_slice_in_dim(cache_BSGK, new_BLGK, start, axis=1)
                for cache_BSGK, new_BLGK in zip(past, (k_BLGK, v_BLGK), strict=True)
            )
            kept = k_BSGK, v_BSGK
            place_S, position_L = jnp.arange(k_BSGK.shape[1]), start + jnp.arange(x_BLD.shape[1])
            seen_11LS = (place_S[None] <= position_L[:, None])[None, None]
            mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BSGK, v_BSGK, mask=seen_11LS)
        out_std = c.init_std / math.sqrt(2 * c.n_layers)
        return _project(self, "out", mixed_BLHK.reshape(queried_BLD.shape), c.d_model, out_std, c.attention_bias), kept


class MLP(nn.Module):
    """The feed-forward network of a block, gated (SwiGLU) or not (GELU)."""

    config: ModelConfig
    compute: ExecutionPlan

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        out_std = c.init_std / math.sqrt(2 * c.n_layers)
        if c.mlp == "swiglu":
            gate_BLF = nn.silu(_project(self, "gate", x_BLD, c.d_ff, c.init_std, c.mlp_bias))
            h_BLF = gate_BLF * _project(self, "up", x_BLD, c.d_ff, c.init_std, c.mlp_bias)
        else:
            h_BLF = nn.gelu(_project(self, "up", x_BLD, c.d_ff, c.init_std, c.mlp_bias), approximate=False)
        return _project(self, "down", h_BLF, c.d_model, out_std, c.mlp_bias)


class Block(nn.Module):
    """Attention and MLP with their norms and dropout (where `train`), added to the residual stream.

    The arguments of a call are the states, the position of the first one, the block's cache or None, and the packing
    or None. It returns the states after the block, and the keys and values that attention read.
    """

    config: ModelConfig
    compute: ExecutionPlan = ExecutionPlan("dense")
    train: bool = False
    last: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, start: Array | int, past: tuple[Array, Array] | None, packing: Packing | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        c = self.config
        before = c.norm_at == "before"
        attention_norm, mlp_norm = Norm(c, name="attention_norm"), Norm(c, name="mlp_norm")
        drop = nn.Dropout(c.dropout, deterministic=not self.train)

        added_BLD, kept = Attention(c, self.compute, self.last, name="attention")(
            attention_norm(x_BLD) if before else x_BLD, start, past, packing
        )
        x_BLD = x_BLD[:, -1:] if self.last else x_BLD
        attended_BLD = x_BLD + drop(added_BLD if before else attention_norm(added_BLD))
        read_BLD = x_BLD if c.parallel else attended_BLD
        added_BLD = MLP(c, self.compute, name="mlp")(mlp_norm(read_BLD) if before else read_BLD)
        return attended_BLD + drop(added_BLD if before else mlp_norm(added_BLD)), kept
