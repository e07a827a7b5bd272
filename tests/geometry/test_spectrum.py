import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry import spectrum, svd

# Compiled, since there are many small calls; test_jit_equals_eager_and_vmap_equals_a_loop also calls them uncompiled.
METRICS = [
    jax.jit(metric)
    for metric in (
        spectrum.effective_rank,
        spectrum.stable_rank,
        spectrum.participation_ratio,
        spectrum.singular_entropy,
        spectrum.condition_number,
        spectrum.power_law_alpha,
    )
]
RANKS = METRICS[:3]
SINGULAR_ENTROPY, CONDITION_NUMBER = METRICS[3:5]


def oracle_values(w):
    return scipy.linalg.svd(w, compute_uv=False, lapack_driver="gesvd")


def oracle_alpha(s):
    """Clauset's fit in float64, tail by tail, with WeightWatcher's empirical distribution."""
    eigenvalues = np.sort(s[s > len(s) * np.finfo(np.float32).eps * s.max()] ** 2)
    fits = []
    for i in range(len(eigenvalues) - 1):
        tail = eigenvalues[i:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        fitted = 1 - (tail / tail[0]) ** (1 - alpha)
        fits.append((np.abs(fitted - np.arange(len(tail)) / len(tail)).max(), alpha))
    return min(fits)[1]


ORACLES = {
    "effective_rank": lambda s: np.exp(scipy.stats.entropy(s)),
    "singular_entropy": lambda s: scipy.stats.entropy(s, np.ones_like(s)),
    "stable_rank": lambda s: (s**2).sum() / s.max() ** 2,
    "participation_ratio": lambda s: (s**2).sum() ** 2 / (s**4).sum(),
    "power_law_alpha": oracle_alpha,
}


@pytest.mark.parametrize("method", ["qr", "refined_gram", "svd"])
def test_singular_values_are_accurate_relative_to_the_largest(matrix, method):
    truth = oracle_values(matrix)
    values = np.asarray(spectrum.singular_values(matrix, method))
    assert values.shape == truth.shape
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values, truth, atol=1e-5 * truth[0])


def test_gram_method_is_accurate_above_its_floor(matrix):
    truth = oracle_values(matrix)
    np.testing.assert_allclose(spectrum.singular_values(matrix, "gram"), truth, atol=1e-3 * truth[0])
    np.testing.assert_allclose(spectrum.singular_values(matrix, "gram")[:5], truth[:5], rtol=1e-4)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric.__name__ in ORACLES])
def test_spectral_metrics_match_float64(matrix, metric):
    value = float(metric(spectrum.singular_values(matrix)))
    assert value == pytest.approx(ORACLES[metric.__name__](oracle_values(matrix)), rel=1e-3)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e3, 1e4, 1e5])
def test_condition_number_by_qr_is_accurate_up_to_1e5(make_matrix, condition):
    w_VD = make_matrix(500, 24, np.geomspace(condition, 1.0, 24))
    truth = np.linalg.cond(w_VD)
    assert float(CONDITION_NUMBER(spectrum.singular_values(w_VD))) == pytest.approx(truth, rel=1e-2)


@pytest.mark.parametrize("method", spectrum.METHODS)
def test_effective_rank_counts_equal_directions(make_matrix, method):
    s_D = spectrum.singular_values(make_matrix(300, 17, np.full(17, 3.0)), method)
    for rank in RANKS:
        assert float(rank(s_D)) == pytest.approx(17, rel=1e-5)
    assert float(CONDITION_NUMBER(s_D)) == pytest.approx(1, rel=1e-5)
    assert float(SINGULAR_ENTROPY(s_D)) == pytest.approx(0, abs=1e-5)


