"""Measurements on named texts match the model applied document by document, sampled in paper B's order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry.dimension import local_two_nn
from geometry.probe import summarize
from olmo_jax import model
from olmo_jax.config import (
    ArithmeticConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    ProbeConfig,
    TargetConfig,
    TextsConfig,
    TrainConfig,
)
from olmo_jax.data.prepare import prepare
from olmo_jax.data.sources import arithmetic
from olmo_jax.probes.geometry import make_probes
from olmo_jax.probes.texts import check_texts, evaluation_sets, read_states, states_geometry, text_sets

MODEL = ModelConfig(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=2, n_heads=2, d_ff=32)
TEXTS = TextsConfig(
    names=("train", "validation", "other"),
    states=("final_states", "layer_0"),
    metrics=("local_two_nn", "effective_rank", "points", "duplicates"),
    documents=12,
    document_tokens=10,
    points=40,
    neighbors=8,
)


@pytest.fixture(scope="module")
def run(tiny):
    probe = dataclasses.replace(tiny.probe, texts=TEXTS)
    return dataclasses.replace(tiny, model=MODEL, probe=probe)


@pytest.fixture(scope="module")
def params():
    return model.init(MODEL, jax.random.key(0))


def measured(config, runs, index, params_M, mapping="map", at_once=None, places=None):
    """Return all values of the texts probe, `{name: [M]}`."""
    only = ProbeConfig(every=1, unembedding=TargetConfig(), final_states=TargetConfig(), texts=config)

    runs = [dataclasses.replace(r, probe=only) for r in runs]
    read = evaluation_sets(runs, index)
    (probe,) = make_probes(only, runs[0].model, index.vocab_size, None, mapping, None, read, at_once).values()
    return {name: np.asarray(x_M) for name, x_M in probe(params_M, places).items()}


def stacked(*members):
    return jax.tree.map(lambda *xs: jnp.stack(xs), *members)


def documents_of(index, text, domain="prose"):
    split = "train" if text == "train" else "validation"
    name = domain if text in ("train", "validation") else text
    results = [d[: TEXTS.document_tokens] for d in index.documents(split, name) if len(d) > 1]
    return results[: TEXTS.documents]


@pytest.mark.parametrize("text", TEXTS.names)
def test_loss_and_accuracy_match_reading_each_document_separately(run, index, params, text):
    results = measured(TEXTS, [run], index, stacked(params))
    nats, right = [], []
    for document in documents_of(index, text):
        inputs = np.concatenate([[index.eos_id], document[:-1]])
        logits = np.asarray(model.apply(MODEL, params, inputs[None]).logits_BLV[0], np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        nats += list(-log_p[np.arange(len(document)), document])
        right += list(logits.argmax(axis=1) == document)
    np.testing.assert_allclose(results[f"texts.{text}/loss"], [np.mean(nats)], rtol=1e-5)
    np.testing.assert_allclose(results[f"texts.{text}/accuracy"], [np.mean(right)], rtol=1e-6)


@pytest.mark.parametrize("states", TEXTS.states)
@pytest.mark.parametrize("tokens", ["all", "last"])
def test_states_are_sampled_then_deduplicated_then_truncated(run, index, params, states, tokens):
    """Paper B's order; each state is that of its document read separately, and every BOS has the same state."""
    config = dataclasses.replace(TEXTS, names=("train",), tokens=tokens, documents=30, points=20)
    if tokens == "all":
        config = dataclasses.replace(config, drawn=150, points=100)
    (evaluation_set, *_) = evaluation_sets([dataclasses.replace(run, probe=ProbeConfig(texts=config))], index)
    drawn = np.asarray(read_states(config, MODEL, evaluation_set, params, evaluation_set.points_MKT[0])[states][0])
    separate = []
    documents = [d[: config.document_tokens] for d in index.documents("train", "prose") if len(d) > 1][:30]
    for document in documents:
        inputs = np.concatenate([[index.eos_id], document[:-1]])
        hidden = model.hidden(MODEL, params, inputs[None], layers=True)
        of = np.asarray((hidden.final_BLD if states == "final_states" else hidden.layers[0])[0])
        separate += list(of[-1:] if tokens == "last" else of)
    order = np.random.default_rng(0).permutation(len(separate))[: config.drawn or None]
    np.testing.assert_allclose(drawn, np.array(separate)[order], rtol=1e-4, atol=1e-5)
    distinct = []
    for row in drawn:
        if not any((row == other).all() for other in distinct):
            distinct.append(row)
    values = {k: float(v) for k, v in states_geometry(config, jnp.asarray(drawn)).items()}
    assert values["duplicates"] == len(drawn) - len(distinct)
    assert values["points"] == min(config.points, len(distinct))
    if tokens == "all":
        assert values["duplicates"] > 0
    points_ND = jnp.asarray(np.array(distinct[: config.points]))
    expected = jnp.nanmean(local_two_nn(points_ND, config.neighbors, convention="skdim034"))
    np.testing.assert_allclose(values["local_two_nn"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        values["effective_rank"], summarize(points_ND, ("effective_rank",))["effective_rank"], rtol=1e-4
    )


@pytest.mark.parametrize("tokens, expected", [("all", [0, 0, 11, 12, 13, 21, 22]), ("last", [13, 22])])
def test_states_include_the_last_token_and_exclude_padding(tokens, expected):
    config = TextsConfig(tokens=tokens, documents=2, document_tokens=8, metrics=())
    (evaluation_set,) = text_sets(config, {"short": iter([np.array([11, 12, 13]), np.array([21, 22])])}, 0)
    assert sorted(evaluation_set.inputs_NL.ravel()[evaluation_set.points_MKT.ravel()]) == expected


def test_fewer_distinct_states_than_points_are_counted_and_measured():
    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(30, 3)).astype(np.float32)
    drawn = jnp.asarray(x_ND[[*range(30), *range(20)]])
    config = TextsConfig(metrics=("local_two_nn", "points", "duplicates"), points=45, neighbors=8)
    results = states_geometry(config, drawn)
    assert (float(results["points"]), float(results["duplicates"])) == (30, 20)
    expected = jnp.nanmean(local_two_nn(jnp.asarray(x_ND), 8, convention="skdim034"))
    np.testing.assert_allclose(results["local_two_nn"], expected, rtol=1e-5)


