import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry import dimension
from tests.oracles import peers

STORED = json.loads((pathlib.Path(__file__).parent.parent / "oracles" / "peers.json").read_text())["scikit-dimension"]
CLOUDS = peers.clouds()


def oracle_fit(log_mu, discard_fraction, estimator, convention):
    """Facco et al. 2017 in float64, step by step."""
    n = len(log_mu)
    if estimator == "mle":
        return (n - 1) / log_mu.sum()
    x = np.sort(log_mu)[: int(n * (1 - discard_fraction))]
    f = (np.arange(n) + (convention == "standard"))[: len(x)] / n
    x, f = x[f < 1], f[f < 1]
    return (x * -np.log(1 - f)).sum() / (x * x).sum()


def oracle_log_mu(x):
    distance = np.sqrt(np.square(x[:, None] - x[None]).sum(-1))
    two = np.sort(distance, axis=1)[:, 1:3]
    return np.log(two[:, 1] / two[:, 0])


def embedded(points, width, seed):
    """Return the points embedded into `width` dimensions by a random rotation."""
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, points.shape[1])))
    return (points @ turn.T).astype(np.float32)


SOME = list(CLOUDS)[0]  # each compiles a separate program


@pytest.mark.parametrize("name", [SOME, *(pytest.param(n, marks=pytest.mark.slow) for n in CLOUDS if n != SOME)])
def test_dimensions_match_stored_values_of_scikit_dimension(name):
    x_ND, stored = CLOUDS[name], STORED[name]
    ours = functools.partial(dimension.two_nn, x_ND, convention="skdim034")
    assert float(ours()) == pytest.approx(stored["two_nn"], rel=1e-3)
    assert float(ours(discard_fraction=0.0)) == pytest.approx(stored["two_nn_all"], rel=1e-3)
    local_N = dimension.local_two_nn(x_ND, 16, convention="skdim034")
    np.testing.assert_allclose(local_N, stored["local_two_nn_16"], rtol=1e-3)
    np.testing.assert_allclose(dimension.local_levina_bickel(x_ND), stored["local_levina_bickel"], rtol=1e-3)
    assert float(dimension.levina_bickel(x_ND)) == pytest.approx(stored["levina_bickel"], rel=1e-3)


@pytest.mark.parametrize(
    "form",
    [
        (0.1, "regression", "standard"),
        (0.0, "regression", "standard"),
        (0.35, "regression", "skdim034"),
        (0.1, "mle", "standard"),
    ],
)
def test_every_estimator_matches_float64(form):
    x_ND = CLOUDS["torus in 30"]
    assert float(dimension.two_nn(x_ND, *form)) == pytest.approx(oracle_fit(oracle_log_mu(x_ND), *form), rel=1e-4)
    order_NN = np.argsort(np.square(x_ND[:, None] - x_ND[None]).sum(-1), axis=1)
    local_N = dimension.local_two_nn(x_ND, 20, *form)
    for i in (0, 17, 499):
        inside = oracle_log_mu(x_ND[order_NN[i, 1:21]])
        assert float(local_N[i]) == pytest.approx(oracle_fit(inside, *form), rel=1e-3)


@pytest.mark.parametrize(("d", "width"), [(2, 64), (3, 256), (5, 1024), (8, 128)])
@pytest.mark.parametrize("estimator", dimension.ESTIMATORS)
def test_dimension_of_gaussians_and_spheres_lies_within_the_theoretical_spread(d, width, estimator):
    """Var = d^2/N; 4 standard deviations, and 6 % for the bias at N = 2,000 points."""
    rng = np.random.default_rng(d)
    sphere = rng.standard_normal((2000, d + 1))
    clouds = [rng.standard_normal((2000, d)), sphere / np.linalg.norm(sphere, axis=1, keepdims=True)]
    for points in clouds:
        estimate = float(dimension.two_nn(embedded(points, width, d), estimator=estimator))
        assert abs(estimate - d) < 4 * d / np.sqrt(2000) + 0.06 * d


@pytest.mark.parametrize("d", [12, 20])
def test_high_dimensions_are_underestimated_but_stay_ordered(d):
    """2,000 points are sparse in 20 dimensions: the density changes within a neighbourhood, and TwoNN comes out low."""
    rng = np.random.default_rng(0)
    low, high = (float(dimension.two_nn(embedded(rng.standard_normal((2000, n)), 512, n))) for n in (d - 4, d))
    assert 0.75 * d < high < d
    assert low < high


def test_local_dimension_separates_a_line_from_a_ball():
    rng = np.random.default_rng(2)
    line = np.outer(rng.uniform(0, 10, 300), np.ones(6) / np.sqrt(6))
    ball = rng.standard_normal((300, 6)) + 100
    local_N = np.asarray(dimension.local_two_nn(np.concatenate([line, ball]), 32))
    assert local_N[:300].mean() == pytest.approx(1, abs=0.15)
    assert local_N[300:].mean() > 3.5


def test_dimension_is_invariant_to_translation_scale_and_rotation():
    x_ND = CLOUDS["gaussian"]
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))
    expected = float(dimension.two_nn(x_ND))
    for other in (x_ND + 300.0, 1e-22 * x_ND, 1e22 * x_ND, x_ND @ turn):
        assert float(dimension.two_nn(other)) == pytest.approx(expected, rel=1e-3)


