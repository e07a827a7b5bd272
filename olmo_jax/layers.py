"""The layers of a decoder block, as Flax modules that name and create their parameters: norms, attention, MLP.

Shapes: B batch, L length, D model width, H heads, G heads of keys and values, K head width, F hidden width, S positions
of a cache.
Matmuls run in the dtype of the states; norms, rotary embedding and attention's softmax are float32. Flax is a thin
layer here: model.py calls these modules from pure functions.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax.config.model import Layer, ModelConfig
from olmo_jax.execution.attention import attended, causal_attention
from olmo_jax.execution.matmul import linear, widened
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.rotary import rotary


class Packing(NamedTuple):
    """The position of each token of packed sequences, and whether it attends to each place of its sequence."""

    position_BL: Array
    seen_B1LL: Array

    def seen_within(self, window: int) -> Array:
        """Return what each token attends to if it reaches only the last `window` tokens of its text; 0: all."""
        if not window:
            return self.seen_B1LL
        distance_BLL = self.position_BL[:, :, None] - self.position_BL[:, None]
        return self.seen_B1LL & (distance_BLL < window)[:, None]


def layer_norm(x_BLD: Array, eps: float) -> Array:
    """Return OLMo-1's LayerNorm of x, with no scale and no bias, in float32 or wider; the result has the dtype of x."""
    x32_BLD = widened(x_BLD)
    centred_BLD = x32_BLD - jnp.mean(x32_BLD, axis=-1, keepdims=True)
    return rms_norm(centred_BLD, eps).astype(x_BLD.dtype)


def rms_norm(x_BLD: Array, eps: float) -> Array:
    """Return x divided by its root mean square, with no scale, in float32 or wider; the result has the dtype of x."""
    x32_BLD = widened(x_BLD)
    square_BL1 = jnp.mean(jnp.square(x32_BLD), axis=-1, keepdims=True)
    return (x32_BLD * jax.lax.rsqrt(square_BL1 + eps)).astype(x_BLD.dtype)


class Norm(nn.Module):
    """The norm that the configuration names, over the last axis, with its scale and bias if it has them."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, shape = self.config, (1,) * (x.ndim - 1) + x.shape[-1:]
        if c.norm == "layer_norm":
            return layer_norm(x, c.norm_eps)
        if c.norm_plus_one:
            scale = 1.0 + self.param("scale", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
        else:
            scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(shape)
        x32 = widened(x)
        if c.norm == "rms_norm":
            return (rms_norm(x32, c.norm_eps) * scale).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
        return (layer_norm(x32, c.norm_eps) * scale + bias).astype(x.dtype)


def truncated_normal(std: float) -> nn.initializers.Initializer:
    """Return the initializer of a normal distribution with standard deviation `std`, truncated at 3 `std`."""
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
    layer: Layer
    compute: ExecutionPlan
    last: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, start: Array | int, past: tuple[Array, Array] | None, packing: Packing | None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Return attention's output, and the keys and values read: those of x or, with `past`, the updated cache."""
        c, window = self.config, self.layer.window
        queried_BLD = x_BLD[:, -1:] if self.last else x_BLD
        length = x_BLD.shape[1]

        def heads(name: str, count: int, x_BLD: Array = x_BLD) -> Array:
            x_BLE = _project(self, name, x_BLD, count * c.d_head, c.init_std, c.attention_bias)
            if c.clip_qkv:
                x_BLE = jnp.clip(x_BLE, -c.clip_qkv, c.clip_qkv)
            normed = c.qk_norm and name != "value"
            if normed and not c.qk_norm_by_head:
                x_BLE = Norm(c, name=f"{name}_norm")(x_BLE)
            x_BLHK = x_BLE.reshape(*x_BLD.shape[:2], count, c.d_head)
            return Norm(c, name=f"{name}_head_norm")(x_BLHK) if normed and c.qk_norm_by_head else x_BLHK

        def rotated(x_BLHK: Array) -> Array:
            theta, scaling, first = self.layer.rope_theta, self.layer.scaling, length - x_BLHK.shape[1]
            if packing is None:
                return rotary(x_BLHK, theta, c.rotary_width, start + first, scaling=scaling)
            return rotary(x_BLHK, theta, c.rotary_width, 0, packing.position_BL[:, first:], length, scaling)

        q_BLHK = heads("query", c.n_heads, queried_BLD)
        k_BLGK, v_BLGK = heads("key", c.kv_heads), heads("value", c.kv_heads)
        if self.layer.rope_theta:
            q_BLHK, k_BLGK = rotated(q_BLHK), rotated(k_BLGK)
        if c.score_width:  # attention itself divides by the square root of the head's width
            q_BLHK = q_BLHK * jnp.asarray(math.sqrt(c.d_head / c.score_width), q_BLHK.dtype)
        if past is None:
            kept = k_BLGK, v_BLGK
            seen_B1LL = None if packing is None else packing.seen_within(window)
            if self.last:  # this position attends to all that neither spans nor the window exclude
                if seen_B1LL is None and window:
                    seen_B1LL = attended(length, window)[None, None]
                seen_B11L = None if seen_B1LL is None else seen_B1LL[:, :, -1:]
                mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BLGK, v_BLGK, mask=seen_B11L)
            else:
                mixed_BLHK = causal_attention(q_BLHK, k_BLGK, v_BLGK, self.compute.attention, seen_B1LL, window)
        else:
            k_BSGK, v_BSGK = (
                jax.lax.dynamic_update_slice_in_dim(cache_BSGK, new_BLGK, start, axis=1)
                for cache_BSGK, new_BLGK in zip(past, (k_BLGK, v_BLGK), strict=True)
            )
            kept = k_BSGK, v_BSGK
            seen_11LS = attended(k_BSGK.shape[1], window, start, length)[None, None]
            mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BSGK, v_BSGK, mask=seen_11LS)
        mixed_BLE = mixed_BLHK.reshape(*mixed_BLHK.shape[:2], c.n_heads * c.d_head)
        bias = c.attention_bias and c.out_bias
        return _project(self, "out", mixed_BLE, c.d_model, c.residual_init_std, bias), kept


