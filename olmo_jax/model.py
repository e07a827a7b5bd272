"""One decoder for OLMo-1, OLMo-2 and Pythia: tokens in, final states and logits out.

Flax Linen is a thin layer here that names the parameters; everything outside calls the pure functions `init`, `hidden`,
`apply` and `extend`, which know one model and leave members to `jax.vmap`.

Shapes: B batch, L length, D model width, H heads, G heads of keys and values, K head width, F hidden width, S places of
a cache, V vocabulary (padded).
Parameters are float32, projections 2-D `[in, out]`, embedding and unembedding `[V, D]`. Matmuls of the blocks run in
`config.compute_dtype`; norms, attention's softmax and logits are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.model import parameter_count as parameter_count
from olmo_jax.config.validation import require
from olmo_jax.execution import plan as computing
from olmo_jax.execution.attention import Spans, causal_attention
from olmo_jax.execution.matmul import linear, settled
from olmo_jax.execution.plan import Compute

Params = dict[str, Any]


class Hidden(NamedTuple):
    """States of a forward pass: after the final norm, and before it after each block (empty unless asked for)."""

    final_BLD: Array
    layers: tuple[Array, ...]


class Output(NamedTuple):
    """Logits over the padded vocabulary, float32, and the states they came from."""

    logits_BLV: Array
    hidden: Hidden


class _Packing(NamedTuple):
    """Of packed sequences, what spans say: the position of each token, and whether it attends to each place."""

    position_BL: Array
    seen_B1LL: Array


class Cache(NamedTuple):
    """Keys and values of the tokens read, `[B, S, G, K]` of each block, and how many of the S places are filled."""

    blocks: tuple[tuple[Array, Array], ...]
    filled: Array


@functools.partial(jax.jit, static_argnames="config")
def init(config: ModelConfig, key: Array) -> Params:
    """Parameters of one model, a nested dict of float32 arrays, from a key made by `jax.random.key`.

    Truncated normal at 3 standard deviations (OLMo's cut-off): `init_std` everywhere, divided by sqrt(2 n_layers) where
    a matrix writes to the residual stream. That of the unembedding, tied or not, is at most .3 / sqrt(D) [ours]: the
    final states have norm sqrt(D), so the logits start with a variance of at most .09 and the loss within .05 nats of
    ln V at any width. Norms start with scale 1; biases with 0.
    """
    return _Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.partial(jax.jit, static_argnames=("config", "layers", "compute", "last"))
def hidden(
    config: ModelConfig,
    params: Params,
    tokens_BL: Array,
    layers: bool = False,
    dropout_key: Array | None = None,
    compute: Compute | None = None,
    last: bool = False,
    spans: Spans | None = None,
) -> Hidden:
    """States after the final norm and, with `layers`, after each block.

    `last` gives of the final states, and of the last block's, the last position's alone, L being 1: the last block is
    then spared most of its work. Dropout only where a key for it is given. `compute` says by which of several ways to
    the same numbers; None chooses. `spans` is of sequences that several texts are packed into: what each token attends
    to, and so its position, which mustn't exceed those that were learned.
    """
    compute = computing.forward(config) if compute is None else compute
    # Made once for all blocks, or a CPU would make them anew in each.
    packing = None if spans is None else _Packing(*map(settled, (spans.position_BL, spans.seen_B1LL)))
    x_BLD, block_keys = embed(config, params, tokens_BL, packing=packing), None
    if dropout_key is not None:
        embedding_key, *block_keys = jax.random.split(dropout_key, config.n_layers + 1)
        drop = nn.Dropout(config.dropout, deterministic=False)
        x_BLD = drop.apply({}, x_BLD, rngs={"dropout": embedding_key})  # type: ignore[assignment]
    x_BLD, states = _blocks(config, params, x_BLD, block_keys, layers, compute, last, packing)
    return Hidden(final_norm(config, params, x_BLD), states)


@functools.partial(jax.jit, static_argnames=("config", "layers"))
def apply(config: ModelConfig, params: Params, tokens_BL: Array, layers: bool = False) -> Output:
    """Logits at every position, and the states. Training and evaluation use loss.py, which never holds all logits."""
    states = hidden(config, params, tokens_BL, layers)
    return Output(unembed(states.final_BLD, unembedding(params)), states)


def block_inputs(
    config: ModelConfig, block_params: Params, x_BLD: Array, compute: Compute | None = None
) -> tuple[Array, dict[str, Array]]:
    """States after one block, and what each of its projections read, `[B, L, in]` by path, such as attention/query.

    Args:
      block_params: of the block alone, such as params["blocks_0"]. x_BLD: the states before it.
    """
    module = _Block(config, computing.forward(config) if compute is None else compute)
    (out_BLD, _), kept = module.apply({"params": block_params}, x_BLD, 0, None, mutable=["inputs"])  # type: ignore[misc]
    return out_BLD, {
        f"{part}/{name}": x_BLI for part, inputs in kept["inputs"].items() for name, (x_BLI,) in inputs.items()
    }


@functools.partial(jax.jit, static_argnames="config")
def extend(config: ModelConfig, params: Params, tokens_BL: Array, cache: Cache) -> tuple[Array, Cache]:
    """Final states of further tokens after those that the cache holds, and the cache with these in it.

    The same as `hidden` on all of them together, within rounding. Room for them is the caller's to keep.
    """
    x_BLD = embed(config, params, tokens_BL, cache.filled)
    kept: list[tuple[Array, Array]] = []
    for i, past in enumerate(cache.blocks):
        x_BLD, block_kept = _Block(config).apply(  # type: ignore[misc]
            {"params": params[f"blocks_{i}"]}, x_BLD, cache.filled, past
        )
        kept.append(block_kept)  # type: ignore[arg-type]
    return final_norm(config, params, x_BLD), Cache(tuple(kept), cache.filled + tokens_BL.shape[1])


def empty_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """A cache with `length` places for each of `batch` sequences, none of them filled."""
    room_BSGK = jnp.zeros((batch, length, config.kv_heads, config.d_head), config.compute_dtype)
    return Cache(((room_BSGK, room_BSGK),) * config.n_layers, jnp.int32(0))


def unembedding(params: Params) -> Array:
    """The matrix that makes logits of final states, `[V, D]`; the embedding where the two are tied."""
    return params["unembedding"] if "unembedding" in params else params["embedding"]


def unembed(x_BLD: Array, w_VD: Array) -> Array:
    """Logits x W^T in at least float32, the matmul in the dtype of x."""
    wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
    return jnp.einsum("bld,vd->blv", x_BLD, w_VD.astype(x_BLD.dtype), preferred_element_type=wide)


def layer_norm(x_BLD: Array, eps: float) -> Array:
    """OLMo-1's LayerNorm, with no scale and no bias, in float32; the result has the dtype of x."""
    x32_BLD = x_BLD.astype(jnp.float32)
    centred_BLD = x32_BLD - jnp.mean(x32_BLD, axis=-1, keepdims=True)
    return rms_norm(centred_BLD, eps).astype(x_BLD.dtype)


def rms_norm(x_BLD: Array, eps: float) -> Array:
    """x over its root mean square, with no scale, in float32; the result has the dtype of x."""
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
    """Rotary position embedding (Su 2021), halves of a head paired as GPT-NeoX and OLMo do, angles in float32.

    Args:
      width: how many of the K dimensions are turned, the first ones; None for all.
      start: position of the first of the L tokens.
      position_BL: of each token, where they don't follow one another; `start` is then 0. They lie below `positions`,
        or below L for None.
    """
    length, width = positions or x_BLHK.shape[1], width or x_BLHK.shape[3]
    frequency_k = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    position_L = (start + jnp.arange(length)).astype(jnp.float32)
    angle_1L1k = jnp.outer(position_L, frequency_k)[None, :, None, :]
    sin, cos = jnp.sin(angle_1L1k), jnp.cos(angle_1L1k)
    if position_BL is not None:  # taken from a table, for sines of all tokens would take a CPU long
        sin, cos = (x_1L1k[0][position_BL] for x_1L1k in (sin, cos))
    low_BLHk, high_BLHk = jnp.split(x_BLHK[..., :width].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([low_BLHk * cos - high_BLHk * sin, high_BLHk * cos + low_BLHk * sin], axis=-1)
    return jnp.concatenate([turned.astype(x_BLHK.dtype), x_BLHK[..., width:]], axis=-1)


def embed(
    config: ModelConfig, params: Params, tokens_BL: Array, start: Array | int = 0, packing: _Packing | None = None
) -> Array:
    """What the first block reads of tokens that begin at position `start`, or lie at the positions of `packing`."""
    x_BLD = params["embedding"][tokens_BL]
    if config.positions == "learned" and packing is not None:
        x_BLD += params["positions"][packing.position_BL]
    elif config.positions == "learned":
        require(
            tokens_BL.shape[1] <= config.context_length,
            "config.model.context_length",
            config.context_length,
            f"is how many positions were learned, and the text has {tokens_BL.shape[1]} tokens; cut it, or raise this",
        )
        x_BLD += jax.lax.dynamic_slice_in_dim(params["positions"], start, tokens_BL.shape[1])[None]
    return x_BLD.astype(config.compute_dtype)


def _blocks(
    config: ModelConfig,
    params: Params,
    x_BLD: Array,
    keys: list[Array] | None,
    layers: bool,
    compute: Compute,
    last: bool,
    packing: _Packing | None,
) -> tuple[Array, tuple[Array, ...]]:
    """The states after all blocks and, with `layers`, after each; `keys`: of dropout, one a block."""

    def block_of(last: bool) -> Callable[..., tuple[Array, Array | None]]:
        module = _Block(config, compute, keys is not None, last)

        def block(x_BLD: Array, layer: tuple[Params, Array | None]) -> tuple[Array, Array | None]:
            block_params, key = layer
            rngs = None if key is None else {"dropout": key}
            x_BLD, _ = module.apply(  # type: ignore[misc]
                {"params": block_params}, x_BLD, 0, None, packing, rngs=rngs
            )
            return x_BLD, x_BLD if layers else None

        return jax.checkpoint(block) if compute.remat else block

    each = [params[f"blocks_{i}"] for i in range(config.n_layers)]
    if compute.layers == "scanned" and not last:
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        x_BLD, states_nBLD = jax.lax.scan(block_of(False), x_BLD, (stack, None if keys is None else jnp.stack(keys)))
        return x_BLD, () if states_nBLD is None else tuple(states_nBLD)
    states = []
    for i, block_params in enumerate(each):
        block = block_of(last and i == len(each) - 1)
        x_BLD, state_BLD = block(x_BLD, (block_params, None if keys is None else keys[i]))
        states.append(state_BLD)
    return x_BLD, tuple(state_BLD for state_BLD in states if state_BLD is not None)


def final_norm(config: ModelConfig, params: Params, x_BLD: Array) -> Array:
    """What the unembedding reads, of the states after the last block."""
    return _Norm(config).apply({"params": params.get("final_norm", {})}, x_BLD)  # type: ignore[return-value]


def _normal(std: float) -> nn.initializers.Initializer:
    return nn.initializers.truncated_normal(std, lower=-3.0, upper=3.0)


def _project(module: Any, name: str, x_BLI: Array, outputs: int, std: float, bias: bool) -> Array:
    """x W, and + b with `bias`; the parameters are `<name>` and `<name>_bias` of the module."""
    module.sow("inputs", name, x_BLI)  # kept only where `block_inputs` asks for it
    w_IO = module.param(name, _normal(std), (x_BLI.shape[-1], outputs))
    y_BLO = x_BLI @ w_IO.astype(x_BLI.dtype) if module.compute.gathered else linear(x_BLI, w_IO)
    if bias:
        y_BLO += module.param(f"{name}_bias", nn.initializers.zeros, (outputs,)).astype(x_BLI.dtype)[None, None]
    return y_BLO


class _Norm(nn.Module):
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


class _Attention(nn.Module):
    config: ModelConfig
    compute: Compute
    last: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, start: Array | int, past: tuple[Array, Array] | None, packing: _Packing | None
    ) -> tuple[Array, tuple[Array, Array]]:
        """What attention adds, and the keys and values read: those of x or, with `past`, the filled-up cache."""
        c = self.config
        asking_BLD = x_BLD[:, -1:] if self.last else x_BLD

        def heads(name: str, count: int, x_BLD: Array = x_BLD) -> Array:
            x_BLE = _project(self, name, x_BLD, count * c.d_head, c.init_std, c.attention_bias)
            if c.clip_qkv:
                x_BLE = jnp.clip(x_BLE, -c.clip_qkv, c.clip_qkv)
            if c.qk_norm and name != "value":
                x_BLE = _Norm(c, name=f"{name}_norm")(x_BLE)
            return x_BLE.reshape(*x_BLD.shape[:2], count, c.d_head)

        q_BLHK = heads("query", c.n_heads, asking_BLD)
        k_BLGK, v_BLGK = heads("key", c.kv_heads), heads("value", c.kv_heads)
        if c.positions == "rotary":
            length, asking = x_BLD.shape[1], asking_BLD.shape[1]
            if packing is None:
                q_BLHK = rotary(q_BLHK, c.rope_theta, c.rotary_width, start + length - asking)
                k_BLGK = rotary(k_BLGK, c.rope_theta, c.rotary_width, start)
            else:
                position_BL = packing.position_BL
                q_BLHK = rotary(q_BLHK, c.rope_theta, c.rotary_width, 0, position_BL[:, -asking:], length)
                k_BLGK = rotary(k_BLGK, c.rope_theta, c.rotary_width, 0, position_BL, length)
        if past is None:
            kept = k_BLGK, v_BLGK
            seen_B1LL = None if packing is None else packing.seen_B1LL
            if self.last:  # which sees all but what spans leave out
                seen_B11L = None if seen_B1LL is None else seen_B1LL[:, :, -1:]
                mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BLGK, v_BLGK, mask=seen_B11L)
            else:
                mixed_BLHK = causal_attention(q_BLHK, k_BLGK, v_BLGK, self.compute.attention, seen_B1LL)
        else:
            k_BSGK, v_BSGK = (
                jax.lax.dynamic_update_slice_in_dim(room_BSGK, new_BLGK, start, axis=1)
                for room_BSGK, new_BLGK in zip(past, (k_BLGK, v_BLGK), strict=True)
            )
            kept = k_BSGK, v_BSGK
            place_S, own_L = jnp.arange(k_BSGK.shape[1]), start + jnp.arange(x_BLD.shape[1])
            seen_11LS = (place_S[None] <= own_L[:, None])[None, None]
            mixed_BLHK = jax.nn.dot_product_attention(q_BLHK, k_BSGK, v_BSGK, mask=seen_11LS)
        out_std = c.init_std / math.sqrt(2 * c.n_layers)
        return _project(self, "out", mixed_BLHK.reshape(asking_BLD.shape), c.d_model, out_std, c.attention_bias), kept


