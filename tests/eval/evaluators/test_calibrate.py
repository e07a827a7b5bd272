"""GPTQ of whole models: every architecture, layer by layer on quantised predecessors, each member separately."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from eval.evaluators import calibrate
from eval.evaluators.calibrate import Method, gptq_params
from eval.evaluators.quantization import SCOPES
from eval.gptq import gptq
from eval.quantize import quantize_params, round_to_nearest
from olmo_jax import model
from olmo_jax.config import ModelConfig
from tests.olmo_jax.variants import FAMILIES, VARIANTS

TOKENS = np.random.default_rng(0).integers(0, 61, (12, 16)).astype(np.int32)


def stack(config: ModelConfig, members: int = 2):
    return jax.jit(jax.vmap(lambda seed: model.init(config, jax.random.key(seed))))(np.arange(members, dtype=np.uint32))


def member(params_M, m):
    return jax.tree.map(lambda x: x[m], params_M)


@pytest.mark.parametrize(
    "name",
    [
        "olmo",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("olmo2", "gpt_neox", "tied", "gemma3", "unrotated blocks")),
    ],
)
def test_gptq_quantises_every_projection_and_nothing_else(name):
    config = VARIANTS[name]
    before = stack(config)
    after, errors = gptq_params(config, before, TOKENS, SCOPES["blocks"], Method(3), batch_size=4)
    rounded = jax.jit(jax.vmap(lambda p: quantize_params(p, 3)))(before)
    for path, w_M in jax.tree_util.tree_leaves_with_path(before):
        at = functools.reduce(lambda tree, key: tree[key.key], path, after)
        nearest = functools.reduce(lambda tree, key: tree[key.key], path, rounded)
        assert np.array_equal(at, w_M) == np.array_equal(nearest, w_M), path
    for path, of in errors.items():
        assert path.startswith("blocks_")
        assert (np.asarray(of.output) < np.asarray(of.output_rounded)).all(), path


@pytest.mark.slow
def test_the_first_block_is_calibrated_on_its_own_inputs():
    config = FAMILIES["olmo"]
    params_M = stack(config)
    after, _ = gptq_params(config, params_M, TOKENS, SCOPES["blocks"], Method(3, act_order=True), batch_size=4)
    for m in range(2):
        params = member(params_M, m)
        x_BLD = model.embed(config, params, TOKENS)
        _, inputs = model.block_inputs(config, params["blocks_0"], x_BLD)
        for part, name in (("attention", "query"), ("attention", "out"), ("mlp", "up"), ("mlp", "down")):
            x_NI = np.asarray(inputs[f"{part}/{name}"]).reshape(-1, inputs[f"{part}/{name}"].shape[-1])
            expected = gptq(params["blocks_0"][part][name], 2 * x_NI.T @ x_NI, 3, act_order=True)
            quantised = after["blocks_0"][part][name][m]
            assert np.mean(np.abs(quantised - expected) < 1e-5) > 0.97, (
                part,
                name,
            )  # a flipped rounding propagates down its column


@pytest.mark.slow
def test_later_blocks_are_calibrated_on_outputs_of_quantised_blocks():
    config = FAMILIES["olmo"]
    params_M = stack(config, 1)
    both, _ = gptq_params(config, params_M, TOKENS, SCOPES["blocks"], Method(2), batch_size=12)
    half = {**params_M, "blocks_0": both["blocks_0"]}
    second, _ = gptq_params(config, half, TOKENS, r"blocks_1/.*/\w+", Method(2), batch_size=12)
    untouched, _ = gptq_params(config, params_M, TOKENS, r"blocks_1/.*/\w+", Method(2), batch_size=12)
    for part, name in (("attention", "query"), ("mlp", "down")):
        np.testing.assert_allclose(second["blocks_1"][part][name], both["blocks_1"][part][name], atol=1e-6)
        assert np.mean(untouched["blocks_1"][part][name] != both["blocks_1"][part][name]) > 0.01


@pytest.mark.slow
def test_each_member_is_calibrated_on_its_own_states():
    config = FAMILIES["gpt_neox"]
    params_M = stack(config, 3)
    together, errors = gptq_params(config, params_M, TOKENS, SCOPES["all"], Method(4), batch_size=4)
    separate, of_one = gptq_params(config, jax.tree.map(lambda x: x[1:2], params_M), TOKENS, SCOPES["all"], Method(4),
                                batch_size=4)  # fmt: skip
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(separate), strict=True):
        assert np.mean(np.abs(a[1] - b[0]) < 1e-5) > 0.97
    assert errors["unembedding"].output[1] == pytest.approx(float(of_one["unembedding"].output[0]), rel=0.01)


def test_an_unembedding_is_calibrated_on_final_states_and_an_embedding_is_rounded():
    config = dataclasses.replace(FAMILIES["olmo"], n_layers=1)
    params_M = stack(config, 1)
    after, errors = gptq_params(config, params_M, TOKENS, "embedding|unembedding", Method(3), batch_size=4)
    assert set(errors) == {"unembedding"}
    assert errors["unembedding"].output[0] < errors["unembedding"].output_rounded[0]
    rounded = jax.jit(jax.vmap(lambda p: quantize_params(p, 3, "embedding")))(params_M)
    np.testing.assert_array_equal(after["embedding"], rounded["embedding"])
    assert jnp.array_equal(after["blocks_0"]["mlp"]["up"], params_M["blocks_0"]["mlp"]["up"])


def test_padding_after_a_text_changes_nothing():
    config = dataclasses.replace(FAMILIES["olmo"], n_layers=1)
    params_M = stack(config, 1)
    padded = np.concatenate([TOKENS[:8, :10], np.full((8, 6), 7, np.int32)], axis=1)
    is_text = np.arange(16) < np.full((8, 1), 10)
    short, errors = gptq_params(config, params_M, TOKENS[:8, :10], SCOPES["blocks"], Method(3), batch_size=4)
    long, of_long = gptq_params(config, params_M, padded, SCOPES["blocks"], Method(3), batch_size=4, is_text_NL=is_text)
    counted, of_counted = gptq_params(config, params_M, padded, SCOPES["blocks"], Method(3), batch_size=4)
    for path, of in errors.items():
        part, name = path.split("/")[1:]
        same = np.abs(short["blocks_0"][part][name] - long["blocks_0"][part][name]) < 1e-5
        assert np.mean(same) > 0.97, path
        assert of_long[path].output[0] == pytest.approx(float(of.output[0]), rel=0.01)
        assert of_counted[path].output[0] != pytest.approx(float(of.output[0]), rel=0.01)
    assert not np.array_equal(long["blocks_0"]["mlp"]["up"], counted["blocks_0"]["mlp"]["up"])


def test_a_group_size_that_does_not_divide_the_inputs_gives_the_largest_groups_that_do():
    config = dataclasses.replace(FAMILIES["olmo"], n_layers=1, d_ff=48)  # 32 inputs of most matrices, 48 of one
    params_M = stack(config, 1)
    method = Method(3, "group", 24, adapt_groups=True)
    after, errors = gptq_params(config, params_M, TOKENS, SCOPES["all"], method, batch_size=4)
    rounded = jax.jit(jax.vmap(lambda p: quantize_params(p, 3, SCOPES["all"], "group", 24, adapt_groups=True)))(
        params_M
    )
    for part, name, size in (("attention", "query", 16), ("mlp", "down", 24)):
        w_IO = params_M["blocks_0"][part][name][0]
        np.testing.assert_array_equal(rounded["blocks_0"][part][name][0], round_to_nearest(w_IO, 3, "group", size))
        of = errors[f"blocks_0/{part}/{name}"]
        assert of.output[0] < of.output_rounded[0]
    w_DV = params_M["embedding"][0].T
    np.testing.assert_array_equal(after["embedding"][0].T, round_to_nearest(w_DV, 3, "group", 16))


def test_collected_block_inputs_are_the_operands_of_its_projections():
    config = dataclasses.replace(FAMILIES["gpt_neox"], n_layers=1)
    params = model.init(config, jax.random.key(0))
    x_BLD = model.embed(config, params, TOKENS)
    out_BLD, inputs = model.block_inputs(config, params["blocks_0"], x_BLD)
    np.testing.assert_allclose(
        model.final_norm(config, params, out_BLD), model.hidden(config, params, TOKENS).final_BLD, atol=1e-5
    )
    mlp = params["blocks_0"]["mlp"]
    h_BLF = jax.nn.gelu(inputs["mlp/up"] @ mlp["up"] + mlp["up_bias"][None, None], approximate=False)
    np.testing.assert_allclose(inputs["mlp/down"], h_BLF, atol=1e-5)


def test_no_linear_algebra_of_a_batch_runs_on_a_cpu():
    """JAX's batched triangular solve and Cholesky of two shapes can deadlock on a CPU."""
    config = dataclasses.replace(FAMILIES["olmo"], n_layers=1, d_ff=48)
    block = jax.tree.map(lambda x: x[None], model.init(config, jax.random.key(0))["blocks_0"])
    chosen = tuple(calibrate._projections(block))
    x_MnBLD = jnp.zeros((1, 1, 2, 8, config.d_model))
    jaxpr = jax.make_jaxpr(lambda *arrays: calibrate._block(config, config.layers[0], chosen, Method(0), 4, *arrays))(
        block, x_MnBLD, jnp.ones((1, 2, 8), bool)
    )

    def equations(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from equations(inner)

    found = [e for e in equations(jaxpr.jaxpr) if e.primitive.name in ("cholesky", "triangular_solve")]
    assert found
    assert all(e.invars[0].aval.ndim == 2 for e in found)