def test_exact_duplicates_are_dropped_and_counted():
    x_ND = CLOUDS["gaussian"]
    repeated = np.concatenate([x_ND, x_ND[[3, 3, 5, 80]]])
    assert int(dimension.duplicates(repeated)) == 4
    assert int(dimension.duplicates(x_ND)) == 0
    for estimator in dimension.ESTIMATORS:
        assert float(dimension.two_nn(repeated, estimator=estimator)) == pytest.approx(
            float(dimension.two_nn(x_ND, estimator=estimator)), rel=1e-5
        )
    for local in (functools.partial(dimension.local_two_nn, n_neighbors=16), dimension.local_levina_bickel):
        local_N = np.asarray(local(repeated))
        np.testing.assert_allclose(local_N[: len(x_ND)], local(x_ND), rtol=1e-5)
        assert np.isnan(local_N[len(x_ND) :]).all()
    assert float(dimension.levina_bickel(repeated)) == pytest.approx(float(dimension.levina_bickel(x_ND)), rel=1e-5)


def test_the_distribution_ignores_nan():
    values = np.random.default_rng(0).uniform(1, 9, 50).astype(np.float32)
    summary = dimension.distribution(jnp.asarray(np.concatenate([values, [np.nan, np.nan]])))
    assert float(summary.mean) == pytest.approx(values.mean(), rel=1e-5)
    assert float(summary.std) == pytest.approx(values.std(), rel=1e-5)
    quantiles = {"median": 0.5} | {f"q{percent}": percent / 100 for percent in (5, 10, 25, 75, 90, 95)}
    for name, share in quantiles.items():
        np.testing.assert_allclose(getattr(summary, name), np.quantile(values, share), rtol=1e-5)
    assert all(np.isnan(dimension.distribution(jnp.full(3, jnp.nan))))


def test_fewer_points_than_neighbours_use_all_points():
    x_ND = CLOUDS["gaussian"][:12]
    np.testing.assert_allclose(dimension.local_two_nn(x_ND, 128), dimension.local_two_nn(x_ND, 11), rtol=1e-5)
    np.testing.assert_allclose(dimension.local_levina_bickel(x_ND, 99), dimension.local_levina_bickel(x_ND, 11))
    few = np.concatenate([x_ND, np.repeat(x_ND[:1], 8, axis=0)])  # 12 distinct of 20
    np.testing.assert_allclose(dimension.local_two_nn(few, 16)[:12], dimension.local_two_nn(x_ND, 11), rtol=1e-4)


@pytest.mark.parametrize("x_ND", [np.ones((1, 3)), np.eye(2), np.ones((9, 3)), np.zeros((0, 3)), np.zeros((5, 0))])
def test_too_few_distinct_points_are_undefined(x_ND):
    assert np.isnan(dimension.two_nn(x_ND))
    assert np.isnan(dimension.two_nn(x_ND, estimator="mle"))
    assert np.isnan(dimension.local_two_nn(x_ND, 5)).all()
    assert np.isnan(dimension.levina_bickel(x_ND))


@pytest.mark.parametrize("convention", dimension.CONVENTIONS)
def test_the_slope_is_undefined_if_all_its_points_are_discarded(convention):
    x_ND = CLOUDS["gaussian"]
    assert np.isnan(dimension.two_nn(x_ND[:5], discard_fraction=0.9, convention=convention))
    assert np.isnan(dimension.two_nn(x_ND[:15], discard_fraction=0.9, convention="skdim034"))
    assert np.isnan(dimension.local_two_nn(x_ND, 8, discard_fraction=0.9, convention=convention)).all()


def test_a_lattice_has_ratios_of_one():
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 2), -1).reshape(-1, 2)
    assert float(dimension.two_nn(grid)) == np.inf
    assert float(dimension.two_nn(grid, estimator="mle")) == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_input_gives_nan_for_that_member_only(bad):
    stack = np.stack([CLOUDS["gaussian"][:60]] * 2)
    stack[0, 3, 1] = bad
    for metric in (dimension.two_nn, dimension.levina_bickel, lambda x: jnp.mean(dimension.local_two_nn(x, 8))):
        broken, finite = jax.vmap(metric)(stack)
        assert np.isnan(broken)
        assert float(finite) == pytest.approx(float(metric(stack[1])), rel=1e-4)


def test_invalid_arguments_are_refused():
    x_ND = np.eye(5)
    for call, words in [
        (lambda: dimension.two_nn(np.zeros(5)), "one matrix"),
        (lambda: dimension.two_nn(x_ND, estimator="ols"), "'ols'.*regression, mle"),
        (lambda: dimension.two_nn(x_ND, convention="mine"), "'mine'.*standard, skdim034"),
        (lambda: dimension.two_nn(x_ND, discard_fraction=1.0), r"1.0.*\[0, 1\)"),
        (lambda: dimension.local_two_nn(x_ND, 2), "n_neighbors = 2"),
        (lambda: dimension.local_levina_bickel(x_ND, 1), "n_neighbors = 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
