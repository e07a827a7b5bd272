"""Generation with a cache against the whole forward pass, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from olmo_jax import generate, model
from olmo_jax.config.validation import ConfigError
from tests.olmo_jax.variants import FAMILIES, VARIANTS
from tests.plain import plain


def lively(config, seed=0):
    """Return parameters far from initialisation, so that the likeliest token varies by position."""
    return jax.tree.map(lambda x: 5 * x, model.init(config, jax.random.key(seed)))


@pytest.mark.parametrize("name", plain(FAMILIES, "olmo2"))
def test_64_greedy_tokens_match_the_full_forward_pass(name):
    config = FAMILIES[name]
    params = lively(config)
    prompt = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
    results = np.asarray(generate.generate(config, params, prompt, 64, jax.random.key(0)))
    whole = np.concatenate([prompt, results], axis=1)
    # One pass over the generated text: each new token is the likeliest given the previous ones.
    logits_BLV = model.apply(config, params, whole).logits_BLV[..., : config.vocab_size]
    np.testing.assert_array_equal(np.argmax(logits_BLV, axis=-1)[:, 4:-1], results)
    assert len(np.unique(results)) > 10


@pytest.mark.parametrize(
    "name",
    plain(
        ["olmo2", "gpt_neox", "learned positions", "all at once", "gemma3", "unrotated blocks"], "gpt_neox", "gemma3"
    ),
)
def test_reading_a_prompt_in_pieces_matches_reading_it_at_once(name):
    config = VARIANTS[name]
    params = lively(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, config.vocab_size)
    cache, pieces = model.empty_cache(config, 2, 16), []
    for piece in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:]):
        states, cache = model.extend(config, params, piece, cache)
        pieces.append(states)
    at_once = model.hidden(config, params, tokens).final_BLD
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), at_once, atol=2e-4)
    assert int(cache.filled) == 12


def test_stacked_members_generate_as_single_ones():
    config = FAMILIES["olmo2"]
    params = [lively(config, seed) for seed in range(3)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *params)
    prompt = np.array([[3, 1, 2]])
    how = {"temperature": 0.7, "top_p": 0.9, "greedy": False}
    together = generate.generate_members(config, stack, prompt, 9, jax.random.key(2), **how)
    separate = [generate.generate(config, one, prompt, 9, jax.random.key(2), **how) for one in params]
    np.testing.assert_array_equal(together, separate)


def test_padding_rows_of_the_vocabulary_are_never_generated(vary):
    config = vary(FAMILIES["olmo"], {"vocab_size": 33, "pad_vocab_to": 64})
    params = lively(config)
    params["unembedding"] = params["unembedding"].at[33:].set(100 * params["unembedding"][:31])
    for how in ({}, {"greedy": False, "temperature": 5.0}):
        results = generate.generate(config, params, np.array([[1]] * 4), 30, jax.random.key(0), **how)
        assert results.max() < 33


def test_draws_follow_the_probabilities_and_top_p_cuts_the_tail():
    probabilities = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    logits_BV = jnp.log(jnp.asarray(probabilities))[None]
    for top_p, candidates in ((1.0, 5), (0.84, 3), (0.7, 2), (0.5, 1), (1e-9, 1)):
        cut = np.asarray(generate.likeliest(logits_BV, top_p))[0]
        assert np.isfinite(cut).tolist() == [True] * candidates + [False] * (5 - candidates)

    # A model with constant logits: no blocks, and an embedding of a single direction.
    config = FAMILIES["gpt_neox"]
    params = jax.tree.map(jnp.zeros_like, model.init(config, jax.random.key(0)))
    logits = np.full(config.vocab_size, -50.0)
    logits[:5] = np.log(probabilities)
    params["final_norm"]["bias"] = jnp.zeros(config.d_model).at[0].set(1.0)
    params["unembedding"] = params["unembedding"].at[: config.vocab_size, 0].set(logits)
    results = generate.generate(
        config, params, np.zeros((200, 1), int), 10, jax.random.key(5), temperature=2.0, top_p=0.9, greedy=False
    )
    hot = probabilities**0.5 / (probabilities**0.5).sum()
    expected = np.where(np.cumsum(hot) - hot < 0.9, hot, 0)
    expected /= expected.sum()
    share = np.bincount(np.asarray(results).ravel(), minlength=5)[:5] / results.size
    assert np.abs(share - expected).max() < 4 * np.sqrt(0.25 / results.size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((65, 1, 0.0, 1.0), ["65 tokens", "context is 64", "shorten"]),
        ((60, 5, 0.0, 1.0), ["--tokens = 5", "room for 4"]),
        ((6, 0, 0.0, 1.0), ["--tokens = 0"]),
        ((6, 5, -1.0, 1.0), ["--temperature = -1"]),
        ((6, 5, 1.0, 0.0), ["--top_p = 0"]),
        ((6, 5, 1.0, 1.5), ["--top_p = 1.5"]),
        ((6, 5, float("nan"), 1.0), ["--temperature"]),
    ],
)
def test_invalid_sampling_settings_are_refused(vary, arguments, words):
    with pytest.raises(ConfigError) as error:
        generate.check_sampling(vary(FAMILIES["olmo"], {"context_length": 64}), *arguments)
    assert all(word in str(error.value) for word in words), error.value
