import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eval.quantize import quantize_params, round_to_nearest

INPUTS, OUTPUTS = 24, 5
GRIDS = {
    "max": {"grid": "max"},
    "gptq": {"grid": "gptq"},
    "asymmetric": {"symmetric": False},
}
GRANULARITIES = {
    "channel": {"granularity": "channel"},
    "group": {"group_size": 8},
    "one input": {"granularity": "group", "group_size": 1},
    "tensor": {"granularity": "tensor"},
}


def reference(w, bits, granularity="channel", group_size=None, symmetric=True, grid="max"):
    """Quantise in float64, one group with a common scale at a time; return weights and scales, both [I, O]."""
    size = group_size or w.shape[0]
    columns = [slice(0, w.shape[1])] if granularity == "tensor" else [slice(o, o + 1) for o in range(w.shape[1])]
    rounded, scales = np.empty_like(w, np.float64), np.empty_like(w, np.float64)
    for start in range(0, w.shape[0], size):
        for column in columns:
            part = w[start : start + size, column].astype(np.float64)
            if symmetric:
                q = 2 ** (bits - 1) - 1
                scale = np.abs(part).max() / (q if grid == "max" else q + 0.5) or 1.0
                levels = scale * np.clip(np.rint(part / scale), -q - 1, q)
            else:
                least, greatest = min(part.min(), 0), max(part.max(), 0)
                scale = (greatest - least) / (2**bits - 1) or 1.0
                zero = np.rint(-least / scale)
                levels = scale * (np.clip(np.rint(part / scale) + zero, 0, 2**bits - 1) - zero)
            rounded[start : start + size, column] = levels
            scales[start : start + size, column] = scale
    return rounded, scales


@pytest.fixture
def w_IO():
    return np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_matches_a_float64_reference(w_IO, bits, grid, granularity):
    arguments = GRIDS[grid] | GRANULARITIES[granularity]
    expected, scale = reference(w_IO, bits, **arguments)
    # A weight within rounding error of the midpoint between two levels may go to either.
    tie = np.abs(np.abs(w_IO / scale - np.floor(w_IO / scale)) - 0.5) < 1e-4
    result = np.asarray(round_to_nearest(w_IO, bits, **arguments))
    np.testing.assert_allclose(result[~tie], expected[~tie], rtol=1e-5, atol=1e-6)
    assert (np.abs(result - expected)[tie] <= 1.001 * scale[tie]).all()


