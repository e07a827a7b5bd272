"""The training step sharded over eight devices in every divisible layout, against one device, for every option."""

import collections
import dataclasses
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from olmo_jax import cohort as cohorts
from olmo_jax import model
from olmo_jax.cohort import Run
from olmo_jax.config import ConfigError, MeshConfig, TrainConfig
from olmo_jax.execution import sharding
from olmo_jax.execution.memory import choose_execution_plan
from olmo_jax.execution.program import compile_steps, initial_state
from tests.olmo_jax.variants import VARIANTS

MEMBERS, BATCH, LENGTH, STEPS = 8, 8, 12, 2
MESHES = [(m, d, 8 // (m * d)) for m, d in itertools.product((1, 2, 4, 8), repeat=2) if m * d <= 8]
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def program(architecture, mesh_config, members, mapping="vmap"):
    base = TrainConfig(tokens=10 * BATCH * LENGTH, model=dataclasses.replace(architecture, n_layers=1))
    data = dataclasses.replace(base.data, batch_size=BATCH, sequence_length=LENGTH)
    base = dataclasses.replace(base, data=data, mesh=mesh_config, mapping=mapping)
    runs = [Run(f"r{seed}", dataclasses.replace(base, init_seed=seed, data_seed=seed)) for seed in range(members)]
    shape = cohorts.shape_of(base, "text")
    mesh = sharding.make_mesh(mesh_config, members)
    state = initial_state(shape, runs, mesh)
    plan = choose_execution_plan(shape, members, mesh)._replace(steps_per_call=1)
    return compile_steps(shape, runs, mesh, plan), state, mesh


def train(architecture, mesh_config, members=MEMBERS):
    compiled, state, mesh = program(architecture, mesh_config, members)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(STEPS):
        tokens = rng.integers(0, architecture.vocab_size, (MEMBERS, BATCH, LENGTH + 1)).astype(np.int32)[:members]
        batches = sharding.put(mesh, PartitionSpec(None, *sharding.BATCH), tokens[None])
        state, metrics = compiled.steps(state, compiled.hyper, None, batches, np.int32(1))
        losses.append(np.asarray(metrics.loss)[0])
    return np.array(losses), jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device():
    """A function that returns the results of one device, by variant and members."""
    known = {}

    def of(name, members=MEMBERS):
        if (name, members) not in known:
            known[name, members] = train(VARIANTS[name], MeshConfig(1, 1, 1), members)
        return known[name, members]

    return of


def assert_as_on_one_device(on_one_device, name, mesh_config, members=MEMBERS):
    losses, params = train(VARIANTS[name], mesh_config, members)
    expected_losses, expected = on_one_device(name, members)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    # Adam's first steps divide small gradients by their own magnitude, which amplifies rounding.
    chex.assert_trees_all_close(params, expected, rtol=2e-3, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_matches_one_device(on_one_device, mesh):
    assert_as_on_one_device(on_one_device, "all at once", MeshConfig(*mesh))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmo", "olmo2", "gpt_neox", "tied", "gemma3", "unrotated blocks"])
def test_sharding_rules_cover_every_model_option(on_one_device, name):
    assert_as_on_one_device(on_one_device, name, MeshConfig(2, 2, 2), members=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mesh"), [("all at once", (1, 8, 1)), ("gpt_neox", (2, 2, 2))])
def test_fully_sharded_training_matches_one_device(on_one_device, name, mesh):
    assert_as_on_one_device(on_one_device, name, MeshConfig(*mesh, fsdp=True), members=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mapping"), [*((name, "vmap") for name in ("all at once", "olmo2", "gpt_neox")), ("all at once", "map")]
)
def test_members_on_separate_devices_do_not_communicate(name, mapping):
    compiled, _, _ = program(VARIANTS[name], MeshConfig(member=8), MEMBERS, mapping)
    text = compiled.steps.as_text()
    assert {word: len(re.findall(rf" {word}", text)) for word in COLLECTIVES} == dict.fromkeys(COLLECTIVES, 0)


@pytest.mark.slow
def test_fully_sharded_parameters_take_an_eighth_per_device():
    def bytes_of(fsdp):
        compiled, state, _ = program(VARIANTS["olmo2"], MeshConfig(1, 8, 1, fsdp=fsdp), 1)
        memory = compiled.steps.memory_analysis()
        whole = sum(x.nbytes for x in jax.tree.leaves(state))
        vectors = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim < 3)
        return memory.argument_size_in_bytes, memory.output_size_in_bytes, whole, vectors

    arguments, outputs, whole, vectors = bytes_of(fsdp=True)
    each = vectors + (whole - vectors) / 8
    text = BATCH * (LENGTH + 1) * 4 / 8
    assert arguments == pytest.approx(each + text, rel=0.02)
    assert outputs == pytest.approx(each, rel=0.03)  # with the step's metrics
    assert bytes_of(fsdp=False)[0] > whole


def test_rules_cover_all_parameters_and_moments_share_their_sharding():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2), 2)
    for config in VARIANTS.values():
        params = jax.eval_shape(lambda c=config: model.init(c, jax.random.key(0)))
        stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), {"params": params, "mu": params})
        results = sharding.stack_shardings(mesh, stack)
        assert results["params"] == results["mu"]
        matrices = [
            s.spec for x, s in zip(jax.tree.leaves(stack), jax.tree.leaves(results), strict=True) if x.ndim == 3
        ]
        # All matrices but learned positions are cut over "model".
        assert sum("model" not in spec for spec in matrices) == 2 * (config.positions == "learned")


def test_a_width_that_does_not_divide_is_refused():
    stack = {"blocks_0": {"attention": {"key_bias": jnp.zeros((1, 12))}}}
    with pytest.raises(ConfigError, match=r"config\.mesh\.model = 8 doesn't divide a dimension of 12 of 'blocks_0/att"):
        sharding.stack_shardings(sharding.make_mesh(MeshConfig(1, 1, 8), 1), stack)
    with pytest.raises(ConfigError, match=r"config\.mesh\.data = 8 doesn't divide a dimension of 12"):
        sharding.stack_shardings(
            sharding.make_mesh(MeshConfig(1, 8, 1), 1), {"positions": jnp.zeros((1, 12, 4))}, fsdp=True
        )


@pytest.mark.slow
def test_a_fully_sharded_matrix_is_gathered_for_forward_and_backward():
    compiled, _, _ = program(VARIANTS["olmo2"], MeshConfig(1, 8, 1, fsdp=True), 1)
    gathers = re.findall(r" = f32\[1,(\d+),(\d+)\]\S* all-gather\(", compiled.steps.as_text())
    count = collections.Counter(tuple(map(int, shape)) for shape in gathers)
    # query and out; key and value; gate and up; down; embedding and unembedding, which are used once each.
    assert count == {(32, 32): 4, (32, 16): 4, (32, 48): 4, (48, 32): 2, (64, 32): 2}
