"""GPTQ against a plain float64 reference: numpy's inverse, one input at a time, without blocks."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.gptq import gptq, gptq_with_damping
from eval.quantize import round_to_nearest

GRIDS = {"max": {"grid": "max"}, "gptq": {"grid": "gptq"}, "asymmetric": {"symmetric": False}}
# With the inputs and outputs of a matrix: two blocks of 66 with one padded input; one block; six; four of 80.
GRANULARITIES = {
    "channel": ((131, 40), {"granularity": "channel"}),
    "tensor": ((97, 40), {"granularity": "tensor"}),
    "group of 16": ((96, 40), {"group_size": 16}),
    "group of 160": ((320, 48), {"group_size": 160}),
}
DEAD = 5


def reference(
    w,
    h,
    bits,
    granularity="channel",
    group_size=None,
    symmetric=True,
    grid="max",
    act_order=False,
    damping=0.01,
    at_ties=None,
):
    """Quantise in float64; weights halfway between two levels go to the level chosen in `at_ties`.

    Such ties are common on the grid "gptq": where the largest weight of a scale is negative, it lies halfway between
    the two lowest levels.
    """

    def levels(part):
        axis = None if granularity == "tensor" else 0
        if symmetric:
            q = 2 ** (bits - 1) - 1
            scale = np.abs(part).max(axis) / (q if grid == "max" else q + 0.5)
            return np.where(scale == 0, 1, scale), 0, -q - 1, q
        least, greatest = np.minimum(part.min(axis), 0), np.maximum(part.max(axis), 0)
        scale = (greatest - least) / (2**bits - 1)
        scale = np.where(scale == 0, 1, scale)
        return scale, np.rint(-least / scale), 0, 2**bits - 1

    w, h = np.array(w, np.float64), np.array(h, np.float64)
    scale, zero, lowest, highest = levels(w)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[dead] = 0
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(len(h))
    w, h = w[order], h[np.ix_(order, order)]
    h += damping * np.diag(h).mean() * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    result = np.empty_like(w)
    for i in range(len(w)):
        if group_size and i % group_size == 0:
            scale, zero, lowest, highest = levels(w[i : i + group_size])
        nearest = np.rint(w[i] / scale)
        rest = w[i] / scale - nearest
        rounded, other = (
            scale * (np.clip(n + zero, lowest, highest) - zero) for n in (nearest, nearest + np.sign(rest))
        )
        if at_ties is not None:
            tie = abs(abs(rest) - 0.5) < (1e-9 if at_ties.dtype == np.float64 else 1e-5)
            follow = at_ties[order[i]]
            rounded = np.where(tie & (abs(other - follow) < abs(rounded - follow)), other, rounded)
        error = (w[i] - rounded) / upper[i, i]
        w[i + 1 :] -= np.outer(upper[i, i + 1 :], error)
        result[order[i]] = rounded
    return result


def problem(inputs, outputs, seed=0):
    """Return weights and the Hessian of correlated inputs of different scales, one of them dead."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(inputs) + rng.standard_normal((inputs, inputs)) / np.sqrt(inputs)
    x_NI = rng.standard_normal((4 * inputs, inputs)) @ mixing * rng.uniform(0.3, 3, inputs)
    x_NI[:, DEAD] = 0
    return rng.standard_normal((inputs, outputs)), 2 * x_NI.T @ x_NI


def loss(w, q, h):
    """Return the squared error of the outputs on the calibration inputs."""
    d = np.asarray(w, np.float64) - np.asarray(q, np.float64)
    return float(np.sum(d * (h @ d)))


# Each case compiles a separate program; the slow ones cover further branches of the same code.
SOME_GRANULARITIES = [
    pytest.param(name, marks=[] if name in ("channel", "group of 16") else pytest.mark.slow) for name in GRANULARITIES
]


@pytest.mark.parametrize("granularity", SOME_GRANULARITIES)
@pytest.mark.parametrize("grid", ["max", pytest.param("gptq", marks=pytest.mark.slow), "asymmetric"])
@pytest.mark.parametrize(("act_order", "all_bits"), [(False, (2, 3, 4, 8)), (True, (3,))])
def test_gptq_matches_the_float64_reference(granularity, grid, act_order, all_bits):
    shape, arguments = GRANULARITIES[granularity]
    arguments = arguments | GRIDS[grid] | {"act_order": act_order}
    w, h = problem(*shape)
    for bits in all_bits:
        with jax.enable_x64(True):
            result = np.asarray(gptq(w, h, bits, **arguments))
        assert result.dtype == np.float64
        np.testing.assert_allclose(result, reference(w, h, bits, **arguments, at_ties=result), rtol=0, atol=1e-9)


@pytest.mark.parametrize("granularity", SOME_GRANULARITIES)
@pytest.mark.parametrize(("grid", "act_order"), [("max", False), ("gptq", True), ("asymmetric", True)])
def test_float32_outputs_are_as_close_as_those_of_the_reference(granularity, grid, act_order):
    shape, arguments = GRANULARITIES[granularity]
    arguments = arguments | GRIDS[grid] | {"act_order": act_order}
    w, h = problem(*shape)
    result = np.asarray(gptq(w, h, 3, **arguments))
    assert result.dtype == np.float32
    expected = reference(w, h, 3, **arguments, at_ties=result)
    assert loss(w, result, h) == pytest.approx(loss(w, expected, h), rel=0.01)


