"""What is measured after training is measured of the right model, on the right text."""

import types

import jax
import numpy as np
import pytest

from geometry.probe import summarize
from olmo_jax import model
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import ArithmeticConfig, DataConfig, ModelConfig, ProbeConfig, TextsConfig, TrainConfig
from olmo_jax.data.prepare import prepare
from olmo_jax.data.sources import arithmetic
from sweeps.judge import probing
from sweeps.judge.probe_configs import probe_configs

SMALL = ModelConfig(vocab_size=14, pad_vocab_to=1, d_model=16, n_layers=1, n_heads=2, d_ff=32, positions="learned")
SUMS = DataConfig(
    name="sums", corpus="arithmetic", sequence_length=4, batch_size=8,
    arithmetic=ArithmeticConfig("add", 11, train_fraction=0.6),
)  # fmt: skip
TRAINED_ON = 73  # of 121 equations
TEXTS = TextsConfig(tokens="last", points=TRAINED_ON, neighbors=8)


@pytest.fixture
def equations(tmp_path, monkeypatch):
    """A stack of two models, which are trained on different equations: its parameters, and the tokens of the second."""
    index = prepare(SUMS, tmp_path, lambda line: None)
    configs = [
        TrainConfig(tokens=3200, data=SUMS, model=SMALL, data_seed=seed, probe=ProbeConfig(texts=TEXTS))
        for seed in range(2)
    ]
    stack = Cohort(shape_of(configs[0], index.fingerprint), (Run("a", configs[0]), Run("b", configs[1])))
    params = {run: model.init(SMALL, jax.random.key(i)) for i, run in enumerate("ab")}

    def load(models):
        return jax.tree.map(lambda *xs: np.stack(xs), *(params[run] for run, _ in models))

    data = types.SimpleNamespace(shape=stack.shape, load=load)
    monkeypatch.setattr(probing, "_stacks", lambda at, of, saved=False: [(stack, [(r, 0) for r in of], data, index)])
    of_second = arithmetic.split(configs[1].data.arithmetic, 1).train
    return params, arithmetic.equations(SUMS.arithmetic)[of_second, :4]


def test_a_model_is_measured_on_the_equations_that_it_was_trained_on(equations):
    params, tokens_NL = equations
    states_ND = np.asarray(model.hidden(SMALL, params["b"], tokens_NL).final_BLD[:, -1])
    (found,) = probing.measure(None, ["final_states.train/effective_rank"], ["b"])
    expected = float(summarize(states_ND, ("effective_rank",))["effective_rank"])
    assert found["b"]["final_states.train/effective_rank"] == pytest.approx(expected, rel=1e-5)
    (matrix,) = probing.states(None, ["final_states.train"], ["b"])
    assert matrix.x_ND.shape == (TRAINED_ON, 16)
    np.testing.assert_allclose(np.sort(matrix.x_ND, axis=0), np.sort(states_ND, axis=0), atol=1e-5)


def test_a_text_that_is_not_there_or_too_short_leaves_the_others(equations, capsys):
    columns = [f"final_states.{text}/effective_rank" for text in ("train", "poetry", "validation")]
    (found,) = probing.measure(None, columns, ["a", "b"])
    assert all(list(row) == columns[:1] for row in found.values())
    said = capsys.readouterr().err
    assert "no states are measured on poetry: config.probe.texts.names" in said
    assert f"no states are measured on validation: config.probe.texts.points = {TRAINED_ON}" in said


def test_a_text_is_measured_only_by_what_is_asked_of_it():
    columns = ["final_states.a/isoscore", "layer_0.b.c/local_two_nn", "layer_1.a/isoscore", "unembedding/isoscore"]
    plain, a, b = probe_configs(ProbeConfig(texts=TEXTS), columns, SMALL)
    assert plain.unembedding.metrics == ("isoscore",) and not plain.texts.names
    assert (a.texts.names, a.texts.states, a.texts.metrics) == (("a",), ("final_states",), ("isoscore",))
    assert (b.texts.names, b.texts.states, b.texts.metrics) == (("b.c",), ("layer_0",), ("local_two_nn",))
    assert not a.unembedding.metrics and not a.reads_states
