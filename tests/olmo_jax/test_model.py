import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from olmo_jax import loss, model
from olmo_jax.config import ConfigError, ModelConfig
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution.attention import Spans
from tests.olmo_jax.variants import FAMILIES, VARIANTS
from tests.plain import plain

CONFIG = ModelConfig(vocab_size=97, pad_vocab_to=1, d_model=32, n_layers=2, n_heads=4, d_ff=64)

SCANNED = execution_plan.ExecutionPlan("dense", layers="scanned")


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


@pytest.mark.parametrize(
    ("vocab", "d_model", "n_layers"),
    [
        (97, 32, 2),
        (50304, 64, 1),
        *(
            pytest.param(*size, marks=pytest.mark.slow)
            for size in ((50304, 256, 1), (512, 64, 4), (2048, 256, 2), (1000, 1024, 1))
        ),
    ],
)
def test_initial_loss_is_within_2_percent_of_ln_v(vocab, d_model, n_layers):
    config = ModelConfig(vocab, 1, d_model, n_layers, n_heads=4, d_ff=2 * d_model)
    params = model.init(config, jax.random.key(1))
    tokens_BL = jax.random.randint(jax.random.key(2), (4, 33), 0, vocab)
    final_BLD = model.hidden(config, params, tokens_BL[:, :-1]).final_BLD
    entropy = loss.cross_entropy(final_BLD, params["unembedding"], tokens_BL[:, 1:]).cross_entropy
    assert float(entropy) == pytest.approx(np.log(vocab), rel=0.02)


def test_initial_parameters_have_their_standard_deviations():
    """Which a normal distribution cut at 3 standard deviations has to within 2 %."""
    config = ModelConfig(4096, 1, d_model=256, n_layers=2, n_heads=4, d_ff=512)

    def deviations(config):
        params = model.init(config, jax.random.key(0))
        block = params["blocks_0"]
        matrices = (params["embedding"], params["unembedding"], block["mlp"]["up"], block["mlp"]["down"])
        return [float(np.std(w)) for w in (*matrices, block["attention"]["out"])]

    assert deviations(config) == pytest.approx([0.02, 0.3 / 16, 0.02, 0.01, 0.01], rel=0.03)
    unscaled = dataclasses.replace(config, scaled_init=False)
    assert deviations(unscaled) == pytest.approx([0.02] * 5, rel=0.03)


@pytest.mark.parametrize("name", plain([*FAMILIES, "all at once"], "gpt_neox", "all at once"))
def test_no_position_depends_on_a_later_token(name):
    """The gradient of one position's states is non-zero for tokens up to it and exactly zero for later ones."""
    config = VARIANTS[name]
    params = model.init(config, jax.random.key(0))
    length, at = 12, 6
    tokens_BL = jnp.arange(length)[None]  # each token once, so a row of the embedding's gradient is a position's

    def states_at(embedding_VD):
        changed = params | {"embedding": embedding_VD}
        return jnp.sum(jnp.sin(model.hidden(config, changed, tokens_BL).final_BLD[0, at]))

    size_L = np.abs(np.asarray(jax.jit(jax.grad(states_at))(params["embedding"]))).sum(axis=1)[:length]
    assert (size_L[: at + 1] > 0).all()
    assert (size_L[at + 1 :] == 0).all()


PACKED = [*((name, None) for name in VARIANTS), ("olmo2", SCANNED)]


@pytest.mark.parametrize(
    ("name", "compute"), plain(PACKED, ("gpt_neox", None), ("gemma3", None), ("olmo2", SCANNED), unpack=True)
)
def test_packed_texts_have_the_states_of_separate_rows(name, compute):
    """Two continuations of one context, then another text, in a row of 65 places, so that attention has two blocks."""
    config = VARIANTS[name]
    params = model.init(config, jax.random.key(0))
    ends = np.array([0, 5, 40, 58, 65])  # of the context, of each continuation, and of the other text
    tokens_L = np.asarray(jax.random.randint(jax.random.key(3), (65,), 0, config.vocab_size))
    place_L = np.arange(65)
    start_L = np.repeat(ends[:-1], np.diff(ends))
    after_L = (place_L >= 5) & (place_L < 58)
    context_L, end_L = np.where(after_L, 0, start_L), np.where(after_L, 5, start_L)
    spans = Spans(*(jnp.asarray(x_L)[None] for x_L in (context_L, end_L, start_L)))
    packed_LD = model.hidden(config, params, tokens_L[None], compute=compute, spans=spans).final_BLD[0]
    rows_of_places = [[*range(5), *range(5, 40)], [*range(5), *range(40, 58)], [*range(58, 65)]]
    padded = np.array([np.pad(tokens_L[places], (0, 40 - len(places))) for places in rows_of_places])
    for places, states_LD in zip(rows_of_places, model.hidden(config, params, padded).final_BLD, strict=True):
        np.testing.assert_allclose(packed_LD[np.array(places)], states_LD[: len(places)], atol=2e-5)
    last_1D = model.hidden(config, params, tokens_L[None], compute=compute, last=True, spans=spans).final_BLD[0]
    np.testing.assert_allclose(last_1D, packed_LD[-1:], atol=2e-5)


