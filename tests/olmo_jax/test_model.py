import jax
import jax.numpy as jnp
import numpy as np
import pytest

from olmo_jax import loss, model
from olmo_jax.config import ModelConfig
from olmo_jax.configs.olmo import SIZES, get_config

CONFIG = ModelConfig(vocab_size=97, pad_vocab_to=1, d_model=32, n_layers=2, n_heads=4, d_ff=64)


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


@pytest.mark.parametrize(
    ("vocab", "d_model", "n_layers"), [(97, 32, 2), (512, 64, 4), (2048, 256, 2), (50304, 256, 1), (1000, 1024, 1)]
)
def test_initial_loss_is_within_2_percent_of_ln_v(vocab, d_model, n_layers):
    config = ModelConfig(vocab, 1, d_model, n_layers, n_heads=4, d_ff=2 * d_model)
    params = model.init(config, jax.random.key(1))
    tokens_BL = jax.random.randint(jax.random.key(2), (4, 33), 0, vocab)
    final_BLD = model.hidden(config, params, tokens_BL[:, :-1]).final_BLD
    entropy = loss.cross_entropy(final_BLD, params["unembedding"], tokens_BL[:, 1:]).cross_entropy
    assert float(entropy) == pytest.approx(np.log(vocab), rel=0.02)


def test_no_position_depends_on_a_later_token(params):
    """The gradient of one position's states: something from the tokens up to it, exactly nothing from those after."""
    length, at = 12, 6
    tokens_BL = jnp.arange(length)[None]  # each token once, so a row of the embedding's gradient is a position's

    def states_at(embedding_VD):
        changed = params | {"embedding": embedding_VD}
        return jnp.sum(jnp.sin(model.hidden(CONFIG, changed, tokens_BL).final_BLD[0, at]))

    size_L = np.abs(np.asarray(jax.grad(states_at)(params["embedding"]))).sum(axis=1)[:length]
    assert (size_L[: at + 1] > 0).all()
    assert (size_L[at + 1 :] == 0).all()


def test_logits_are_final_states_times_unembedding_and_layers_come_on_request(params):
    tokens_BL = jax.random.randint(jax.random.key(4), (2, 8), 0, CONFIG.vocab_size)
    output = model.apply(CONFIG, params, tokens_BL, layers=True)
    expected = np.asarray(output.hidden.final_BLD, np.float64) @ np.asarray(params["unembedding"], np.float64).T
    np.testing.assert_allclose(output.logits_BLV, expected, atol=1e-5)
    assert len(output.hidden.layers) == CONFIG.n_layers
    last = model.layer_norm(output.hidden.layers[-1], CONFIG.norm_eps)
    np.testing.assert_allclose(last, output.hidden.final_BLD, atol=1e-6)
    assert model.hidden(CONFIG, params, tokens_BL).layers == ()


def test_one_layer_agrees_with_a_plain_numpy_decoder():
    """The whole forward pass against the formulas of OLMo-1, in float64 and without a library."""
    c = ModelConfig(vocab_size=31, pad_vocab_to=1, d_model=16, n_layers=1, n_heads=2, d_ff=24)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64) * 10, model.init(c, jax.random.key(5)))
    tokens_L = np.array([3, 1, 4, 1, 5, 9, 2])
    L, K = len(tokens_L), c.d_head

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + c.norm_eps)

    def turn(x_LK):
        angle = np.arange(L)[:, None] * c.rope_theta ** (-np.arange(0, K, 2) / K)
        both = (x_LK[:, : K // 2] + 1j * x_LK[:, K // 2 :]) * np.exp(1j * angle)
        return np.concatenate([both.real, both.imag], axis=1)

    x_LD = p["embedding"][tokens_L]
    a = p["blocks_0"]["attention"]
    heads = []
    for h in range(c.n_heads):
        q, k, v = (norm(x_LD) @ a[name][:, h * K : (h + 1) * K] for name in ("query", "key", "value"))
        score = np.where(np.tri(L, dtype=bool), turn(q) @ turn(k).T / np.sqrt(K), -np.inf)
        weight = np.exp(score - score.max(1, keepdims=True))
        heads.append(weight / weight.sum(1, keepdims=True) @ v)
    x_LD = x_LD + np.concatenate(heads, axis=1) @ a["out"]
    m = p["blocks_0"]["mlp"]
    gate = norm(x_LD) @ m["gate"]
    x_LD = x_LD + (gate / (1 + np.exp(-gate)) * (norm(x_LD) @ m["up"])) @ m["down"]

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), p)
    final = model.hidden(c, params, tokens_L[None]).final_BLD[0]
    np.testing.assert_allclose(final, norm(x_LD), atol=2e-5)


def test_final_states_sum_to_zero_as_the_gauge_argument_needs(params):
    final_BLD = model.hidden(CONFIG, params, jnp.arange(10)[None]).final_BLD
    np.testing.assert_allclose(final_BLD.sum(axis=-1), 0, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_named_by_their_non_embedding_parameters(size):
    config = get_config(size).model
    total, inner = model.parameter_count(ModelConfig(**config.to_dict()))
    assert inner == 16 * config.d_model**2 * config.n_layers
    assert inner == pytest.approx(float(size[:-1]) * 1e6, rel=0.06)
    assert total - inner == 2 * config.vocab_size * config.d_model


def test_bfloat16_is_only_how_matmuls_are_computed(params):
    config = ModelConfig(**(CONFIG.__dict__ | {"compute_dtype": "bfloat16"}))
    assert {x.dtype for x in jax.tree.leaves(model.init(config, jax.random.key(0)))} == {jnp.dtype("float32")}
    exact = model.apply(CONFIG, params, jnp.arange(10)[None]).logits_BLV
    rough = model.apply(config, params, jnp.arange(10)[None]).logits_BLV
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05 * float(jnp.abs(exact).max()))