MAPPINGS = [("map", None), ("vmap", None), ("vmap", 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("mapping", "at_once"), MAPPINGS)
def test_members_are_measured_independently(run, index, params, mapping, at_once):
    members = [params, *(model.init(MODEL, jax.random.key(seed)) for seed in (1, 2, 3))]
    together = measured(TEXTS, [run] * 4, index, stacked(*members), mapping, at_once)
    for m, member in enumerate(members):
        for name, value in measured(TEXTS, [run], index, stacked(member)).items():
            np.testing.assert_allclose(together[name][m], value[0], rtol=2e-3, err_msg=name)


# Equations.

EQUATIONS = DataConfig(
    name="sums", corpus="arithmetic", sequence_length=4, batch_size=8, arithmetic=ArithmeticConfig("add", 11)
)
SMALL = ModelConfig(vocab_size=14, pad_vocab_to=1, d_model=16, n_layers=1, n_heads=2, d_ff=32, positions="learned")
OF_EQUATIONS = dataclasses.replace(TEXTS, names=("train", "validation"), points=30)


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    return prepare(EQUATIONS, tmp_path_factory.mktemp("sums"), lambda line: None)


def equation_run(fraction, seed, texts=OF_EQUATIONS):
    of = dataclasses.replace(EQUATIONS.arithmetic, train_fraction=fraction)
    data = dataclasses.replace(EQUATIONS, arithmetic=of)
    return TrainConfig(tokens=3200, data=data, model=SMALL, data_seed=seed, probe=ProbeConfig(texts=texts))


def test_each_member_is_measured_on_its_equations(sums):
    runs = [equation_run(0.3, 0), equation_run(0.6, 1), equation_run(0.6, 2)]
    members = [model.init(SMALL, jax.random.key(seed)) for seed in range(3)]
    results = measured(OF_EQUATIONS, runs, sums, stacked(*members))
    again = measured(OF_EQUATIONS, runs, sums, stacked(members[2], members[0]), places=[2, 0])
    tokens = arithmetic.equations(EQUATIONS.arithmetic)
    for m, (run, params) in enumerate(zip(runs, members, strict=True)):
        logits = np.asarray(model.apply(SMALL, params, tokens[:, :4]).logits_BLV[:, -1], np.float64)
        nats = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(tokens)), tokens[:, 4]]
        for name, of in arithmetic.split(run.data.arithmetic, run.data_seed)._asdict().items():
            np.testing.assert_allclose(results[f"texts.{name}/loss"][m], nats[of].mean(), rtol=1e-5)
            right = (logits[of].argmax(axis=1) == tokens[of, 4]).mean()
            np.testing.assert_allclose(results[f"texts.{name}/accuracy"][m], right, rtol=1e-5)
    for name, values in again.items():
        np.testing.assert_allclose(values, results[name][[2, 0]], rtol=1e-5, err_msg=name)