@pytest.fixture(scope="module")
def small():
    w, h = problem(48, 10)
    return w.astype(np.float32), h.astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scales", [{}, {"granularity": "tensor"}, {"group_size": 8}])
def test_independent_inputs_are_rounded_to_nearest(small, grid, scales):
    w, _ = small
    arguments = scales | GRIDS[grid]
    result, nearest = gptq(w, 7 * np.eye(48), 3, **arguments), round_to_nearest(w, 3, **arguments)
    if grid == "gptq":  # the smallest weight may go to either of two levels, see `reference`
        result, nearest = abs(result - w), abs(nearest - w)
        np.testing.assert_allclose(result, nearest, rtol=1e-4, atol=1e-6)
    else:
        np.testing.assert_array_equal(result, nearest)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("grid", GRIDS)
def test_weights_lie_on_the_grid_and_outputs_beat_rounding_to_nearest(small, bits, grid):
    w, h = small
    result, nearest = np.asarray(gptq(w, h, bits, **GRIDS[grid])), round_to_nearest(w, bits, **GRIDS[grid])
    least, most = (np.minimum(w.min(0), 0), np.maximum(w.max(0), 0)) if grid == "asymmetric" else (0, abs(w).max(0))
    steps = {"max": 2 ** (bits - 1) - 1, "gptq": 2 ** (bits - 1) - 0.5, "asymmetric": 2**bits - 1}[grid]
    levels = result * steps / (most - least)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert all(len(np.unique(column)) <= 2**bits for column in result.T)
    assert loss(w, result, h) < 0.8 * loss(w, nearest, h)


