"""Branches start from the checkpoints of other runs, and with the trunk's settings they end bit-equal to it."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from etils import epath

from olmo_jax import branch, checkpoint
from olmo_jax import train as trainer
from olmo_jax.checkpoint import CheckpointError, load_average, load_run, member_lists
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import ComputeConfig, OptimizerConfig
from olmo_jax.logs.metrics import read_jsonl
from olmo_jax.optimizer import init
from olmo_jax.storage.run_status import read_status
from olmo_jax.train import train_cohort, write_run_files


def train(workdir, cohort, index, stop=lambda: False):
    write_run_files(workdir, cohort)
    return train_cohort(workdir, cohort, index, stop)


def stopper(after):
    calls = iter(range(10**6))
    return lambda: next(calls) >= after


@pytest.fixture(scope="module")
def base(tiny, vary):
    return vary(dataclasses.replace(tiny, compute=ComputeConfig(steps_per_call=1)), {"checkpoint.at": (3,)})


@pytest.fixture(scope="module")
def trunks(base, index, vary):
    runs = [Run(f"trunk{seed}", vary(base, {"init_seed": seed, "data_seed": seed})) for seed in range(2)]
    return Cohort(shape_of(base, index.fingerprint), tuple(runs))


@pytest.fixture(scope="module")
def trained(trunks, index, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("trunks"))
    assert train(workdir, trunks, index)
    return workdir


@pytest.fixture
def branched(trunks, index, vary, trained):
    """`branched(step, changes)` returns the cohort of a branch of each trunk, in another working directory."""

    def cohort(step, changes=(), runs=trunks.runs):
        def one(run):
            settings = {"branch.parent": f"{run.id}@{step}", "branch.start_step": step, "branch.workdir": str(trained)}
            return Run(f"from-{run.id}", vary(run.config, settings | dict(changes)))

        members = tuple(map(one, runs))
        return Cohort(shape_of(members[0].config, index.fingerprint), members)

    return cohort


@pytest.mark.parametrize("stops", [(), (3,), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_a_branch_with_the_trunks_settings_ends_bit_equal_to_it(trunks, trained, branched, index, tmp_path, stops):
    workdir, cohort = epath.Path(tmp_path), branched(5)
    for after in stops:
        assert not train(workdir, cohort, index, stopper(after))
    assert train(workdir, cohort, index)
    for trunk, run in zip(trunks.runs, cohort.runs, strict=True):
        for step in (10, 12):
            chex.assert_trees_all_equal(load_run(workdir, run.id, step)[1], load_run(trained, trunk.id, step)[1])
        rows, expected = (
            read_jsonl(d / "runs" / r / "metrics.jsonl") for d, r in ((workdir, run.id), (trained, trunk.id))
        )
        assert rows[1:] == expected[6:]
        assert rows[0]["step"] == 5 and rows[0]["tokens"] == expected[5]["tokens"]
        assert rows[0]["unembedding/effective_rank"] == expected[5]["unembedding/effective_rank"]
        assert read_status(workdir, run.id) == read_status(trained, trunk.id)
    assert set(member_lists(checkpoint.directory(workdir, cohort.folder))) == {10, 12}


def test_a_branch_goes_its_own_way_after_its_start(trained, branched, index, tmp_path):
    changes = {"optimizer.schedule": "wsd", "optimizer.decay_fraction": 1.0, "optimizer.final_fraction": 0.0}
    workdir, cohort = epath.Path(tmp_path), branched(5, changes | {"tokens": 8 * 64})
    assert train(workdir, cohort, index)
    rows = read_jsonl(workdir / "runs" / "from-trunk0" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [5, 6, 7, 8]
    assert rows[-1]["learning_rate"] == 0.0  # its own budget ends at step 8
    assert rows[1]["loss"] == read_jsonl(trained / "runs" / "trunk0" / "metrics.jsonl")[6]["loss"]


def test_without_moments_only_the_parameters_are_the_parents(trained, branched, index):
    cohort = branched(5, {"branch.moments": False})
    state = branch.first_state(trained, cohort.runs[1])
    params = load_run(trained, "trunk1", 5)[1]
    chex.assert_trees_all_equal(state.params, params)
    chex.assert_trees_all_equal(state.moments, init(params, OptimizerConfig()))
    assert int(state.step) == 5


@pytest.mark.slow
def test_another_optimiser_can_take_over(branched, index, tmp_path):
    workdir, cohort = epath.Path(tmp_path), branched(5, {"branch.moments": False, "optimizer.name": "muon"})
    assert train(workdir, cohort, index)
    rows = read_jsonl(workdir / "runs" / "from-trunk0" / "metrics.jsonl")
    assert len(rows) == 8 and all(np.isfinite(row["loss"]) for row in rows[1:])


def test_the_mean_of_the_last_checkpoints_is_a_run_that_takes_no_step(trained, branched, index, tmp_path):
    workdir = epath.Path(tmp_path)
    cohort = branched(12, {"branch.average_last": 3, "branch.averaged_steps": (5, 10, 12)})
    assert train(workdir, cohort, index)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert train(workdir, cohort, index)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    expected = jax.tree.map(
        lambda *xs: (sum(x.astype(np.float64) for x in xs) / 3).astype(np.float32),
        *(load_run(trained, "trunk1", step)[1] for step in (5, 10, 12)),
    )
    chex.assert_trees_all_equal(load_run(workdir, "from-trunk1", 12)[1], expected)
    (row,) = read_jsonl(workdir / "runs" / "from-trunk1" / "metrics.jsonl")
    assert row["step"] == 12 and row["unembedding/effective_rank"] > 1
    assert read_status(workdir, "from-trunk1")["state"] == "done"


def test_the_moving_average_is_a_weighted_mean_of_the_parameters_after_each_step(
    trunks, base, index, vary, trained, branched, tmp_path
):
    decay, every = 0.8, {"checkpoint.ema_decay": 0.8, "checkpoint.every": 1}
    parents = epath.Path(tmp_path / "parents")
    runs = tuple(dataclasses.replace(run, config=vary(run.config, every)) for run in trunks.runs)
    kept = Cohort(shape_of(vary(base, every), index.fingerprint), runs)
    assert not train(parents, kept, index, stopper(7))
    assert train(parents, kept, index)
    weights = decay ** np.arange(11, -1, -1.0)
    expected = jax.tree.map(
        lambda *xs: sum(w * x.astype(np.float64) for w, x in zip(weights, xs, strict=True)) / weights.sum(),
        *(load_run(parents, "trunk1", step)[1] for step in range(1, 13)),
    )
    workdir = epath.Path(tmp_path / "average")
    changes = every | {
        "checkpoint.every": 5,
        "branch.workdir": str(parents),
        "branch.ema": True,
        "branch.ema_decay": decay,
    }
    assert train(workdir, branched(12, changes, runs), index)
    chex.assert_trees_all_close(load_run(workdir, "from-trunk1", 12)[1], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckpointError, match="has no average among its moments"):
        load_average(trained, "trunk0", 12)


def test_averages_and_longer_branches_share_a_stack(trunks, trained, branched, index, vary, tmp_path):
    workdir = epath.Path(tmp_path)
    short = branched(10, {"branch.average_last": 2, "branch.averaged_steps": (5, 10), "tokens": 10 * 64}).runs[0]
    long = branched(10).runs[0]
    cohort = Cohort(shape_of(long.config, index.fingerprint), (short, dataclasses.replace(long, id="long")))
    assert train(workdir, cohort, index)
    chex.assert_trees_all_close(
        load_run(workdir, "long", 12)[1], load_run(trained, "trunk0", 12)[1], rtol=1e-5, atol=1e-6
    )
    assert member_lists(checkpoint.directory(workdir, cohort.folder)) == {10: ["from-trunk0", "long"], 12: ["long"]}


def test_a_branch_of_a_diverged_run_is_marked_and_the_others_train(index, trunks, branched, vary, tmp_path, capsys):
    parents = epath.Path(tmp_path / "parents")
    broken = dataclasses.replace(trunks.runs[1], config=vary(trunks.runs[1].config, {"optimizer.learning_rate": 1e30}))
    assert train(parents, Cohort(trunks.shape, (trunks.runs[0], broken)), index)
    diverged_at = read_status(parents, "trunk1")["diverged_at"]
    workdir, cohort = epath.Path(tmp_path / "branches"), branched(5, {"branch.workdir": str(parents)})
    assert train(workdir, cohort, index)
    assert read_status(workdir, "from-trunk0")["state"] == "done"
    assert read_status(workdir, "from-trunk1")["diverged_at"] == 5 >= diverged_at
    assert "its parent trunk1 diverged" in capsys.readouterr().err


def test_a_checkpoint_that_is_missing_or_does_not_fit_is_named(trained, branched, vary, index):
    assert branch.missing(trained, branched(5)) == []
    assert branch.missing(trained, branched(7)) == ["trunk0@7", "trunk1@7"]
    cohort = branched(7)
    with pytest.raises(CheckpointError, match="trunk0.*no checkpoint at step 7"):
        branch.first_state(trained, cohort.runs[0])
    wider = branched(5, {"model.d_ff": 64})
    with pytest.raises(CheckpointError, match=r"mlp/\w+ has shape .*, and the runs' configuration expects"):
        branch.first_state(trained, wider.runs[0])


@pytest.mark.slow
def test_a_smaller_bound_of_the_rank_holds_from_the_start(trunks, base, index, vary, branched, tmp_path):
    bound = {"model.factored_head": True, "intervention.head_rank": 12}
    runs = tuple(dataclasses.replace(run, config=vary(run.config, bound)) for run in trunks.runs)
    parents = epath.Path(tmp_path / "parents")
    assert train(parents, Cohort(shape_of(vary(base, bound), index.fingerprint), runs), index)
    workdir = epath.Path(tmp_path / "branches")
    assert train(workdir, branched(5, {"branch.workdir": str(parents), "intervention.head_rank": 4}, runs), index)
    factor_DD = load_run(workdir, "from-trunk0")[1]["unembedding_factor"]
    np.testing.assert_array_equal(factor_DD[4:], 0.0)
    assert np.abs(factor_DD[:4]).min(axis=1).max() > 0


def test_a_kill_before_the_first_checkpoint_leaves_nothing_done(branched, index, tmp_path, monkeypatch):
    """Branches that take no step are done once their checkpoint is written, and not before."""
    workdir = epath.Path(tmp_path)
    cohort = branched(12, {"branch.average_last": 1, "branch.averaged_steps": (12,)})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(trainer, "_save", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        train(workdir, cohort, index)
    assert read_status(workdir, "from-trunk0")["state"] == "waiting"
    assert train(workdir, cohort, index)
    assert read_status(workdir, "from-trunk0")["state"] == "done"
    assert len(read_jsonl(workdir / "runs" / "from-trunk0" / "metrics.jsonl")) == 1


def test_a_stack_that_can_resume_or_is_done_needs_its_parents_no_more(trained, branched, index, tmp_path):
    workdir, cohort, elsewhere = epath.Path(tmp_path / "w"), branched(5), {"branch.workdir": str(tmp_path / "gone")}
    assert branch.missing(workdir, branched(5, elsewhere)) == ["trunk0@5", "trunk1@5"]
    assert not train(workdir, cohort, index, stopper(3))
    assert branch.missing(workdir, branched(5, elsewhere)) == []
    assert train(workdir, branched(5, elsewhere), index)
    assert branch.missing(workdir, branched(5, elsewhere)) == []
