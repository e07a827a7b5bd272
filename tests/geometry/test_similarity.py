import jax
import numpy as np
import pytest
import scipy.linalg

from geometry import similarity

RNG = np.random.default_rng(4)
X = RNG.standard_normal((60, 8)) + 2
Y = X @ RNG.standard_normal((8, 5)) + RNG.standard_normal((60, 5)) - 3


def oracle_cka(x, y):
    """Compute CKA from the N x N kernels of its definition."""
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def oracle_hsic(x, y):
    """Song et al. 2012, equation 5."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    total = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * one @ k @ m @ one / (n - 2)
    return total / (n * (n - 3))


def test_cka_equals_its_kernel_definition():
    assert float(similarity.linear_cka(X, Y)) == pytest.approx(oracle_cka(X, Y), rel=1e-4)
    expected = oracle_hsic(X, Y) / np.sqrt(oracle_hsic(X, X) * oracle_hsic(Y, Y))
    assert float(similarity.linear_cka(X, Y, debiased=True)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_is_invariant_to_rotation_translation_and_scale(debiased):
    turn, _ = np.linalg.qr(RNG.standard_normal((8, 8)))
    expected = float(similarity.linear_cka(X, Y, debiased))
    for other in (X @ turn, X + 50, 1e20 * X, 1e-25 * X):
        assert float(similarity.linear_cka(other, Y, debiased)) == pytest.approx(expected, rel=1e-3)
    assert float(similarity.linear_cka(X @ turn, X, debiased)) == pytest.approx(1, rel=1e-4)


def test_debiased_cka_of_independent_points_is_near_zero():
    x, y = RNG.standard_normal((2, 60, 200))
    assert float(similarity.linear_cka(x, y)) > 0.7
    assert abs(float(similarity.linear_cka(x, y, debiased=True))) < 0.1


def test_cka_between_layers_is_symmetric_with_a_unit_diagonal():
    cka = np.asarray(similarity.cka_between([X, Y, X[:, :3]]))
    np.testing.assert_allclose(cka, cka.T)
    np.testing.assert_allclose(np.diag(cka), 1, rtol=1e-5)
    assert cka[0, 2] == pytest.approx(oracle_cka(X, X[:, :3]), rel=1e-4)


@pytest.mark.parametrize("turn", [0.0, 1e-4, 0.3, 10.0])
def test_subspace_angles_match_scipy(turn):
    w = RNG.standard_normal((300, 10))
    z = w + turn * RNG.standard_normal((300, 10))
    expected = np.mean(scipy.linalg.subspace_angles(w, z) ** 2)
    assert float(similarity.mean_squared_angle(w, z)) == pytest.approx(expected, rel=1e-2, abs=1e-11)


def test_subspace_angles_do_not_depend_on_the_basis():
    w, z = RNG.standard_normal((300, 6)), RNG.standard_normal((300, 9))
    expected = np.mean(scipy.linalg.subspace_angles(w, z) ** 2)
    assert float(similarity.mean_squared_angle(w, z)) == pytest.approx(expected, rel=1e-4)
    doubled = np.concatenate([w, w @ RNG.standard_normal((6, 6))], axis=1)  # twelve columns, six dimensions
    assert float(similarity.mean_squared_angle(doubled, z)) == pytest.approx(expected, rel=1e-3)
    strong = w * np.array([50, 50, 1, 1, 1, 1])
    u, _, _ = np.linalg.svd(strong, full_matrices=False)
    expected = np.mean(scipy.linalg.subspace_angles(u[:, :2], w[:, :2]) ** 2)
    assert float(similarity.mean_squared_angle(strong, w[:, :2], rank=2)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("bad", [0 * X, np.nan * X])
def test_undefined_similarity_is_nan(bad):
    assert np.isnan(similarity.linear_cka(bad, Y))
    assert np.isnan(similarity.linear_cka(bad, Y, debiased=True))
    assert np.isnan(similarity.mean_squared_angle(bad, Y))
    assert np.isnan(similarity.linear_cka(X[:3], Y[:3], debiased=True))


def test_different_numbers_of_points_are_refused():
    with pytest.raises(ValueError, match="60 and 59 rows"):
        similarity.linear_cka(X, Y[:59])
    with pytest.raises(ValueError, match="60 and 59 rows"):
        similarity.mean_squared_angle(X, Y[:59])


def test_vmap_equals_a_loop():
    stack = np.stack([X, X + RNG.standard_normal(X.shape)])
    for measure in (similarity.linear_cka, similarity.mean_squared_angle):
        loop = [float(measure(x, Y)) for x in stack]
        np.testing.assert_allclose(jax.jit(jax.vmap(lambda x, f=measure: f(x, Y)))(stack), loop, rtol=1e-4)