@given(
    w=hnp.arrays(
        np.float32, (8, 3), elements=st.floats(-1e3, 1e3, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
    ),
    bits=st.sampled_from([2, 3, 4, 8]),
    grid=st.sampled_from(sorted(GRIDS)),
)
@settings(max_examples=80, deadline=None)
def test_rounding_moves_weights_by_at_most_half_a_scale_and_keeps_zeros(w, bits, grid):
    result = np.asarray(round_to_nearest(w, bits, **GRIDS[grid]))
    _, scale = reference(w, bits, **GRIDS[grid])
    assert (np.abs(result - w) <= scale * (0.5 + 1e-4)).all()
    assert (result[w == 0] == 0).all()
    assert all(len(np.unique(column)) <= 2**bits for column in result.T)
    if grid == "max":
        np.testing.assert_allclose(round_to_nearest(result, bits), result, rtol=1e-5)


def test_asymmetric_rounding_is_idempotent(w_IO):
    once = round_to_nearest(w_IO, 4, symmetric=False)
    np.testing.assert_allclose(round_to_nearest(once, 4, symmetric=False), once, rtol=1e-5, atol=1e-6)


def test_symmetric_three_bits_match_hand_calculation():
    w_IO = np.array([[3.0, 0.6], [-1.4, -0.1], [0.4, 0.0], [-2.6, -0.25]])
    expected = [[3.0, 0.6], [-1.0, -0.2 * 0], [0.0, 0.0], [-3.0, -0.2]]  # scales 1 and .2
    np.testing.assert_allclose(round_to_nearest(w_IO, 3), expected, atol=1e-6)


def test_gptq_grid_reaches_the_lowest_level_as_calculated_by_hand():
    # Two bits: q = 1, scale 3 / 1.5 = 2, levels -2, -1, 0, 1.
    np.testing.assert_allclose(round_to_nearest(np.array([[3.0], [-3.0], [0.9]]), 2, grid="gptq"), [[2], [-4], [0]])
    # On the grid "max" the scale is 3 and -q - 1 is never reached.
    np.testing.assert_allclose(round_to_nearest(np.array([[3.0], [-3.0], [0.9]]), 2), [[3], [-3], [0]])


def test_asymmetric_range_includes_zero_as_calculated_by_hand():
    # Range 0..6 although the least weight is 2: two bits, scale 2, zero 0.
    np.testing.assert_allclose(round_to_nearest(np.array([[2.9], [6.0], [2.0]]), 2, symmetric=False), [[2], [6], [2]])
    # Range -1..5, scale 2, zero point .5 rounds to 0: -1 is off by half a scale, 0 is exact.
    np.testing.assert_allclose(round_to_nearest(np.array([[-1.0], [5.0], [0.0]]), 2, symmetric=False), [[0], [4], [0]])


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_weights_on_the_grid_are_unchanged(bits):
    q = 2 ** (bits - 1) - 1
    levels = np.arange(-q, q + 1, dtype=np.float32)[:, None]
    levels = levels * np.array([[1.0, 0.037, 1e-12, 1e12]], np.float32)
    np.testing.assert_allclose(round_to_nearest(levels, bits), levels, rtol=1e-6)
    levels = np.arange(2**bits, dtype=np.float32)[:, None] - 3
    np.testing.assert_allclose(round_to_nearest(0.037 * levels, bits, symmetric=False), 0.037 * levels, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zero_columns_stay_zero_and_nan_spreads_over_its_scale_only(w_IO, grid, granularity):
    arguments = GRIDS[grid] | GRANULARITIES[granularity]
    w_IO = w_IO.copy()
    w_IO[:, 1] = 0
    assert (np.asarray(round_to_nearest(w_IO, 4, **arguments))[:, 1] == 0).all()
    for bad in (np.nan, np.inf, -np.inf):
        w_IO[10, 2] = bad
        lost = np.zeros(w_IO.shape, bool)
        lost[
            {"channel": slice(None), "group": slice(8, 16), "one input": 10, "tensor": slice(None)}[granularity], 2
        ] = True
        lost |= granularity == "tensor"
        np.testing.assert_array_equal(np.isnan(round_to_nearest(w_IO, 4, **arguments)), lost)


def test_more_scales_and_more_bits_reduce_the_error(w_IO):
    def loss(**arguments):
        return float(np.square(round_to_nearest(w_IO, **arguments) - w_IO).sum())

    assert loss(bits=8) < loss(bits=4) < loss(bits=3) < loss(bits=2)
    assert loss(bits=4, group_size=4) < loss(bits=4) < loss(bits=4, granularity="tensor")


@pytest.mark.parametrize("grid", GRIDS)
def test_jit_is_eager_and_vmap_is_loop(w_IO, grid):
    stack = np.stack([w_IO, 3 * w_IO[::-1]])
    function = functools.partial(round_to_nearest, bits=3, group_size=6, **GRIDS[grid])
    with jax.disable_jit():
        loop = np.stack([function(w) for w in stack])
    np.testing.assert_allclose(function(stack[0]), loop[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(function)(stack), loop, rtol=1e-6, atol=1e-7)


def test_the_type_of_the_weights_is_kept(w_IO):
    narrow = jnp.asarray(w_IO, jnp.bfloat16)
    result = round_to_nearest(narrow, 4)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_array_equal(result, round_to_nearest(narrow.astype(jnp.float32), 4).astype(jnp.bfloat16))
    assert round_to_nearest(np.arange(6).reshape(3, 2), 4).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits = 1: .* 2 to 8"),
        ({"bits": 9}, "bits = 9"),
        ({"bits": 4, "group_size": 7}, "7 doesn't divide the 24 inputs"),
        ({"bits": 4, "group_size": 0}, "0 doesn't divide the 24 inputs"),
        ({"bits": 4, "granularity": "group"}, "needs a group_size"),
        ({"bits": 4, "granularity": "tensor", "group_size": 8}, "contradicts"),
        ({"bits": 4, "granularity": "row"}, "'row': needs one of channel, group, tensor"),
        ({"bits": 4, "grid": "mse"}, "'mse': needs one of max, gptq"),
    ],
)
def test_bad_arguments_are_refused(w_IO, arguments, message):
    with pytest.raises(ValueError, match=message):
        round_to_nearest(w_IO, **arguments)


def test_a_stacked_matrix_is_refused_with_the_remedy(w_IO):
    with pytest.raises(ValueError, match=r"\(1, 24, 5\); jax.vmap"):
        round_to_nearest(w_IO[None], 4)


@pytest.fixture
def params(w_IO):
    return {
        "embedding": w_IO,
        "unembedding": 2 * w_IO,
        "blocks_0": {"attention": {"query": 3 * w_IO}, "mlp": {"down": 4 * w_IO}, "norm": {"scale": w_IO[0]}},
        "blocks_11": {"attention": {"query": 5 * w_IO, "bias": w_IO[0]}},
    }


def test_only_parameters_of_the_blocks_are_rounded_by_default(params):
    result = quantize_params(params, 3, group_size=8)
    assert result["embedding"] is params["embedding"]
    assert result["unembedding"] is params["unembedding"]
    assert result["blocks_0"]["norm"]["scale"] is params["blocks_0"]["norm"]["scale"]
    assert result["blocks_11"]["attention"]["bias"] is params["blocks_11"]["attention"]["bias"]
    for block, part, name in [
        ("blocks_0", "attention", "query"),
        ("blocks_0", "mlp", "down"),
        ("blocks_11", "attention", "query"),
    ]:
        weight = params[block][part][name]
        np.testing.assert_array_equal(result[block][part][name], round_to_nearest(weight, 3, group_size=8))
        assert not np.array_equal(result[block][part][name], weight)


def test_the_pattern_has_to_match_the_whole_path(params):
    result = quantize_params(params, 3, pattern="embedding")
    assert result["unembedding"] is params["unembedding"]
    assert not np.array_equal(result["embedding"], params["embedding"])


def test_each_token_of_the_embedding_has_a_separate_scale(params):
    result = quantize_params(params, 3, pattern="(un)?embedding")
    for name in ("embedding", "unembedding"):
        np.testing.assert_array_equal(result[name], round_to_nearest(params[name].T, 3).T)
    tied = {k: v for k, v in params.items() if k != "unembedding"}
    np.testing.assert_array_equal(quantize_params(tied, 3, "unembedding")["embedding"], result["embedding"])


def test_rounding_works_under_vmap_over_members(params):
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    together = jax.jit(jax.vmap(functools.partial(quantize_params, bits=4)))(stack)
    separate = quantize_params(jax.tree.map(lambda x: x[1], stack), bits=4)
    jax.tree.map(lambda m, a: np.testing.assert_allclose(m[1], a, rtol=1e-6), together, separate)


def test_a_pattern_without_matrices_is_refused(params):
    with pytest.raises(ValueError, match="'layers/.*the first are: .*blocks_0/attention/query"):
        quantize_params(params, 4, pattern="layers/.*")
    with pytest.raises(ValueError, match=r"\(1, 24, 5\)"):  # a stack without vmap
        quantize_params(jax.tree.map(lambda x: x[None], params), 4)


def test_an_error_names_the_parameter(params):
    with pytest.raises(ValueError, match="blocks_0/attention/query: group_size = 7"):
        quantize_params(params, 4, group_size=7)
