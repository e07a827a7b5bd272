import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from geometry import isotropy
from geometry.svd import singular_values


def oracle_mean_cosine(x):
    """Average over all N (N - 1) pairs, as defined."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = u @ u.T
    return cosines[~np.eye(len(x), dtype=bool)].mean()


def oracle_partition_isotropy(w):
    _, c = np.linalg.eigh(w.T @ w)
    log_z = scipy.special.logsumexp(np.concatenate([w @ c, -w @ c], axis=1), axis=0)
    return np.exp(log_z.min() - log_z.max())


def oracle_isoscore(x):
    """Rudman et al. 2022, Algorithm 1, step by step."""
    n = x.shape[1]
    variance = np.linalg.eigvalsh(np.cov(x.T))
    normalised = variance * np.sqrt(n) / np.linalg.norm(variance)
    defect = np.linalg.norm(normalised - 1) / np.sqrt(2 * (n - np.sqrt(n)))
    phi = (n - defect**2 * (n - np.sqrt(n))) ** 2 / n**2
    return (n * phi - 1) / (n - 1)


ORACLES = {
    isotropy.mean_cosine: oracle_mean_cosine,
    isotropy.partition_isotropy: oracle_partition_isotropy,
    isotropy.isoscore: oracle_isoscore,
}


@pytest.mark.parametrize("metric", ORACLES, ids=lambda f: f.__name__)
def test_isotropy_metrics_match_float64(matrix, metric):
    assert float(metric(matrix)) == pytest.approx(ORACLES[metric](matrix), rel=1e-3)


@pytest.mark.parametrize("metric", ORACLES, ids=lambda f: f.__name__)
def test_jit_equals_eager_and_vmap_equals_a_loop(matrices, metric):
    w_VD = matrices["common vector"][:40, :8]
    stack = np.stack([w_VD, 0.5 * w_VD + 0.1])
    with jax.disable_jit():
        loop = [float(metric(w)) for w in stack]
    np.testing.assert_allclose(metric(stack[0]), loop[0], rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(metric)(stack), loop, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", ORACLES, ids=lambda f: f.__name__)
def test_nan_input_gives_nan_output(matrices, metric, bad):
    w_VD = matrices["gaussian"].copy()
    w_VD[3, 4] = bad
    assert np.isnan(metric(w_VD))


@pytest.mark.parametrize("metric", ORACLES, ids=lambda f: f.__name__)
def test_inputs_that_are_no_matrices_are_refused(metric):
    with pytest.raises(ValueError, match="one matrix"):
        metric(np.zeros(5))


def test_mean_cosine_closed_forms():
    assert float(isotropy.mean_cosine(np.array([[1.0, 0], [3, 0]]))) == pytest.approx(1)
    assert float(isotropy.mean_cosine(np.array([[1.0, 0], [-3, 0]]))) == pytest.approx(-1)
    assert float(isotropy.mean_cosine(np.eye(5))) == pytest.approx(0, abs=1e-7)
    corners = np.eye(4) - 0.25  # of a regular simplex
    assert float(isotropy.mean_cosine(corners)) == pytest.approx(-1 / 3, rel=1e-5)


def test_mean_cosine_ignores_zero_rows(matrices):
    x_ND = matrices["common vector"]
    padded = np.concatenate([x_ND[:50], np.zeros((9, 48)), x_ND[50:]])
    assert float(isotropy.mean_cosine(padded)) == pytest.approx(float(isotropy.mean_cosine(x_ND)), rel=1e-5)


@pytest.mark.parametrize("x_ND", [np.ones((1, 4)), np.zeros((3, 4)), np.eye(3, 4) * [[0], [7], [0]]])
def test_mean_cosine_without_a_pair_is_undefined(x_ND):
    assert np.isnan(isotropy.mean_cosine(x_ND))


def test_mean_cosine_ignores_the_length_of_each_row(matrices):
    x_ND = matrices["common vector"]
    length_N1 = np.geomspace(1e-25, 1e25, len(x_ND))[:, None]
    assert float(isotropy.mean_cosine(x_ND * length_N1)) == pytest.approx(oracle_mean_cosine(x_ND), rel=1e-3)


def test_mean_cosine_of_many_rows_does_not_overflow_or_drift():
    x_ND = np.random.default_rng(0).standard_normal((60_000, 16)).astype(np.float32) + np.float32(0.3)
    u = x_ND.astype(np.float64) / np.linalg.norm(x_ND.astype(np.float64), axis=1, keepdims=True)
    truth = (np.sum(u.sum(axis=0) ** 2) - len(u)) / (len(u) * (len(u) - 1.0))
    assert float(isotropy.mean_cosine(x_ND)) == pytest.approx(truth, rel=1e-3)


def test_mean_cosine_gradient_matches_float64_differences_beside_a_zero_row():
    rng = np.random.default_rng(1)
    x_ND, direction = rng.standard_normal((2, 12, 5))
    x_ND[4] = direction[4] = 0
    gradient = jax.grad(isotropy.mean_cosine)(jnp.float32(x_ND))
    rest = np.arange(12) != 4
    above, below = (oracle_mean_cosine((x_ND + step * direction)[rest]) for step in (1e-6, -1e-6))
    assert float(np.sum(gradient * direction)) == pytest.approx((above - below) / 2e-6, rel=1e-3)


def test_partition_isotropy_lies_between_0_and_1_and_ignores_sign(matrix):
    value = float(isotropy.partition_isotropy(matrix))
    assert 0 <= value <= 1
    assert float(isotropy.partition_isotropy(-matrix)) == pytest.approx(value, rel=1e-4)


def test_partition_isotropy_is_invariant_to_rotation(matrix):
    width = matrix.shape[1]
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((width, width)))
    value = float(isotropy.partition_isotropy(matrix))
    assert float(isotropy.partition_isotropy(matrix @ rotation)) == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("max_elements", [1, 1000, 96 * 50, 96 * 600, 1 << 30])
def test_partition_isotropy_does_not_depend_on_the_block_size(matrices, max_elements):
    w_VD = matrices["common vector"]
    value = isotropy.partition_isotropy(w_VD, max_elements=max_elements)
    assert float(value) == pytest.approx(oracle_partition_isotropy(w_VD), rel=1e-3)


def equations(jaxpr):
    """Return the equations of a jaxpr and of the jitted functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name in ("jit", "pjit"):
            yield from equations(equation.params["jaxpr"].jaxpr)