def test_effective_rank_of_rank_one_is_one(make_matrix):
    s_D = spectrum.singular_values(make_matrix(300, 17, [5.0]))
    for rank in RANKS:
        assert float(rank(s_D)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("method", spectrum.METHODS)
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_one_row_or_column_has_rank_one(shape, method):
    s_D = spectrum.singular_values(np.full(shape, 2.0), method)
    assert s_D.shape == (1,)
    for rank in RANKS:
        assert float(rank(s_D)) == 1
    assert float(CONDITION_NUMBER(s_D)) == 1
    assert float(SINGULAR_ENTROPY(s_D)) == 0
    assert np.isnan(spectrum.power_law_alpha(s_D))


@pytest.mark.parametrize("method", spectrum.METHODS)
def test_metrics_of_the_zero_matrix_are_defined(method):
    s_D = spectrum.singular_values(np.zeros((30, 7)), method)
    np.testing.assert_array_equal(s_D, np.zeros(7))
    for rank in RANKS:
        assert float(rank(s_D)) == 0
    assert float(SINGULAR_ENTROPY(s_D)) == np.inf
    assert float(CONDITION_NUMBER(s_D)) == np.inf
    assert np.isnan(spectrum.power_law_alpha(s_D))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", spectrum.METHODS)
def test_nan_input_gives_nan_for_that_member_only(matrices, method, bad):
    stack = np.stack([matrices["gaussian"], matrices["gaussian"]])
    stack[0, 3, 4] = bad
    s_MD = jax.vmap(lambda w: spectrum.singular_values(w, method))(stack)
    for metric in METRICS:
        broken, finite = jax.vmap(metric)(s_MD)
        assert np.isnan(broken)
        assert np.isfinite(finite)


@pytest.mark.parametrize("scale", [1e-18, 1e25])
@pytest.mark.parametrize("method", spectrum.METHODS)
def test_squares_neither_overflow_nor_underflow(matrices, method, scale):
    plain = spectrum.singular_values(matrices["gaussian"], method)
    scaled = spectrum.singular_values(scale * matrices["gaussian"], method)
    for metric in METRICS:
        assert float(metric(scaled)) == pytest.approx(float(metric(plain)), rel=1e-3)


@given(
    values=st.lists(st.floats(0, 1e3, width=32).map(lambda v: 0.0 if v < 1e-3 else v), min_size=9, max_size=9),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_metrics_are_invariant_to_scale_and_order_and_stay_in_range(values, scale, seed):
    s_D = np.asarray(values, np.float32)
    other_D = (scale * np.random.default_rng(seed).permutation(s_D)).astype(np.float32)
    for metric in METRICS[:5]:
        assert float(metric(other_D)) == pytest.approx(float(metric(s_D)), rel=1e-4, abs=1e-5)
    nonzero = np.count_nonzero(s_D)
    for rank in RANKS:
        assert min(1, nonzero) * (1 - 1e-5) <= float(rank(s_D)) <= nonzero * (1 + 1e-5)
    assert float(RANKS[1](s_D)) <= float(RANKS[2](s_D)) * (1 + 1e-5)
    per = float(jnp.exp(-SINGULAR_ENTROPY(s_D)))
    assert per == pytest.approx(float(RANKS[0](s_D)) / 9, rel=1e-4, abs=1e-6)


def test_alpha_recovers_the_exponent_of_a_pareto_tail():
    uniform = (np.arange(2000) + 0.5) / 2000
    eigenvalues = np.concatenate([uniform[:500], (1 - uniform) ** (-1 / 1.5)])
    assert float(spectrum.power_law_alpha(np.sqrt(eigenvalues))) == pytest.approx(2.5, rel=0.02)


def test_alpha_of_a_flat_spectrum_is_undefined():
    assert np.isnan(spectrum.power_law_alpha(jnp.full(12, 3.0)))


@pytest.mark.parametrize("method", spectrum.METHODS)
def test_jit_equals_eager_and_vmap_equals_a_loop(matrices, method):
    stack = np.stack([matrices["gaussian"], 3 * matrices["common vector"]])[:, :40, :8]

    def measure(w):
        s_D = spectrum.singular_values(w, method)
        return jnp.stack([metric(s_D) for metric in METRICS])

    with jax.disable_jit():
        loop = np.stack([measure(w) for w in stack])
    tolerance = 1e-3 if method == "gram" else 1e-5
    np.testing.assert_allclose(jax.jit(jax.vmap(measure))(stack), loop, rtol=tolerance)
    np.testing.assert_allclose(jax.jit(measure)(stack[0]), loop[0], rtol=tolerance)


def test_narrow_types_are_measured_in_float32(matrices):
    w_VD = jnp.asarray(matrices["gaussian"], jnp.bfloat16)
    s_D = spectrum.singular_values(w_VD)
    assert s_D.dtype == jnp.float32
    np.testing.assert_allclose(s_D, oracle_values(np.asarray(w_VD, np.float64)), rtol=1e-5)


@pytest.mark.parametrize(
    ("metric", "method", "wide"),
    [(RANKS[0], "qr", False), (RANKS[0], "gram", True), (RANKS[1], "qr", True), (RANKS[2], "svd", False)],
)
def test_gradient_matches_float64_differences(make_matrix, metric, method, wide):
    w_VD = make_matrix(20, 6, [5.0, 4, 3, 2, 1.5, 1])
    direction = np.random.default_rng(3).standard_normal(w_VD.shape)
    oracle = ORACLES[metric.__name__]
    slope = (oracle(oracle_values(w_VD + 1e-6 * direction)) - oracle(oracle_values(w_VD - 1e-6 * direction))) / 2e-6
    if wide:
        w_VD, direction = w_VD.T, direction.T
    gradient = jax.jit(jax.grad(lambda w: metric(spectrum.singular_values(w, method))))(jnp.float32(w_VD))
    assert float(np.sum(gradient * direction)) == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("w_VD", [np.zeros((8, 3)), np.ones((8, 3)), np.eye(8, 3)], ids=["zero", "rank 1", "equal"])
@pytest.mark.parametrize("metric", RANKS)
def test_gradient_is_finite_where_singular_values_vanish_or_repeat(metric, w_VD):
    gradient = jax.grad(lambda w: metric(spectrum.singular_values(w)))(jnp.float32(w_VD))
    assert np.isfinite(gradient).all()


def test_right_singular_vectors_diagonalise(matrix):
    values_D, v_DD = (np.asarray(x, np.float64) for x in svd.right_singular(matrix))
    s_D = np.zeros(matrix.shape[1])
    s_D[: min(matrix.shape)] = oracle_values(matrix)
    np.testing.assert_allclose(v_DD.T @ v_DD, np.eye(len(s_D)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(matrix @ v_DD, axis=0), s_D, atol=1e-5 * s_D[0])
    np.testing.assert_allclose(values_D, s_D, atol=1e-5 * s_D[0])


def test_invalid_shapes_and_methods_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\)"):
        spectrum.singular_values(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="'lu'.*qr, refined_gram, gram, svd"):
        spectrum.singular_values(np.zeros((2, 3)), "lu")


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_alpha_req_is_the_slope_of_a_power_law(slope, scale):
    values = scale * np.arange(1.0, 201) ** -slope
    values[:10] *= 50  # before the first index that is fitted
    values[100:] *= 1e-3  # after the last
    assert float(spectrum.alpha_req(np.random.default_rng(0).permutation(values))) == pytest.approx(slope, rel=1e-4)
    fitted = -np.polyfit(np.log(np.arange(5, 151)), np.log(np.sort(values)[::-1][4:150]), 1)[0]
    assert float(spectrum.alpha_req(values, first=5, last=150)) == pytest.approx(fitted, rel=1e-4)


def test_alpha_req_leaves_out_zeros_and_needs_two_values():
    values = np.arange(1.0, 41) ** -1.5
    values[15:] = 0
    assert float(spectrum.alpha_req(values)) == pytest.approx(1.5, rel=1e-4)
    values[11:] = 0
    assert np.isnan(float(spectrum.alpha_req(values)))
    assert np.isnan(float(spectrum.alpha_req(np.append(values, np.nan))))
    with pytest.raises(ValueError, match="first = 0, last = 20: the eigenvalues have indices 1 to 40"):
        spectrum.alpha_req(values, first=0)