class _MLP(nn.Module):
    config: ModelConfig
    compute: Compute

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


class _Block(nn.Module):
    config: ModelConfig
    compute: Compute = Compute("dense")
    train: bool = False
    last: bool = False

    @nn.compact
    def __call__(
        self, x_BLD: Array, start: Array | int, past: tuple[Array, Array] | None, packing: _Packing | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        c = self.config
        before = c.norm_at == "before"
        attention_norm, mlp_norm = _Norm(c, name="attention_norm"), _Norm(c, name="mlp_norm")
        drop = nn.Dropout(c.dropout, deterministic=not self.train)

        added_BLD, kept = _Attention(c, self.compute, self.last, name="attention")(
            attention_norm(x_BLD) if before else x_BLD, start, past, packing
        )
        x_BLD = x_BLD[:, -1:] if self.last else x_BLD
        attended_BLD = x_BLD + drop(added_BLD if before else attention_norm(added_BLD))
        read_BLD = x_BLD if c.parallel else attended_BLD
        added_BLD = _MLP(c, self.compute, name="mlp")(mlp_norm(read_BLD) if before else read_BLD)
        return attended_BLD + drop(added_BLD if before else mlp_norm(added_BLD)), kept


class _Decoder(nn.Module):
    """Names and makes every parameter; what is computed of them is in the functions above."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BL: Array) -> Array:
        c = self.config
        unembedding_std = min(c.init_std, 0.3 / math.sqrt(c.d_model))
        embedding_std = unembedding_std if c.tied else c.init_std
        embedding_VD = self.param("embedding", _normal(embedding_std), (c.padded_vocab_size, c.d_model))
        if not c.tied:
            self.param("unembedding", _normal(unembedding_std), (c.padded_vocab_size, c.d_model))
        if c.positions == "learned":
            self.param("positions", _normal(c.init_std), (c.context_length, c.d_model))
        x_BLD = embedding_VD[tokens_BL]
        for i in range(c.n_layers):
            x_BLD, _ = _Block(c, name=f"blocks_{i}")(x_BLD, 0, None)
        return _Norm(c, name="final_norm")(x_BLD)
