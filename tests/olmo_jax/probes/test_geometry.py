import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry.probe import METRICS, summarize
from olmo_jax import model
from olmo_jax.config import ConfigError, ModelConfig, ParametersConfig, ProbeConfig, TargetConfig
from olmo_jax.probes import geometry as probes
from olmo_jax.probes.geometry import check_probe, choose_documents, make_probes, measure_parameters, take_states

CONFIG = ModelConfig(vocab_size=50, pad_vocab_to=64, d_model=16, n_layers=2, n_heads=2, d_ff=32)
VOCABULARY = 45
BOS = 0
RANK = TargetConfig(metrics=("effective_rank", "mean_cosine"))
ONE_SET = ProbeConfig(every=10, documents=6, document_tokens=10, sets=1, unembedding=RANK, final_states=RANK)


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCABULARY, size=n) for n in (5, 1, 30, 3, 8, 12, 2)]


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


def measured(config, documents, params):
    """Return all values that the probes of a configuration measure on one member."""
    probes = make_probes(config, CONFIG, VOCABULARY, choose_documents(config, documents, BOS))
    params_M = jax.tree.map(lambda x: x[None], params)
    return {name: float(value_M[0]) for probe in probes.values() for name, value_M in probe(params_M).items()}


def roy_and_vetterli(w):
    s = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    p = s[s > 0] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


def cosine(x):
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    together = u @ u.T
    return (together.sum() - np.trace(together)) / (len(u) * (len(u) - 1))


def states(params, document, layer=None):
    """Return the states of one document, read separately without padding."""
    hidden = model.hidden(CONFIG, params, np.concatenate([[BOS], document])[None], layers=True)
    return np.asarray((hidden.final_BLD if layer is None else hidden.layers[layer])[0], np.float64)


def test_probe_documents_start_with_bos_are_truncated_and_need_two_tokens(documents):
    chosen = choose_documents(ProbeConfig(documents=4, document_tokens=10, sets=1), documents, BOS)
    assert chosen.tokens_SNL.shape == (1, 4, 10)
    assert (chosen.points_SP - 10 * np.arange(4)).tolist() == [[5, 9, 3, 8]]
    assert (chosen.tokens_SNL[0, :, 0] == BOS).all()
    for row, document in zip(chosen.tokens_SNL[0], [documents[i] for i in (0, 2, 3, 4)], strict=True):
        np.testing.assert_array_equal(row[1 : 1 + len(document)], document[:9])


def test_probe_sets_are_disjoint_and_equal_in_size(documents):
    chosen = choose_documents(ProbeConfig(documents=5, document_tokens=40, sets=3), documents, BOS)
    assert chosen.tokens_SNL.shape == (3, 2, 40)  # 6 documents of two tokens or more
    first = {tuple(row) for row in chosen.tokens_SNL.reshape(6, 40)}
    assert len(first) == 6


def test_too_few_documents_contribute_further_pieces(documents):
    chosen = choose_documents(ProbeConfig(documents=4, document_tokens=10, sets=2), documents, BOS)
    pieces = [documents[i][:9] for i in (0, 2, 3, 4, 5, 6)] + [documents[2][9:18], documents[5][9:18]]
    for row, piece in zip(chosen.tokens_SNL.swapaxes(0, 1).reshape(8, 10), pieces, strict=True):
        np.testing.assert_array_equal(row[1 : 1 + len(piece)], piece)
    with pytest.raises(ConfigError, match=r"config.probe.sets = 4.*there are 6"):
        choose_documents(ProbeConfig(documents=5, document_tokens=40, sets=4), documents, BOS)


@pytest.mark.parametrize(("tokens", "counted"), [("all", 5 + 30 + 3 + 8 + 12 + 2), ("sampled", 20)])
def test_token_states_exclude_bos_and_padding_and_may_be_sampled(documents, params, tokens, counted):
    config = ProbeConfig(documents=6, document_tokens=40, sets=1, tokens=tokens, sampled_tokens=20)
    chosen = choose_documents(config, documents, BOS)
    existing = [40 * row + i for row, d in enumerate(d for d in documents if len(d) > 1) for i in range(1, len(d) + 1)]
    assert chosen.points_SP.shape == (1, counted)
    assert len(set(chosen.points_SP[0])) == counted
    assert set(chosen.points_SP[0]) <= set(existing)
    np.testing.assert_array_equal(chosen.points_SP, choose_documents(config, documents, BOS).points_SP)
    if tokens == "all":
        h = np.concatenate([states(params, d)[1:] for d in documents if len(d) > 1])
        config = ProbeConfig(documents=6, document_tokens=40, sets=1, tokens="all", final_states=RANK)
        assert measured(config, documents, params)["final_states/effective_rank"] == pytest.approx(
            roy_and_vetterli(h), rel=1e-3
        )


