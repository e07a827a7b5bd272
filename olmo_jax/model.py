"""One decoder for OLMo, Pythia and the families of hf/: tokens in, final states and logits out.

Flax Linen is a thin layer here that names the parameters (`Decoder` below, and the layers of a block in layers.py);
other code calls the pure functions `init`, `hidden`, `apply` and `extend`, which work on one model and leave members to
`jax.vmap`.

Shapes: B batch, L length, D model width, G heads of keys and values, K head width, S positions of a cache, V vocabulary
(padded).
Parameters are float32, projections 2-D `[in, out]`, embedding and unembedding `[V, D]`. Matmuls of the blocks run in
`config.compute_dtype`; norms, attention's softmax and logits are float32.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from geometry.svd import matmul
from olmo_jax.config.model import Layer, ModelConfig
from olmo_jax.config.model import parameter_count as parameter_count
from olmo_jax.config.validation import require
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution.attention import Spans
from olmo_jax.execution.matmul import optimization_barrier
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.layers import Block, Norm, Packing, truncated_normal
from olmo_jax.layers import layer_norm as layer_norm
from olmo_jax.layers import rms_norm as rms_norm
from olmo_jax.rotary import rotary as rotary

Params = dict[str, Any]


class Hidden(NamedTuple):
    """States of a forward pass: after the final norm, and after each block without it (empty unless requested)."""

    final_BLD: Array
    layers: tuple[Array, ...]


class Output(NamedTuple):
    """Logits over the padded vocabulary, float32, and the states they came from."""

    logits_BLV: Array
    hidden: Hidden


class Cache(NamedTuple):
    """Keys and values of the tokens read, `[B, S, G, K]` per block, and how many of the S positions are filled."""

    blocks: tuple[tuple[Array, Array], ...]
    filled: Array


class Decoder(nn.Module):
    """The module that names and creates every parameter, for `init`; the functions below compute with them."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens_BL: Array) -> Array:
        c = self.config
        embedding_std = c.unembedding_init_std if c.tied else c.init_std
        embedding_VD = self.param("embedding", truncated_normal(embedding_std), (c.padded_vocab_size, c.d_model))
        if not c.tied:
            self.param("unembedding", truncated_normal(c.unembedding_init_std), (c.padded_vocab_size, c.d_model))
        if c.factored_head:
            self.param("unembedding_factor", lambda key: jnp.eye(c.d_model))
        if c.positions == "learned":
            self.param("positions", truncated_normal(c.init_std), (c.context_length, c.d_model))
        x_BLD = embedding_VD[tokens_BL]
        for i, layer in enumerate(c.layers):
            x_BLD, _ = Block(c, layer, name=f"blocks_{i}")(x_BLD, 0, None)
        return Norm(c, name="final_norm")(x_BLD)


@functools.partial(jax.jit, static_argnames="config")
def init(config: ModelConfig, key: Array) -> Params:
    """Return the parameters of one model, a nested dict of float32 arrays, from a key made by `jax.random.key`.

    Normal truncated at 3 standard deviations (OLMo's cut-off): `init_std` everywhere, divided by sqrt(2 n_layers) where
    a matrix writes to the residual stream. For the unembedding, tied or not, it is at most .3 / sqrt(D) [ours]: the
    final states have norm sqrt(D), so the logits start with a variance of at most .09 and the loss within .05 nats of
    ln V at any width. Without `scaled_init`, `init_std` holds for all. Norms start with scale 1; biases with 0.
    """
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.partial(jax.jit, static_argnames=("config", "layers"))
def apply(config: ModelConfig, params: Params, tokens_BL: Array, layers: bool = False) -> Output:
    """Return the logits at every position, and the states.

    Training and evaluation use loss.py, which never holds all logits.
    """
    states = hidden(config, params, tokens_BL, layers)
    return Output(unembed(states.final_BLD, unembedding(params)), states)


