"""Curvature and learning coefficient of language models, against an exact Hessian and as evaluations."""

import dataclasses
import functools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from eval.check import check_evaluation
from eval.config import CurvatureConfig, EvalConfig
from eval.evaluators import llc
from eval.windows import Windows, mean_loss
from geometry.curvature import critical_sharpness, hessian_trace, top_eigenvalue
from olmo_jax import model
from olmo_jax.config import ConfigError, ModelConfig

SMALL = ModelConfig(vocab_size=12, d_model=4, n_layers=1, n_heads=2, d_ff=8)


@pytest.fixture(scope="module")
def small():
    """A model of a few hundred parameters and its loss on some windows."""
    rng = np.random.default_rng(0)
    tokens_NL = jnp.asarray(rng.integers(0, 12, (6, 9)), jnp.int32)
    weights_NL = jnp.asarray(rng.integers(0, 2, (6, 8)), jnp.float32).at[:, 0].set(1.0)
    windows = Windows(tokens_NL[:, :-1], tokens_NL[:, 1:], weights_NL)
    params = jax.tree.map(lambda x: 2 * x, model.init(SMALL, jax.random.key(0)))
    return functools.partial(mean_loss, SMALL, windows=windows), params


def test_the_mean_loss_leaves_out_what_does_not_count(small):
    loss, params = small
    windows = loss.keywords["windows"]
    final_NLD = model.hidden(SMALL, params, windows.inputs_NL).final_BLD
    log_NLV = jax.nn.log_softmax(final_NLD @ model.unembedding(params).T)
    nats_NL = -jnp.take_along_axis(log_NLV, windows.targets_NL[..., None], axis=-1)[..., 0]
    expected = np.sum(np.asarray(nats_NL * windows.weights_NL)) / windows.weights_NL.sum()
    assert float(loss(params)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_trace_and_top_eigenvalue_are_those_of_the_exact_hessian_in_float64(small):
    loss, params = small
    with jax.enable_x64(True):
        windows = loss.keywords["windows"]
        wide = Windows(windows.inputs_NL, windows.targets_NL, windows.weights_NL.astype(jnp.float64))
        flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: x.astype(jnp.float64), params))

        def reference(x):
            p = unravel(x)
            config = dataclasses.replace(SMALL, compute_dtype="float64")
            final_NLD = model.hidden(config, p, wide.inputs_NL).final_BLD.astype(jnp.float64)
            log_NLV = jax.nn.log_softmax(final_NLD @ model.unembedding(p).T)
            nats_NL = -jnp.take_along_axis(log_NLV, wide.targets_NL[..., None], axis=-1)[..., 0]
            return jnp.sum(nats_NL * wide.weights_NL) / jnp.sum(wide.weights_NL)

        exact = np.asarray(jax.jit(jax.jacfwd(jax.grad(reference)))(flat))
    values = np.linalg.eigvalsh((exact + exact.T) / 2)
    trace, error = hessian_trace(loss, params, jax.random.key(0), 400)
    assert float(trace) == pytest.approx(values.sum(), abs=4 * float(error))
    assert float(top_eigenvalue(loss, params, jax.random.key(1), 40)) == pytest.approx(values[-1], rel=1e-3)
    # At a point without curvature of higher order, the loss along the gradient would return after 2 / curvature.
    gradient = jax.grad(loss)(params)
    found = float(critical_sharpness(loss, params, gradient))
    eta = 2 / found
    moved = [jax.tree.map(lambda w, g, s=s: w - s * eta * g, params, gradient) for s in (1 - 1 / 31, 1 + 1 / 31)]
    assert loss(moved[0]) < loss(params) <= loss(moved[1])


def test_chains_are_flagged_once_they_are_half_of_the_way_to_a_uniform_prediction(small):
    loss, params = small
    gradient = jax.jit(jax.grad(loss))
    for _ in range(150):
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, gradient(params))
    gap = math.log(SMALL.vocab_size) - float(loss(params))
    assert gap > 0.5
    windows = loss.keywords["windows"]

    def measured(params, gamma):
        numbers, sizes = (6, 4, 120), (jnp.asarray([0.1 / gamma]), jnp.asarray([gamma]))
        params_M = jax.tree.map(lambda x: x[None], params)
        found = llc.coefficients(SMALL, numbers, params_M, jax.random.key(0), windows, *sizes)
        return {name: float(value_M[0]) for name, value_M in found.items()}

    far, near = measured(params, 3.0), measured(params, 3e4)
    rises = [found["coefficient"] / (6 / math.log(6)) for found in (far, near)]
    assert far["left"] == 1 and rises[0] > gap / 2 and far["sound"] == 0
    assert near["left"] == 0 and rises[1] < gap / 2
    untrained = jax.tree.map(lambda w: 0 * w, params)  # predicts uniformly, and has no surroundings
    assert measured(untrained, 3e4)["sound"] == 0


def test_a_domain_of_which_no_text_is_read_is_refused_before_training(cohort, index):
    config = EvalConfig(domains=("prose",), curvature=CurvatureConfig(sequences=4, domains=("code",)))
    with pytest.raises(ConfigError, match="isn't among config.evaluation.domains = prose"):
        check_evaluation(config, cohort, index)