def test_the_compensation_of_a_rounding_error_matches_hand_calculation():
    # H = [[2, 1], [1, 2]] without damping: moving w_0 by d is best compensated by moving w_1 by -d / 2. At 2 bits the
    # grid of a column is -s, 0, s (and -2 s, which nothing reaches), s its largest weight.
    w, h = np.array([[0.4, 0.4], [1.0, -1.0]]), np.array([[2.0, 1.0], [1.0, 2.0]])
    # 0.4 goes to 0, the weight after it to 1.2 or -0.8, which are nearest to 1 and -1.
    np.testing.assert_allclose(gptq(w, h, 2, damping=0), [[0, 0], [1, -1]])
    # 0.55 goes to 1, so the weight after it is moved by -0.225: 0.725 still goes to 1, 0.675 - 0.225 to 0.
    w = np.array([[0.55, 0.55, 0.0], [0.95, 0.675, 0.0], [1.0, 1.0, 0.0]])
    h = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(gptq(w, h, 2, damping=0), [[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_allclose(round_to_nearest(w, 2), [[1, 1, 0], [1, 1, 0], [1, 1, 0]])


def test_dead_inputs_get_zero_weight_but_count_for_the_column_scale(small):
    w, h = small
    w = w.copy()
    w[DEAD, 0] = 70.0
    result = np.asarray(gptq(w, h, 4))
    assert not result[DEAD].any()
    levels = result[:, 0] / 10  # 70 / 7
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-5)
    np.testing.assert_array_equal(gptq(w, 0 * h, 4), 0 * w)


def test_outputs_are_quantised_independently(small):
    w, h = small
    order = np.random.default_rng(1).permutation(w.shape[1])
    np.testing.assert_array_equal(gptq(w[:, order], h, 4), np.asarray(gptq(w, h, 4))[:, order])


@pytest.mark.parametrize("act_order", [False, True])
def test_the_scale_of_the_hessian_is_irrelevant(small, act_order):
    w, h = (np.delete(a, DEAD, 0) for a in small)  # a dead input counts as 1 regardless of the others
    h = np.delete(h, DEAD, 1)
    expected = gptq(w, h, 4, act_order=act_order)
    np.testing.assert_array_equal(gptq(w, 2.0**-20 * h, 4, act_order=act_order), expected)
    np.testing.assert_array_equal(gptq(w, 2.0**20 * h, 4, act_order=act_order), expected)


def test_act_order_changes_nothing_if_the_diagonal_is_descending(small):
    w, h = (np.delete(a, DEAD, 0) for a in small)
    h = np.delete(h, DEAD, 1)
    down = np.argsort(-np.diag(h))
    w, h = w[down], h[np.ix_(down, down)]
    np.testing.assert_array_equal(gptq(w, h, 4, act_order=True), gptq(w, h, 4))
    back = np.asarray(gptq(w[::-1], h[::-1, ::-1], 4, act_order=True))[::-1]
    np.testing.assert_array_equal(back, gptq(w, h, 4))


@pytest.mark.parametrize("arguments", [{}, {"group_size": 8, "act_order": True, "symmetric": False}])
def test_vmap_and_jit_over_a_stack_match_single_calls(arguments):
    stack = [problem(48, 10, seed) for seed in range(3)]
    w_MIO, h_MII = (np.stack(part).astype(np.float32) for part in zip(*stack, strict=True))
    h_MII[1] = np.ones((48, 48))  # positive definite only with the damping
    f = functools.partial(gptq_with_damping, bits=4, **arguments)
    together, damping_M = jax.jit(jax.vmap(f))(w_MIO, h_MII)
    np.testing.assert_allclose(damping_M, 0.01)
    for member, w, h in zip(together, w_MIO, h_MII, strict=True):
        assert np.isclose(member, gptq(w, h, 4, **arguments), rtol=1e-5, atol=1e-6).mean() >= 0.99
        assert loss(w, member, h) == pytest.approx(loss(w, gptq(w, h, 4, **arguments), h), rel=0.01)
    np.testing.assert_array_equal(jax.vmap(functools.partial(gptq, bits=4, **arguments))(w_MIO, h_MII), together)


def test_the_type_of_the_weights_is_kept(small):
    w, h = small
    narrow = jnp.asarray(w, jnp.bfloat16)
    result = gptq(narrow, h, 4)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, gptq(narrow.astype(jnp.float32), h, 4).astype(jnp.bfloat16))
    assert gptq(np.arange(6).reshape(3, 2), np.eye(3, dtype=int), 4).dtype == jnp.float32


def rank_deficient(inputs=48):
    x_NI = np.random.default_rng(3).standard_normal((inputs // 3, inputs))
    return (x_NI.T @ x_NI).astype(np.float32)


def test_the_damping_is_raised_until_the_hessian_is_positive_definite(small):
    w, h = small[0], rank_deficient()
    with pytest.warns(UserWarning, match=r"hessian \(48, 48\) .* with damping = 0: 0.01 was used; calibrate") as caught:
        result = gptq(w, h, 4, damping=0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(result, gptq(w, h, 4))
        # The eigenvalue -.04 takes a damping of more than .04.
        indefinite = np.diag(np.append(np.full(47, 1.0), -0.04))
        rounded, damping = gptq_with_damping(w, indefinite, 4)
        assert float(damping) == pytest.approx(0.1)
        np.testing.assert_array_equal(rounded, round_to_nearest(w, 4))
        f = jax.vmap(functools.partial(gptq_with_damping, bits=4, damping=0.001))
        rounded, damping_M = f(
            np.stack([w] * 5), np.stack([h, indefinite, indefinite - 0.9 * np.eye(48), -h, np.eye(48)])
        )
    np.testing.assert_allclose(damping_M, [0.001, 0.1, np.nan, np.nan, 0.001], rtol=1e-5)
    np.testing.assert_array_equal(np.isnan(rounded).all((1, 2)), np.isnan(damping_M))
    np.testing.assert_array_equal(np.isnan(rounded).any((1, 2)), np.isnan(damping_M))


def test_an_indefinite_hessian_beyond_damping_is_refused(small):
    w, _ = small
    message = r"hessian \(48, 48\) .* even with damping {} \(damping = {} was asked for\); raise damping or calibrate"
    with pytest.raises(ValueError, match=message.format(1, 0.01)):
        gptq(w, -np.eye(48), 4)
    with pytest.raises(ValueError, match=message.format(3, 3)):
        gptq(w, -np.eye(48), 4, damping=3)
    assert np.isnan(jax.jit(gptq, static_argnames="bits")(w, -np.eye(48), bits=4)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_inputs_give_nan_outputs(small, bad):
    w, h = small
    spoilt = h.copy()
    spoilt[7, 7] = bad
    assert np.isnan(gptq(w, spoilt, 4)).all()
    w = w.copy()
    w[20, 3] = bad
    lost = np.zeros(w.shape, bool)
    lost[:, 3] = True
    np.testing.assert_array_equal(np.isnan(gptq(w, h, 4)), lost)
    lost[:16] = False
    np.testing.assert_array_equal(np.isnan(gptq(w, h, 4, group_size=8)), lost)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits = 1: .* 2 to 8"),
        ({"bits": 9}, "bits = 9"),
        ({"group_size": 7}, "7 doesn't divide the 48 inputs"),
        ({"granularity": "group"}, "needs a group_size"),
        ({"granularity": "tensor", "group_size": 8}, "contradicts"),
        ({"granularity": "row"}, "'row': needs one of"),
        ({"grid": "mse"}, "'mse': needs one of"),
        ({"damping": -0.1}, "damping = -0.1: needs"),
        ({"damping": np.nan}, "damping = nan: needs"),
        ({"hessian_II": np.ones((48, 47))}, r"for a weight \(48, 10\), got shape \(48, 47\)"),
        ({"hessian_II": np.eye(10)}, r"got shape \(10, 10\)"),
        ({"w_IO": np.ones((2, 48, 10))}, r"\(2, 48, 10\); jax.vmap"),
    ],
)
def test_bad_arguments_are_refused(small, arguments, message):
    for f in (gptq, gptq_with_damping):
        with pytest.raises(ValueError, match=message):
            f(**({"w_IO": small[0], "hessian_II": small[1], "bits": 4} | arguments))
