"""A cohort against single runs of its members: start and batches are equal, the end is equal within rounding."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from olmo_jax import cohort as cohorts
from olmo_jax import model
from olmo_jax.cohort import Run
from olmo_jax.config import ConfigError, MeshConfig
from olmo_jax.data import batches as token_batches
from olmo_jax.data.batches import BatchLoader
from olmo_jax.execution import sharding
from olmo_jax.execution.memory import choose_execution_plan
from olmo_jax.execution.program import compile_steps, initial_state
from olmo_jax.step import REASONS
from tests.plain import plain

STEPS = 8
ONE_DEVICE = MeshConfig(member=1)


@pytest.fixture(scope="module")
def runs(tiny, vary):
    changes = [
        {"init_seed": 0, "optimizer.weight_decay": 0.1},
        {"init_seed": 1, "optimizer.weight_decay": 2.0, "optimizer.final_fraction": 0.0},
        {"init_seed": 2, "data_seed": 5, "optimizer.learning_rate": 3e-3, "optimizer.warmup_fraction": 0.5},
    ]
    return [Run(f"r{i}", vary(tiny, c)) for i, c in enumerate(changes)]


def train(runs, index, mesh_config=ONE_DEVICE, steps=STEPS, mapping="auto", most_bytes=2**30, **how):
    shape = cohorts.shape_of(runs[0].config, index.fingerprint)
    shape = shape.with_config(mesh=mesh_config, mapping=mapping)
    mesh = sharding.make_mesh(mesh_config, len(runs))
    plan = choose_execution_plan(shape, len(runs), mesh)._replace(steps_per_call=1, **how)
    load_batches = BatchLoader(index, [run.config for run in runs], mesh, 1, most_bytes)
    state = initial_state(shape, runs, mesh)
    start, batches_read, losses = jax.device_get(state.params), [], []
    program = compile_steps(shape, runs, mesh, plan, load_batches.table)
    for step in range(steps):
        batches = load_batches(step, 1, range(len(runs)))
        batches_read.append(np.asarray(batches)[0])
        state, metrics = program.steps(state, program.hyper, load_batches.table, batches, np.int32(1))
        losses.append(np.asarray(metrics.loss)[0])
    return start, np.array(batches_read), np.array(losses), jax.device_get(state)


@pytest.fixture(scope="module")
def together(runs, index):
    return train(runs, index)


@pytest.mark.parametrize("m", [0, 1, 2])
def test_a_member_matches_its_single_run_exactly_at_start_and_within_rounding_at_end(runs, together, index, m):
    start_M, batches_read, losses, end_M = together
    start, single_batches, losses_alone, end = train([runs[m]], index)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[m], start_M), jax.tree.map(lambda x: x[0], start))
    np.testing.assert_array_equal(batches_read[:, m], single_batches[:, 0])
    np.testing.assert_allclose(losses[:, m], losses_alone[:, 0], rtol=1e-5)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[m], end_M.params), jax.tree.map(lambda x: x[0], end.params), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("m", [0, 1, 2])
def test_a_member_starts_from_model_init(runs, together, m):
    expected = model.init(runs[m].config.model, jax.random.key(runs[m].config.init_seed))
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[m], together[0]), jax.device_get(expected))


def test_settings_and_seeds_reach_their_members(together):
    _, batches_read, _, end = together
    np.testing.assert_array_equal(batches_read[:, 0], batches_read[:, 1])
    assert (batches_read[:, 0] != batches_read[:, 2]).any()
    norms = [float(np.sqrt(sum(np.sum(x[m] ** 2) for x in jax.tree.leaves(end.params)))) for m in range(3)]
    assert len({round(n, 4) for n in norms}) == 3


@pytest.mark.parametrize("mapping", ["vmap", "map"])
@pytest.mark.parametrize("mesh", plain([(1, 1, 1), (2, 2, 2), (3, 1, 1), (1, 4, 1)], (2, 2, 2)))
def test_eight_devices_and_both_mappings_match_one_device(runs, together, index, mesh, mapping):
    """(2, 2, 2) pads three members with an inert one."""
    _, _, losses, end = train(runs, index, MeshConfig(*mesh), mapping=mapping)
    np.testing.assert_allclose(losses[:, :3], together[2], rtol=2e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[:3], end.params), together[3].params, rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def arms(tiny, vary):
    """A control and one run of every intervention, which share one shape."""
    half = tiny.model.d_model // 2
    changes = [
        {},
        {"intervention.head_rank": half},
        {"intervention.backward_rank": half},
        {"intervention.backward_rank": half, "intervention.backward_subspace": "random"},
        {"intervention.update_rank": half},
        {"intervention.rank_penalty": -0.5},
        {"intervention.polar_decay": 0.01},
        {"intervention.head_decay": 1.0, "intervention.head_rate": 2.0},
        {"intervention.center_head": True},
        {"intervention.mean_row": 1.0},
    ]
    return [Run(f"r{i}", vary(tiny, {"model.factored_head": True} | change)) for i, change in enumerate(changes)]


@pytest.fixture(scope="module")
def arms_trained(arms, index):
    return train(arms, index, mapping="map")


@pytest.mark.slow
def test_all_interventions_train_as_one_program_that_mappings_and_devices_do_not_change(arms, arms_trained, index):
    assert len({cohorts.shape_of(run.config, index.fingerprint).cohort_key for run in arms}) == 1
    _, _, losses, end = arms_trained
    W_MVD = jax.vmap(model.unembedding)(end.params)
    assert len({float(abs(w_VD).sum()) for w_VD in np.asarray(W_MVD)}) == len(arms)
    np.testing.assert_allclose(losses[:, -2:], losses[:, [0, 0]], rtol=1e-5)  # neither the mean row nor its removal
    for mesh in (ONE_DEVICE, MeshConfig(2, 2, 2), MeshConfig(1, 4, 1, fsdp=True)):
        _, _, others, end_there = train(arms, index, mesh, mapping="vmap")
        np.testing.assert_allclose(others[:, : len(arms)], losses, rtol=5e-5)
        there = jax.tree.map(lambda x: x[: len(arms)], end_there.params)
        chex.assert_trees_all_close(there, end.params, rtol=5e-3, atol=1e-4)


@pytest.mark.slow
def test_interventions_with_bfloat16_match_float32_within_its_noise(arms, arms_trained, index, vary):
    half = [Run(run.id, vary(run.config, {"model.compute_dtype": "bfloat16"})) for run in arms]
    _, _, losses, end = train(half, index, mapping="map")
    assert {x.dtype for x in jax.tree.leaves(end.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(losses, arms_trained[2], rtol=0.01)


@pytest.mark.parametrize("mapping", ["vmap", "map"])
def test_members_on_several_devices_do_not_communicate(runs, index, mapping):
    shape = cohorts.shape_of(runs[0].config, index.fingerprint)
    shape = shape.with_config(mesh=MeshConfig(member=3), mapping=mapping)
    mesh = sharding.make_mesh(shape.config.mesh, len(runs))
    plan = choose_execution_plan(shape, len(runs), mesh)
    program = compile_steps(shape, runs, mesh, plan)
    talk = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    assert [word for word in talk if f" {word}" in program.steps.as_text()] == []


def test_inert_members_keep_their_parameters(runs, index):
    start, _, losses, end = train(runs, index, MeshConfig(member=4))
    assert np.isnan(losses[:, 3]).all()
    assert end.step.tolist() == [STEPS, STEPS, STEPS, 0]
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[3], start), jax.tree.map(lambda x: x[3], end.params))


def test_a_diverged_member_is_frozen_and_the_others_continue(runs, together, index, vary):
    wild = Run("wild", vary(runs[1].config, {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}))
    _, _, losses, end = train([runs[0], wild, runs[2]], index)
    at = int(end.diverged_at[1])
    assert 1 <= at <= STEPS
    assert np.isfinite(losses[: at - 1, 1]).all()
    assert np.isnan(losses[at - 1 :, 1]).all()
    assert all(np.isfinite(x[1]).all() for x in jax.tree.leaves(end.params))
    assert end.step.tolist() == [STEPS, at - 1, STEPS]
    assert end.diverged_at.tolist() == [-1, at, -1]
    np.testing.assert_allclose(losses[:, [0, 2]], together[2][:, [0, 2]], rtol=1e-6)


def test_a_member_at_its_total_steps_is_unchanged(runs, index, vary):
    short = Run("short", vary(runs[0].config, {"tokens": 3 * 4 * 16}))
    _, _, losses, end = train([short, runs[1]], index, steps=5)
    assert end.step.tolist() == [3, 5]
    assert np.isfinite(losses[:3, 0]).all()
    assert np.isnan(losses[3:, 0]).all()


def test_members_that_differ_in_every_traced_number_share_a_program(runs, index):
    """Cohorts that differ only in the name, fingerprint or domains of their data share a program too."""
    shape = cohorts.shape_of(runs[0].config, index.fingerprint)
    law = shape.with_config(data=dataclasses.replace(shape.config.data, train_domains=("law",)))
    elsewhere = dataclasses.replace(law, data_name="other", data_fingerprint="text 2")
    mesh = sharding.make_mesh(ONE_DEVICE, 2)
    plan = choose_execution_plan(shape, 2, mesh)
    first, second = compile_steps(shape, runs[:2], mesh, plan), compile_steps(elsewhere, runs[1:3], mesh, plan)
    assert first.steps is second.steps
    assert not np.array_equal(first.hyper.learning_rate, second.hyper.learning_rate)
    assert compile_steps(shape, runs, mesh, plan).steps is not first.steps


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 2, 1)])
def test_microbatches_match_the_full_batch(runs, together, index, mesh):
    _, _, losses, end = train(runs, index, MeshConfig(*mesh), microbatches=2)
    np.testing.assert_allclose(losses, together[2], rtol=2e-5)
    chex.assert_trees_all_close(end.params, together[3].params, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_tokens_sent_with_each_step_train_like_resident_ones(runs, together, index, mesh):
    _, batches_read, losses, end = train(runs, index, MeshConfig(*mesh), most_bytes=0)
    assert batches_read.shape[-1] == runs[0].config.data.sequence_length + 1
    if mesh == (1, 1, 1):
        np.testing.assert_array_equal(losses, together[2])
        chex.assert_trees_all_equal(end.params, together[3].params)
    np.testing.assert_allclose(losses[:, :3], together[2], rtol=2e-5)


def test_window_numbers_select_the_tokens_otherwise_sent(runs, index):
    """Each window number stands for the tokens that would otherwise be sent."""
    mesh = sharding.make_mesh(ONE_DEVICE, 1)
    config = dataclasses.replace(runs[0].config, data_seed=3)
    length = config.data.sequence_length
    arguments = (index, [config], mesh, 2)
    by_number, as_tokens = BatchLoader(*arguments), BatchLoader(*arguments, most_bytes=0)
    for step in (0, 17):
        named, sent = by_number(step, 2, [0]), as_tokens(step, 2, [0])
        for k in range(2):
            results = token_batches.tokens(by_number.table, named[k, 0], length, length)
            np.testing.assert_array_equal(results, sent[k, 0])


def test_bfloat16_training_matches_float32_within_its_noise(runs, together, index, vary):
    half = [Run(run.id, vary(run.config, {"model.compute_dtype": "bfloat16"})) for run in runs]
    _, _, losses, end = train(half, index)
    assert {x.dtype for x in jax.tree.leaves(end.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(losses, together[2], rtol=0.01)


def test_the_loss_falls_on_text_with_structure(together):
    losses = together[2]
    assert (losses[-1] < losses[0] - 0.2).all()


def test_too_few_devices_and_an_uncovered_parameter_are_refused():
    with pytest.raises(ConfigError, match="needs 16 devices and there are 8"):
        sharding.make_mesh(MeshConfig(4, 2, 2), 4)
    with pytest.raises(ConfigError, match="no sharding rule covers the parameter 'blocks_0/experts/gate_2'"):
        sharding.spec_of("blocks_0/experts/gate_2")
    with pytest.raises(ConfigError, match="doesn't divide"):
        sharding.stack_shardings(sharding.make_mesh(MeshConfig(1, 1, 8), 1), {"embedding": np.zeros((2, 12, 4))})


@pytest.mark.parametrize("mapping", ["vmap", "map"])
def test_a_non_finite_member_leaves_its_neighbours_bit_equal(runs, index, vary, mapping):
    def with_middle(changes):
        middle = Run("m", vary(runs[1].config, changes))
        return train([runs[0], middle, runs[2]], index, mapping=mapping)

    wild = with_middle({"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0})
    calm = with_middle({})
    at, reason = wild[3].diverged_at, [REASONS[i] for i in wild[3].reason]
    assert at[1] > 0 and reason[1] in REASONS[1:]
    assert [at[0], at[2], reason[0], reason[2]] == [-1, -1, "", ""]
    for m in (0, 2):
        one, other = (jax.tree.map(lambda x, m=m: x[m], run[3]) for run in (wild, calm))
        chex.assert_trees_all_equal(one, other)
        np.testing.assert_array_equal(wild[2][:, m], calm[2][:, m])
    frozen = jax.tree.leaves(jax.tree.map(lambda x: x[1], wild[3].params))
    assert all(np.isfinite(x).all() for x in frozen)


@pytest.mark.slow
def test_64_members_match_64_single_runs(runs, index, vary):
    """The smallest model of the paper's suite at CPU scale; each member's losses match those of the single run."""
    from sweeps.planning.plan import point_config, read_sweep
    from sweeps.studies.paper_a import paper

    smallest = point_config(read_sweep(paper.get_config("cpu")), 4).model
    settings = {"model": smallest, "data": runs[0].config.data, "tokens": 20 * 64}
    base = dataclasses.replace(runs[0].config, **settings)
    rates = np.geomspace(1e-3, 1e-2, 8)
    many = [
        Run(
            f"{i}",
            vary(base, {"optimizer.learning_rate": float(rates[i % 8]), "init_seed": i // 8, "data_seed": i % 3}),
        )
        for i in range(64)
    ]
    _, _, losses, _ = train(many, index, steps=20)
    assert losses.shape == (20, 64)
    separate = np.stack([train([run], index, steps=20)[2][:, 0] for run in many[::7]], axis=1)
    np.testing.assert_allclose(losses[:, ::7], separate, rtol=2e-4)
    assert (losses[-1] < losses[0]).all()