def test_the_unembedding_is_measured_without_padding_rows(params, documents):
    w = np.array(params["unembedding"])
    results = measured(ProbeConfig(documents=2), documents, params)
    assert results["unembedding/effective_rank"] == pytest.approx(roy_and_vetterli(w[:VOCABULARY]), rel=1e-4)
    assert results["unembedding/effective_rank_percent"] == pytest.approx(
        100 / 16 * roy_and_vetterli(w[:VOCABULARY]), rel=1e-4
    )
    fixed = w[:VOCABULARY] - w[:VOCABULARY].mean(axis=0)
    fixed -= fixed.mean(axis=1, keepdims=True)
    assert results["unembedding_gauge_fixed/effective_rank"] == pytest.approx(roy_and_vetterli(fixed), rel=1e-4)
    w[VOCABULARY:] = 1e3
    again = measured(ProbeConfig(documents=2), documents, params | {"unembedding": jnp.asarray(w)})
    assert again == results


def test_final_states_are_those_of_each_documents_last_token(params, documents):
    results = measured(ONE_SET, documents, params)
    h = np.array([states(params, document[:9])[-1] for document in documents if len(document) > 1])
    assert results["final_states/effective_rank"] == pytest.approx(roy_and_vetterli(h), rel=1e-3)
    assert results["final_states/mean_cosine"] == pytest.approx(cosine(h), rel=1e-3, abs=1e-5)


def test_the_mean_over_the_sets_and_their_spread_are_reported(params, documents):
    config = ProbeConfig(documents=2, document_tokens=10, sets=3, unembedding=TargetConfig())
    results = measured(config, documents, params)
    prefixes = [d[:9] for d in documents if len(d) > 1]
    ranks = [roy_and_vetterli(np.array([states(params, d)[-1] for d in prefixes[i::3]])) for i in range(3)]
    assert results["final_states/effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-3)
    assert results["final_states_spread/effective_rank"] == pytest.approx(np.std(ranks, ddof=1), rel=1e-3, abs=1e-5)
    assert results["final_states/points"] == 2
    assert results["final_states/rank_cap"] == 1
    assert "final_states_spread/points" not in results


def test_every_probe_target_is_configurable(params, documents):
    some = TargetConfig(metrics=("stable_rank",), centred=True)
    config = ProbeConfig(
        documents=6,
        document_tokens=10,
        sets=1,
        unembedding=TargetConfig(),
        final_states=TargetConfig(),
        embedding=TargetConfig(metrics=("stable_rank",)),
        layers=some,
        parameters=ParametersConfig(metrics=("stable_rank",), pattern=r"blocks_1/mlp/(up|down)$"),
    )
    results = measured(config, documents, params)
    assert set(results) == {
        f"{target}/stable_rank"
        for target in (
            "embedding", "blocks_1.mlp.up", "blocks_1.mlp.down", "layer_0", "layer_0_centred", "layer_1",
            "layer_1_centred",
        )
    }  # fmt: skip

    def stable_rank(x):
        s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
        return (s**2).sum() / s[0] ** 2

    h = np.array([states(params, document[:9], layer=0)[-1] for document in documents if len(document) > 1])
    assert results["layer_0/stable_rank"] == pytest.approx(stable_rank(h), rel=1e-3)
    assert results["layer_0_centred/stable_rank"] == pytest.approx(stable_rank(h - h.mean(0)), rel=1e-3)
    assert results["embedding/stable_rank"] == pytest.approx(stable_rank(params["embedding"][:VOCABULARY]), rel=1e-3)
    assert results["blocks_1.mlp.up/stable_rank"] == pytest.approx(
        stable_rank(params["blocks_1"]["mlp"]["up"]), rel=1e-3
    )


def test_targets_of_one_interval_share_a_program_and_0_disables(documents):
    chosen = choose_documents(ONE_SET, documents, BOS)
    config = ProbeConfig(
        every=0,
        unembedding=TargetConfig(metrics=("stable_rank",), every=5),
        embedding=TargetConfig(metrics=("stable_rank",), every=5),
        final_states=TargetConfig(metrics=("stable_rank",), every=20),
        layers=TargetConfig(metrics=("stable_rank",)),
    )
    assert list(make_probes(config, CONFIG, VOCABULARY, chosen)) == [5, 20]
    assert config.reads_states
    assert not ProbeConfig(every=0).reads_states
    assert make_probes(ProbeConfig(every=0), CONFIG, VOCABULARY, None) == {}


@pytest.mark.parametrize("mapping", ["vmap", "map"])
def test_members_are_measured_independently(params, documents, mapping):
    others = [model.init(CONFIG, jax.random.key(seed)) for seed in (1, 2)]
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), params, *others)
    chosen = choose_documents(ONE_SET, documents, BOS)
    (probe,) = make_probes(ONE_SET, CONFIG, VOCABULARY, chosen, mapping).values()
    together = probe(stack)
    for m, member in enumerate([params, *others]):
        single = measured(ONE_SET, documents, member)
        for name, values_M in together.items():
            np.testing.assert_allclose(values_M[m], single[name], rtol=1e-4, atol=1e-6)


