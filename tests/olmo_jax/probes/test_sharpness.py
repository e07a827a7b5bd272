"""The probe's sharpness against curvature computed from the documents one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry.curvature import critical_sharpness, hessian_trace, top_eigenvalue
from olmo_jax import model
from olmo_jax.config import ConfigError, ModelConfig, ProbeConfig, TargetConfig, from_config_dict
from olmo_jax.config.probe import SharpnessConfig
from olmo_jax.probes.columns import describe
from olmo_jax.probes.geometry import choose_documents, make_probes
from olmo_jax.probes.sharpness import measure_sharpness

CONFIG = ModelConfig(vocab_size=30, pad_vocab_to=32, d_model=8, n_layers=1, n_heads=2, d_ff=16)
BOS, NOTHING = 0, TargetConfig()


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(1, 30, size=n) for n in (5, 30, 3, 8, 12, 4)]


@pytest.fixture(scope="module")
def params():
    return model.init(CONFIG, jax.random.key(0))


def probed(texts, params, every=10, **sharpness):
    config = ProbeConfig(
        every=every, unembedding=NOTHING, final_states=NOTHING, documents=3, sets=2, document_tokens=10,
        sharpness=SharpnessConfig(**sharpness),
    )  # fmt: skip
    probes = make_probes(config, CONFIG, 30, choose_documents(config, texts, BOS))
    params_M = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params)
    return {interval: jax.device_get(probe(params_M)) for interval, probe in probes.items()}


def mean_loss(documents, params):
    """The mean over the tokens of documents that are read one by one, without padding."""
    total, count = 0.0, 0
    for document in documents:
        tokens_L = jnp.asarray([BOS, *document[:9]])
        final_LD = model.hidden(CONFIG, params, tokens_L[None, :-1]).final_BLD[0]
        log_p_LV = jax.nn.log_softmax(final_LD @ model.unembedding(params).T)
        total -= jnp.sum(jnp.take_along_axis(log_p_LV, tokens_L[1:, None], axis=1))
        count += len(tokens_L) - 1
    return total / count


@pytest.mark.slow
def test_sharpness_is_that_of_the_mean_loss_on_the_first_documents(documents, params):
    (found,) = probed(documents, params, documents=2, draws=3, lanczos_steps=6).values()

    def reference(params):
        return mean_loss([documents[i] for i in (0, 2)], params)  # the sets take documents in turn

    def all_of(params):
        trace = hessian_trace(reference, params, jax.random.key(0), 3)
        top = top_eigenvalue(reference, params, jax.random.key(0), 6)
        return critical_sharpness(reference, params, jax.grad(reference)(params)), *trace, top

    expected = jax.jit(jax.vmap(all_of))(jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), params))
    for name, value_M, rtol in zip(
        ("critical", "trace", "trace_standard_error", "top_eigenvalue"),
        expected,
        (0.07, 1e-3, 1e-2, 1e-3),  # critical sharpness is accurate to a thirty-second
        strict=True,
    ):
        np.testing.assert_allclose(found[f"sharpness/{name}"], value_M, rtol=rtol)


def test_a_head_of_two_factors_is_as_sharp_as_the_one_matrix(documents, params):
    factor_DD = jnp.eye(CONFIG.d_model) + 0.1 * jax.random.normal(jax.random.key(1), (CONFIG.d_model, CONFIG.d_model))
    factored = dataclasses.replace(CONFIG, factored_head=True)
    params = params | {"unembedding_factor": factor_DD}
    _, folded = model.folded(factored, params)
    config, (tokens_NL, length_N) = SharpnessConfig(documents=3, draws=2), (np.ones((3, 6), int), np.array([5, 2, 3]))
    values = [measure_sharpness(config, architecture, tokens_NL, length_N, one)
              for architecture, one in ((factored, params), (CONFIG, folded))]  # fmt: skip
    assert values[0] == values[1]


def test_only_what_is_asked_for_is_measured_and_as_often(documents, params):
    assert set(probed(documents, params)) == set()
    found = probed(documents, params, documents=2, every=3)
    assert {interval: set(values) for interval, values in found.items()} == {3: {"sharpness/critical"}}
    assert set(probed(documents, params, every=0, documents=2)) == set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 4}, "probe.sharpness.draws = 4: has no effect without probe.sharpness.documents"),
        ({"documents": 4, "lanczos_steps": 1}, "probe.sharpness.lanczos_steps = 1: needs 0"),
        ({"documents": 9}, "probe.sharpness.documents = 9: is more than the probe reads, 6"),
        ({"documents": -1}, "probe.sharpness.documents = -1: needs 0"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        from_config_dict(ProbeConfig, {"documents": 3, "sets": 2, "sharpness": settings}, "probe")


def test_every_column_says_what_it_is():
    for name in ("critical", "trace", "trace_standard_error", "top_eigenvalue"):
        assert describe(f"sharpness/{name}").kind == "geometry"
    assert describe("sharpness/trace_standard_error").of["statistic"] == "standard_error"
    assert describe("sharpness/other") is None
