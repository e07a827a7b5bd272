"""Generate text, greedily or by sampling, with a key-value cache, from one model or a stack of models."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from olmo_jax import model
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError, require
from olmo_jax.execution.members import over_members


def check_sampling(config: ModelConfig, prompt: int, tokens: int, temperature: float, top_p: float) -> None:
    """Raise ConfigError if prompt and new tokens exceed the model's context, or for a number that is out of range."""
    if prompt > config.context_length:
        raise ConfigError(
            f"the prompt has {prompt} tokens, including the beginning-of-text token, and the model's context is "
            f"{config.context_length}; shorten it"
        )
    require(tokens > 0, "--tokens", tokens, "needs a positive number")
    room = config.context_length - prompt
    require(tokens <= room, "--tokens", tokens, f"the prompt leaves room for {room} in the model's context; lower it")
    require(temperature >= 0, "--temperature", temperature, "needs 0, which takes the most likely token, or more")
    require(0 < top_p <= 1, "--top_p", top_p, "needs a number in (0, 1]")


@functools.partial(jax.jit, static_argnames=("config", "tokens", "greedy"))
def generate(
    config: ModelConfig,
    params: model.Params,
    prompt_BL: Array,
    tokens: int,
    key: Array,
    temperature: Array | float = 1.0,
    top_p: Array | float = 1.0,
    greedy: bool = True,
) -> Array:
    """Return one model's continuations of prompts of equal length.

    Args:
      key: random key for sampling. greedy: always take the most likely token and ignore `temperature` and `top_p`.
      temperature: divides the logits. top_p: sample among the most likely tokens that together have at least this
        probability.

    Returns:
      The new tokens, `[B, tokens]`, none of them from the padding of the vocabulary. The caller cuts them at an
      end-of-text token.
    """

    def choose(final_BLD: Array, key: Array) -> Array:
        logits_BV = model.unembed(final_BLD[:, -1:], model.unembedding(params))[:, 0, : config.vocab_size]
        if greedy:
            return jnp.argmax(logits_BV, axis=-1)
        return jax.random.categorical(key, likeliest(logits_BV / temperature, top_p))

    def step(carry: tuple[Array, model.Cache], key: Array) -> tuple[tuple[Array, model.Cache], Array]:
        token_B, cache = carry
        final_BLD, cache = model.extend(config, params, token_B[:, None], cache)
        following_B = choose(final_BLD, key)
        return (following_B, cache), following_B

    batch, length = prompt_BL.shape
    keys = jax.random.split(key, tokens)
    final_BLD, cache = model.extend(config, params, prompt_BL, model.empty_cache(config, batch, length + tokens))
    first_B = choose(final_BLD, keys[0])
    _, rest_TB = jax.lax.scan(step, (first_B, cache), keys[1:])
    return jnp.concatenate([first_B[None], rest_TB]).T


def generate_members(
    config: ModelConfig, params_M: Any, prompt_BL: Array, tokens: int, key: Array, **options: Any
) -> Array:
    """Return what `generate` returns for every model of a stack, with the same random key: `[M, B, tokens]`."""
    return over_members(lambda params: generate(config, params, prompt_BL, tokens, key, **options))(params_M)


def likeliest(logits_BV: Array, top_p: Array | float) -> Array:
    """Return the logits, -inf for all but the most likely tokens that together have at least probability `top_p`."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    share_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV
    kept_B1 = jnp.sum(before_BV < top_p, axis=-1, keepdims=True)
    lowest_B1 = jnp.take_along_axis(sorted_BV, kept_B1 - 1, axis=-1)
    return jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)