def test_impossible_probes_are_refused_with_their_key(params):
    check_probe(ProbeConfig(layers=TargetConfig(metrics=tuple(METRICS))), params)
    with pytest.raises(ConfigError, match=r"config.probe.layers.metrics: no metric 'rnak'; the nearest is 'rank"):
        check_probe(ProbeConfig(layers=TargetConfig(metrics=("rnak",))), params)
    with pytest.raises(ConfigError, match=r"config.probe.parameters.pattern = 'mpl'.*blocks_0/mlp/up"):
        check_probe(ProbeConfig(parameters=ParametersConfig(metrics=("per",), pattern="mpl")), params)


def test_a_spectrum_logs_singular_values_by_index_with_the_metrics(documents, params):
    config = ProbeConfig(
        every=10, unembedding=TargetConfig(("effective_rank",), spectrum=True), final_states=TargetConfig()
    )
    results = measured(config, documents, params)
    w_VD = np.asarray(model.unembedding(params), np.float64)[:VOCABULARY]
    s_D = np.linalg.svd(w_VD, compute_uv=False)
    drawn = {name: value for name, value in results.items() if name.startswith("unembedding_spectrum/")}
    assert set(drawn) == {f"unembedding_spectrum/{place}" for place in (1, 2, 3, 4, 6, 8, 12, 16)}
    assert list(drawn.values()) == pytest.approx([s_D[int(name.split("/")[1]) - 1] for name in drawn], rel=1e-4)
    assert "unembedding_gauge_fixed_spectrum/16" in results
    assert results["unembedding/effective_rank"] == pytest.approx(roy_and_vetterli(w_VD), rel=1e-4)


def test_many_matrices_of_one_shape_are_measured_as_each_alone(params, monkeypatch):
    target = ParametersConfig(("effective_rank", "stable_rank"), centred=True, spectrum=True, pattern="attention|mlp")
    group, results = {"parameters": target}, []
    for most_alone in (0, 100):
        monkeypatch.setattr(probes, "_MOST_ALONE", most_alone)
        results.append(jax.jit(lambda p: measure_parameters(ONE_SET, group, CONFIG, VOCABULARY, p))(params))
    in_a_loop, alone = results
    assert in_a_loop.keys() == alone.keys()
    assert {"blocks_1.mlp.down_centred/stable_rank", "blocks_0.attention.key_spectrum/16"} <= in_a_loop.keys()
    for name, value in alone.items():
        assert float(in_a_loop[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_what_is_measured_is_the_mean_over_sets_of_the_states_taken(documents, params, tokens):
    target = TargetConfig(metrics=("effective_rank", "local_two_nn"))
    config = ProbeConfig(
        every=10,
        documents=3,
        document_tokens=10,
        sets=2,
        tokens=tokens,
        neighbors=4,
        final_states=target,
        layers=target,
    )
    found = measured(config, documents, params)
    chosen = choose_documents(config, documents, BOS)
    sets = [
        take_states(config, ("final_states", "layers"), CONFIG, (tokens_NL, points_P), params)
        for tokens_NL, points_P in zip(chosen.tokens_SNL, chosen.points_SP, strict=True)
    ]
    for name in ("final_states", "layer_0", "layer_1"):
        values = [summarize(states[name], target.metrics, 4) for states in sets]
        for metric in target.metrics:
            expected = np.mean([value[metric] for value in values])
            np.testing.assert_allclose(found[f"{name}/{metric}"], expected, rtol=1e-4)