def test_partition_isotropy_allocates_no_array_above_its_bound():
    w_VD, bound = jax.ShapeDtypeStruct((5000, 32), jnp.float32), 10_000
    jaxpr = jax.make_jaxpr(lambda w: isotropy.partition_isotropy(w, max_elements=bound))(w_VD)
    (scan,) = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name == "scan"]
    formed = [v.aval.size for equation in scan.params["jaxpr"].jaxpr.eqns for v in equation.outvars]
    assert bound / 2 < max(formed) <= bound


def test_partition_isotropy_closed_forms():
    assert float(isotropy.partition_isotropy(np.zeros((9, 4)))) == pytest.approx(1)
    assert float(isotropy.partition_isotropy(np.array([[2.0, 0], [2, 0]]))) == pytest.approx(np.exp(-4), rel=1e-5)
    assert float(isotropy.partition_isotropy(np.array([[500.0, 0]]))) == 0
    cloud = 0.05 * np.random.default_rng(0).standard_normal((20_000, 8))
    assert float(isotropy.partition_isotropy(cloud)) == pytest.approx(1, abs=0.01)


def test_isoscore_closed_forms():
    cross = np.concatenate([np.eye(6), -np.eye(6)])
    assert float(isotropy.isoscore(cross)) == pytest.approx(1, rel=1e-5)
    line = np.outer(np.arange(10), np.ones(6)) + 3
    assert float(isotropy.isoscore(line)) == pytest.approx(0, abs=1e-5)
    plane = np.zeros((4, 6))
    plane[[0, 1, 2, 3], [0, 0, 1, 1]] = [1, -1, 1, -1]
    assert float(isotropy.isoscore(plane)) == pytest.approx(1 / 5, rel=1e-5)


@pytest.mark.parametrize("x_ND", [np.ones((1, 4)), np.full((5, 4), 0.1), np.arange(5.0)[:, None]])
def test_isoscore_without_variance_or_with_one_column_is_undefined(x_ND):
    assert np.isnan(isotropy.isoscore(x_ND))


def test_isoscore_with_few_rows_is_capped(matrices):
    rows, width = matrices["wide"].shape
    assert float(isotropy.isoscore(matrices["wide"])) <= (rows - 2) / (width - 1)
    assert np.count_nonzero(singular_values(matrices["wide"] - matrices["wide"].mean(0)) > 1e-5) == rows - 1