@functools.partial(jax.jit, static_argnames=("config", "layers", "compute", "last"))
def hidden(
    config: ModelConfig,
    params: Params,
    tokens_BL: Array,
    layers: bool = False,
    dropout_key: Array | None = None,
    compute: ExecutionPlan | None = None,
    last: bool = False,
    spans: Spans | None = None,
) -> Hidden:
    """Return the states after the final norm and, with `layers`, after each block.

    Args:
      last: return only the states of the last position (L is 1) after the last block and the final norm; this saves
        most of the last block's work.
      dropout_key: None for no dropout.
      compute: the execution plan, which changes results only by rounding; None chooses by the backend.
      spans: for sequences into which several texts are packed, what each token attends to, which also determines its
        position; that must be less than the number of learned positions.

    Raises:
      ConfigError: more tokens than learned positions.
    """
    compute = execution_plan.forward(config) if compute is None else compute
    # Computed once for all blocks; without the barrier a CPU would recompute them in each.
    packing = None if spans is None else Packing(*map(optimization_barrier, (spans.position_BL, spans.seen_B1LL)))
    x_BLD, block_keys = embed(config, params, tokens_BL, packing=packing), None
    if dropout_key is not None:
        embedding_key, *block_keys = jax.random.split(dropout_key, config.n_layers + 1)
        drop = nn.Dropout(config.dropout, deterministic=False)
        x_BLD = drop.apply({}, x_BLD, rngs={"dropout": embedding_key})  # type: ignore[assignment]
    x_BLD, states = _blocks(config, params, x_BLD, block_keys, layers, compute, last, packing)
    return Hidden(final_norm(config, params, x_BLD), states)


def embed(
    config: ModelConfig, params: Params, tokens_BL: Array, start: Array | int = 0, packing: Packing | None = None
) -> Array:
    """Return the first block's input for tokens that begin at position `start`, or at the positions of `packing`."""
    x_BLD = params["embedding"][tokens_BL]
    if config.scaled_embedding:
        x_BLD = x_BLD * jnp.asarray(math.sqrt(config.d_model), x_BLD.dtype)
    if config.positions == "learned" and packing is not None:
        x_BLD += params["positions"][packing.position_BL]
    elif config.positions == "learned":
        require(
            tokens_BL.shape[1] <= config.context_length,
            "config.model.context_length",
            config.context_length,
            f"is the number of learned positions, and the text has {tokens_BL.shape[1]} tokens; cut it, or raise this",
        )
        x_BLD += jax.lax.dynamic_slice_in_dim(params["positions"], start, tokens_BL.shape[1])[None]
    return x_BLD.astype(config.compute_dtype)


def _blocks(
    config: ModelConfig,
    params: Params,
    x_BLD: Array,
    keys: list[Array] | None,
    layers: bool,
    compute: ExecutionPlan,
    last: bool,
    packing: Packing | None,
) -> tuple[Array, tuple[Array, ...]]:
    """Return the states after all blocks and, with `layers`, after each; `keys` are dropout keys, one per block."""

    def block_of(layer: Layer, last: bool) -> Callable[..., tuple[Array, Array | None]]:
        module = Block(config, layer, compute, keys is not None, last)

        def block(x_BLD: Array, block_params_and_key: tuple[Params, Array | None]) -> tuple[Array, Array | None]:
            block_params, key = block_params_and_key
            rngs = None if key is None else {"dropout": key}
            x_BLD, _ = module.apply(  # type: ignore[misc]
                {"params": block_params}, x_BLD, 0, None, packing, rngs=rngs
            )
            return x_BLD, x_BLD if layers else None

        return jax.checkpoint(block) if compute.remat else block

    blocks = [params[f"blocks_{i}"] for i in range(config.n_layers)]
    if compute.layers == "scanned" and config.alike and not last:
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        block = block_of(config.layers[0], False)
        x_BLD, states_nBLD = jax.lax.scan(block, x_BLD, (stack, None if keys is None else jnp.stack(keys)))
        return x_BLD, () if states_nBLD is None else tuple(states_nBLD)
    states = []
    for i, (layer, block_params) in enumerate(zip(config.layers, blocks, strict=True)):
        block = block_of(layer, last and i == len(blocks) - 1)
        x_BLD, state_BLD = block(x_BLD, (block_params, None if keys is None else keys[i]))
        states.append(state_BLD)
    return x_BLD, tuple(state_BLD for state_BLD in states if state_BLD is not None)