def test_loss_and_accuracy_need_no_states(sums):
    config = dataclasses.replace(OF_EQUATIONS, metrics=(), points=10**6)
    results = measured(config, [equation_run(0.5, 0, config)], sums, stacked(model.init(SMALL, jax.random.key(0))))
    assert set(results) == {f"texts.{t}/{m}" for t in ("train", "validation") for m in ("loss", "accuracy")}


# Bad input.


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"names": ("train", "poetry")},
            "there is no text 'poetry'; the texts are train, validation, code, other, prose",
        ),
        ({"points": 5000}, "config.probe.texts.points = 5000: the text train gives 120 tokens, "),
        ({"tokens": "last", "points": 13}, "the text train gives 12 tokens, of which only 12 have distinct contexts"),
    ],
)
def test_missing_or_too_short_texts_are_refused(run, index, changes, words):
    config = dataclasses.replace(TEXTS, **changes)
    with pytest.raises(ConfigError, match=words):
        evaluation_sets([dataclasses.replace(run, probe=ProbeConfig(texts=config))], index)


def test_too_few_equations_for_the_points_are_refused_with_the_share(sums):
    config = dataclasses.replace(OF_EQUATIONS, points=400)
    with pytest.raises(ConfigError, match=r"train_fraction = 0.3\) gives 144 tokens, "):
        evaluation_sets([equation_run(0.3, 0, config)], sums)
    config = dataclasses.replace(OF_EQUATIONS, names=("prose",))
    with pytest.raises(ConfigError, match="equations have no text 'prose'"):
        evaluation_sets([equation_run(0.3, 0, config)], sums)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"states": ("layer_2",)}, "the model has no 'layer_2'; its 2 blocks are layer_0 to layer_1"),
        ({"metrics": ("local_twonn",)}, "config.probe.texts.metrics: no metric 'local_twonn'"),
    ],
)
def test_unknown_states_and_metrics_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        check_texts(dataclasses.replace(TEXTS, **changes), MODEL)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"points": 64, "neighbors": 64}, "config.points = 64: leaves a point fewer than config.neighbors"),
        ({"drawn": 50, "points": 100, "neighbors": 8}, "config.drawn = 50: is fewer than config.points = 100"),
        ({"names": ("train", "train")}, "names a text twice"),
        ({"tokens": "first"}, "config.tokens = 'first': needs one of all, last"),
    ],
)
def test_contradictory_numbers_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(TEXTS, **changes).check("config")
