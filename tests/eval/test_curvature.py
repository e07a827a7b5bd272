"""Curvature against exact Hessians and closed forms."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from eval.curvature import critical_sharpness, hessian_trace, top_eigenvalue

RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((32, 3), (32, 2)))
NET = {"in": jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32), "out": jnp.asarray(RNG.standard_normal((4, 2)))}


def net_loss(params):
    return jnp.mean(jnp.square(jnp.tanh(X @ params["in"]) @ params["out"] - Y))


def exact_trace(loss, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return float(jnp.trace(jax.hessian(lambda x: loss(unravel(x)))(flat)))


def test_trace_of_a_network_is_that_of_its_exact_hessian():
    trace, error = hessian_trace(net_loss, NET, jax.random.key(0), 2000)
    assert float(trace) == pytest.approx(exact_trace(net_loss, NET), abs=4 * float(error))
    assert 0 < float(error) < 0.05 * float(trace)


def test_standard_errors_are_those_of_repeated_estimates():
    keys = jax.random.split(jax.random.key(1), 200)
    traces, errors = jax.vmap(lambda key: hessian_trace(net_loss, NET, key, 20))(keys)
    assert float(traces.std()) == pytest.approx(float(jnp.sqrt(jnp.mean(errors**2))), rel=0.15)


def test_a_diagonal_hessian_needs_one_draw():
    curvatures = jnp.asarray([3.0, 0.5, -1.0])
    trace, error = hessian_trace(lambda w: 0.5 * jnp.sum(curvatures * w**2), jnp.ones(3), jax.random.key(0), 1)
    assert float(trace) == pytest.approx(2.5)
    assert np.isnan(float(error))
    with pytest.raises(ValueError, match="draws = 0"):
        hessian_trace(net_loss, NET, jax.random.key(0), 0)


def test_top_eigenvalue_is_that_of_the_exact_hessian():
    flat, unravel = jax.flatten_util.ravel_pytree(NET)
    with jax.enable_x64(True):
        exact = np.linalg.eigvalsh(np.asarray(jax.hessian(lambda x: net_loss(unravel(x)))(flat)))
    for seed in range(5):
        found = top_eigenvalue(net_loss, NET, jax.random.key(seed), steps=20)
        assert float(found) == pytest.approx(exact[-1], rel=1e-4)
    few = top_eigenvalue(net_loss, NET, jax.random.key(0), steps=4)
    assert exact[0] <= float(few) <= exact[-1] * (1 + 1e-5)


@pytest.mark.parametrize("curvatures", [[3.0, 0.5, -7.0], [-1.0, -2.0, -3.0], [2.0, 2.0, 2.0]])
def test_top_eigenvalue_with_more_steps_than_parameters(curvatures):
    """The largest, not that of largest size; the Krylov space ends after three steps or earlier."""
    values = jnp.asarray(curvatures)
    found = top_eigenvalue(lambda w: 0.5 * jnp.sum(values * w**2), jnp.ones(3), jax.random.key(0), steps=12)
    assert float(found) == pytest.approx(max(curvatures), abs=1e-4)
    with pytest.raises(ValueError, match="steps = 1"):
        top_eigenvalue(lambda w: jnp.sum(w), jnp.ones(3), jax.random.key(0), steps=1)


def test_a_network_trained_to_the_edge_of_stability():
    """Gradient descent raises the sharpness to 2 / eta and holds it there (Cohen et al. 2021)."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.linspace(-1, 1, 40)[:, None], jnp.float32)
    y = jnp.sin(4 * x) + 0.5 * x**2
    widths = (1, 24, 24, 1)
    params = [
        jnp.asarray(rng.normal(size=(i, o)) / np.sqrt(i), jnp.float32) for i, o in zip(widths, widths[1:], strict=False)
    ]

    def loss(params):
        h = x
        for w in params[:-1]:
            h = jnp.tanh(h @ w)
        return jnp.mean(jnp.square(h @ params[-1] - y))

    eta = 0.1

    def step(params, _):
        return jax.tree.map(lambda w, g: w - eta * g, params, jax.grad(loss)(params)), None

    params = jax.lax.scan(step, params, length=8000)[0]
    top = float(top_eigenvalue(loss, params, jax.random.key(0), steps=30))
    assert top == pytest.approx(2 / eta, rel=0.15)
    # Along the gradient, which oscillates in the sharpest direction.
    found = []
    for _ in range(10):
        params, _ = step(params, None)
        found.append(float(critical_sharpness(loss, params, jax.grad(loss)(params))))
    assert np.median(found) == pytest.approx(2 / eta, rel=0.15)


@pytest.mark.parametrize("curvature", [1e-3, 0.3, 2.0, 77.0, 1e5])
def test_critical_sharpness_of_a_quadratic_is_its_eigenvalue(curvature):
    def loss(w):
        return 0.5 * curvature * jnp.sum(w["x"] ** 2) + 7 * w["y"] ** 0

    params = {"x": jnp.asarray([1.0, -2.0]), "y": jnp.asarray(1.0)}
    found = critical_sharpness(loss, params, jax.grad(loss)(params))
    assert float(found) == pytest.approx(curvature, rel=1 / 31)
    near = critical_sharpness(loss, params, jax.grad(loss)(params), start=1.7 / curvature)
    assert float(near) == pytest.approx(curvature, rel=1 / 31)


def test_a_good_start_takes_six_passes():
    passes = []

    def loss(w):
        jax.debug.callback(lambda: passes.append(1))
        return 1.5 * jnp.sum(w**2)

    w = jnp.asarray([1.0, 2.0])
    critical_sharpness(loss, w, 3 * w, start=0.5).block_until_ready()
    jax.effects_barrier()
    assert len(passes) <= 7  # one of them where it starts


def test_directions_without_a_change_of_sign():
    def loss(w):
        return jnp.sum(w**2)

    w = jnp.asarray([1.0, 2.0])
    assert np.isnan(float(critical_sharpness(loss, w, -w)))  # ascends
    assert float(critical_sharpness(lambda w: -jnp.sum(w), w, -jnp.ones(2))) == 0  # falls for ever
    assert float(critical_sharpness(lambda w: jnp.where(w[0] < 0.5, jnp.inf, w[0]), w, jnp.ones(2))) == pytest.approx(
        4, rel=1 / 31
    )


def test_stacked_models_are_measured_side_by_side():
    def loss(w):
        return 0.5 * w["curvature"] * jnp.sum(w["x"] ** 2)

    stack = {"curvature": jnp.asarray([0.7, 5.0]), "x": jnp.ones((2, 3))}
    directions = {"curvature": jnp.zeros(2), "x": jnp.asarray([[0.7] * 3, [5.0] * 3])}
    found = jax.vmap(lambda w, u: critical_sharpness(loss, w, u))(stack, directions)
    np.testing.assert_allclose(found, [0.7, 5.0], rtol=1 / 31)