class MLP(nn.Module):
    """The feed-forward network of a block, with a gate (SwiGLU, GEGLU) or without."""

    config: ModelConfig
    compute: ExecutionPlan

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        c = self.config
        act = nn.silu if c.mlp == "swiglu" else functools.partial(nn.gelu, approximate=c.mlp != "gelu")
        if c.gated:
            gate_BLF = act(_project(self, "gate", x_BLD, c.d_ff, c.init_std, c.mlp_bias))
            h_BLF = gate_BLF * _project(self, "up", x_BLD, c.d_ff, c.init_std, c.mlp_bias)
        else:
            h_BLF = act(_project(self, "up", x_BLD, c.d_ff, c.init_std, c.mlp_bias))
        return _project(self, "down", h_BLF, c.d_model, c.residual_init_std, c.mlp_bias)


class Block(nn.Module):
    """Attention and MLP with their norms and dropout (where `train`), added to the residual stream.

    The arguments of a call are the states, the position of the first one, the block's cache or None, and the packing
    or None. It returns the states after the block, and the keys and values that attention read.
    """

    config: ModelConfig
    layer: Layer
    compute: ExecutionPlan = ExecutionPlan("dense")
    train: bool = False
    last: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, start: Array | int, past: tuple[Array, Array] | None, packing: Packing | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        c = self.config
        drop = nn.Dropout(c.dropout, deterministic=not self.train)

        def read(name: str, x_BLD: Array) -> Array:
            return x_BLD if c.norm_at == "after" else Norm(c, name=f"{name}_norm")(x_BLD)

        def added(name: str, x_BLD: Array) -> Array:
            if c.norm_at != "before":
                x_BLD = Norm(c, name=f"{name}_norm_after" if c.norm_at == "both" else f"{name}_norm")(x_BLD)
            return drop(x_BLD)

        attention = Attention(c, self.layer, self.compute, self.last, name="attention")
        mixed_BLD, kept = attention(read("attention", x_BLD), start, past, packing)
        x_BLD = x_BLD[:, -1:] if self.last else x_BLD
        attended_BLD = x_BLD + added("attention", mixed_BLD)
        fed_BLD = MLP(c, self.compute, name="mlp")(read("mlp", x_BLD if c.parallel else attended_BLD))
        return attended_BLD + added("mlp", fed_BLD), kept