def final_norm(config: ModelConfig, params: Params, x_BLD: Array) -> Array:
    """Return the final norm of the states after the last block, the input of the unembedding."""
    return Norm(config).apply({"params": params.get("final_norm", {})}, x_BLD)  # type: ignore[return-value]


def unembedding(params: Params) -> Array:
    """Return the matrix W that maps final states to logits, `[V, D]`.

    It is the embedding if the two are tied, and the product of its factors if the head has two.
    """
    if "unembedding_factor" in params:
        return matmul(params["unembedding"], params["unembedding_factor"])
    return params["unembedding"] if "unembedding" in params else params["embedding"]


def folded(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Return the model with one matrix as its head: unchanged, or an equivalent one if the head has two factors."""
    if not config.factored_head:
        return config, params
    others = {name: x for name, x in params.items() if name != "unembedding_factor"}
    return dataclasses.replace(config, factored_head=False), others | {"unembedding": unembedding(params)}


def unembed(x_BLD: Array, w_VD: Array) -> Array:
    """Return the logits x W^T in at least float32, the matmul in the dtype of x."""
    wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
    return jnp.einsum("bld,vd->blv", x_BLD, w_VD.astype(x_BLD.dtype), preferred_element_type=wide)


def empty_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """Return a cache with `length` empty positions for each of `batch` sequences."""
    zeros_BSGK = jnp.zeros((batch, length, config.kv_heads, config.d_head), config.compute_dtype)
    return Cache(((zeros_BSGK, zeros_BSGK),) * config.n_layers, jnp.int32(0))


@functools.partial(jax.jit, static_argnames="config")
def extend(config: ModelConfig, params: Params, tokens_BL: Array, cache: Cache) -> tuple[Array, Cache]:
    """Return the final states of tokens that follow those in the cache, and the cache extended by them.

    The states are those of `hidden` on all tokens together, within rounding. The cache must have room for the tokens;
    this isn't checked.
    """
    x_BLD = embed(config, params, tokens_BL, cache.filled)
    kept: list[tuple[Array, Array]] = []
    for i, past in enumerate(cache.blocks):
        x_BLD, block_kept = Block(config, config.layers[i]).apply(  # type: ignore[misc]
            {"params": params[f"blocks_{i}"]}, x_BLD, cache.filled, past
        )
        kept.append(block_kept)  # type: ignore[arg-type]
    return final_norm(config, params, x_BLD), Cache(tuple(kept), cache.filled + tokens_BL.shape[1])


def block_inputs(
    config: ModelConfig,
    block_params: Params,
    x_BLD: Array,
    compute: ExecutionPlan | None = None,
    layer: Layer | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Return the states after one block, and each projection's input, `[B, L, in]` by path, such as attention/query.

    Args:
      block_params: parameters of this block, such as params["blocks_0"]. x_BLD: the states before it.
      layer: its entry in config.layers; None for that of the first block.
    """
    layer = config.layers[0] if layer is None else layer
    module = Block(config, layer, execution_plan.forward(config) if compute is None else compute)
    (out_BLD, _), kept = module.apply({"params": block_params}, x_BLD, 0, None, mutable=["inputs"])  # type: ignore[misc]
    return out_BLD, {
        f"{part}/{name}": x_BLI for part, inputs in kept["inputs"].items() for name, (x_BLI,) in inputs.items()
    }