def test_logits_are_final_states_times_unembedding_and_layers_are_optional(params):
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
        rotated = (x_LK[:, : K // 2] + 1j * x_LK[:, K // 2 :]) * np.exp(1j * angle)
        return np.concatenate([rotated.real, rotated.imag], axis=1)

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


def test_bfloat16_affects_matmuls_only(params):
    config = ModelConfig(**(CONFIG.__dict__ | {"compute_dtype": "bfloat16"}))
    assert {x.dtype for x in jax.tree.leaves(model.init(config, jax.random.key(0)))} == {jnp.dtype("float32")}
    exact = model.apply(CONFIG, params, jnp.arange(10)[None]).logits_BLV
    rough = model.apply(config, params, jnp.arange(10)[None]).logits_BLV
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("name", plain(VARIANTS, "olmo2", "gpt_neox", "gemma3"))
def test_every_variant_starts_near_ln_v_and_every_parameter_learns(name):
    config = VARIANTS[name]
    params = model.init(config, jax.random.key(1))
    tokens_BL = jax.random.randint(jax.random.key(2), (4, 33), 0, config.vocab_size)

    def objective(params):
        final_BLD = model.hidden(config, params, tokens_BL[:, :-1]).final_BLD
        return loss.cross_entropy(final_BLD, model.unembedding(params), tokens_BL[:, 1:]).objective

    value, gradient = jax.jit(jax.value_and_grad(objective))(params)
    # Rows that pad the vocabulary are part of the softmax.
    assert float(value) == pytest.approx(np.log(config.padded_vocab_size), rel=0.04)
    sizes = {jax.tree_util.keystr(p): float(jnp.abs(g).max()) for p, g in jax.tree_util.tree_leaves_with_path(gradient)}
    if config.positions == "learned":
        # Added to all keys of a head alike, they change no score against another, and the softmax doesn't see them.
        unseen = "key_bias" if not config.qk_norm else "['key_norm']['bias']"
        sizes = {path: size for path, size in sizes.items() if unseen not in path}
    for i, layer in enumerate(config.layers):
        if not layer.rope_theta:
            sizes.pop(f"['blocks_{i}']['attention']['key_bias']", None)
    assert [path for path, size in sizes.items() if not size > 1e-7] == []
    assert ("unembedding" in params) == (not config.tied)


def test_dropout_depends_on_its_key_and_acts_in_training_only(vary):
    config = vary(VARIANTS["learned positions"], {"dropout": 0.5})
    params = model.init(config, jax.random.key(0))
    tokens_BL = jnp.arange(10)[None]
    without = model.hidden(config, params, tokens_BL).final_BLD
    np.testing.assert_array_equal(without, model.hidden(vary(config, {"dropout": 0.0}), params, tokens_BL).final_BLD)
    one, same, other = (
        model.hidden(config, params, tokens_BL, dropout_key=jax.random.key(seed)).final_BLD for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert float(jnp.abs(one - other).max()) > 0.1
    assert float(jnp.abs(one - without).max()) > 0.1


def test_dropout_of_half_zeroes_half_and_doubles_the_rest(vary):
    """The states before any block are the embedding after dropout: half of the entries are 0, half are doubled."""
    config = vary(FAMILIES["gpt_neox"], {"dropout": 0.5, "n_layers": 1})
    params = jax.tree.map(jnp.zeros_like, model.init(config, jax.random.key(0)))  # blocks that add zero
    params["embedding"] = jnp.ones_like(params["embedding"])
    tokens_BL = jnp.zeros((4, 64), int)
    (state_BLD,) = model.hidden(config, params, tokens_BL, layers=True, dropout_key=jax.random.key(0)).layers
    assert set(np.unique(state_BLD)) == {0.0, 2.0}
    assert float(jnp.mean(state_BLD)) == pytest.approx(1.0, abs=0.05)


def test_a_text_longer_than_its_positions_is_refused():
    config = VARIANTS["learned positions"]
    with pytest.raises(ConfigError, match=r"config\.model\.context_length = 80: .* the text has 81 tokens"):
        model.hidden(config, model.init(config, jax.random.key(0)), jnp.zeros((1, 81), int))


def test_norms_match_their_formulas():
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 5, 32)).astype(np.float32)
    rms = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(model.rms_norm(jnp.asarray(x), 1e-5), rms, rtol=1e-5)
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.astype(np.float64).var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(model.layer_norm(jnp.asarray(x), 1e-5), standard, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_kv_heads": 3}, ["n_kv_heads = 3", "n_heads = 4"]),
        ({"n_kv_heads": -1}, ["n_kv_heads = -1"]),
        ({"norm": "batch_norm"}, ["norm = 'batch_norm'", "rms_norm"]),
        ({"norm_at": "around"}, ["norm_at", "before, after"]),
        ({"mlp": "relu"}, ["mlp = 'relu'", "swiglu, geglu, gelu"]),
        ({"positions": "alibi"}, ["positions", "rotary, learned"]),
        ({"rotary_fraction": 0.4}, ["rotary_fraction = 0.4", "rotates 3 of a head's 8"]),
        ({"rotary_fraction": 0.0}, ["rotary_fraction = 0.0"]),
        ({"rotary_fraction": 1.5}, ["rotary_fraction = 1.5"]),
        ({"clip_qkv": -1.0}, ["clip_qkv = -1.0"]),
        ({"dropout": 1.0}, ["dropout = 1.0", "[0, 1)"]),
        ({"context_length": 0}, ["context_length = 0"]),
    ],
)
def test_invalid_decoder_settings_are_refused(vary, changes, words):
    config = vary(FAMILIES["olmo"], changes)
    with pytest.raises(ConfigError) as error:
        config.check("config.model")
    assert all(word in str(error.value) for word in words), error.value
