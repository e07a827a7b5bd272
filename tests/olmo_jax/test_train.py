"""A cohort is trained to its end, stopped and resumed, with members that end at different steps."""

import collections
import dataclasses
import json
import logging
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from etils import epath

from olmo_jax import checkpoint, model
from olmo_jax.checkpoint import CheckpointError, load_run, load_stack, member_lists
from olmo_jax.cohort import Cohort, Run, checkpoint_steps, shape_of
from olmo_jax.config import ComputeConfig, ConfigError, MeshConfig
from olmo_jax.execution import memory as deciding
from olmo_jax.execution import sharding
from olmo_jax.execution.memory import choose_execution_plan
from olmo_jax.execution.program import compile_steps
from olmo_jax.logs.metrics import read_jsonl
from olmo_jax.storage.lock import LockError
from olmo_jax.storage.run_status import read_status
from olmo_jax.train import train_cohort, write_run_files
from tests.plain import plain


@pytest.fixture(scope="module")
def cohort(tiny, index, vary):
    """Three members; the last ends at step 7 of 12."""
    changes = [{"init_seed": 0}, {"init_seed": 1, "optimizer.weight_decay": 1.0}, {"init_seed": 2, "tokens": 7 * 64}]
    runs = [Run(f"run{i}", vary(tiny, c)) for i, c in enumerate(changes)]
    return Cohort(shape_of(step_by_step(tiny), index.fingerprint), tuple(runs))


def step_by_step(config, steps_per_call=1):
    """Return the configuration with calls short enough to stop after any step."""
    return dataclasses.replace(config, compute=ComputeConfig(steps_per_call=steps_per_call))


def train(workdir, cohort, index, stop=lambda: False):
    write_run_files(workdir, cohort)
    return train_cohort(workdir, cohort, index, stop)


@pytest.fixture(scope="module")
def trained(cohort, index, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("trained"))
    assert train(workdir, cohort, index)
    return workdir


def metrics_of(workdir, run):
    return (workdir / "runs" / run / "metrics.jsonl").read_text()


def stopper(after):
    """Return a stop request that is True once `after` steps are done."""
    calls = iter(range(10**6))
    return lambda: next(calls) >= after


def test_metrics_have_no_gap_and_probes_appear_when_due(cohort, trained):
    for run in cohort.runs:
        rows = [json.loads(line) for line in metrics_of(trained, run.id).splitlines()]
        total = run.config.total_steps
        assert [row["step"] for row in rows] == list(range(total + 1))
        assert [row["tokens"] for row in rows] == [64 * s for s in range(total + 1)]
        probed = [row["step"] for row in rows if "unembedding/effective_rank" in row]
        assert probed == [s for s in range(total + 1) if s % 4 == 0 or s in (5, 7, 10, 12)]
        assert {"loss", "grad_norm", "learning_rate"} <= rows[1].keys()
        assert "unembedding_gauge_fixed/partition_isotropy" in rows[-1]


def test_an_early_ending_member_leaves_the_stack_and_is_reported_done(cohort, trained):
    lists = member_lists(checkpoint.directory(trained, cohort.id))
    assert lists == {
        5: ["run0", "run1", "run2"],
        7: ["run0", "run1", "run2"],
        10: ["run0", "run1"],
        12: ["run0", "run1"],
    }
    assert read_status(trained, "run2") == {
        "state": "done",
        "step": 7,
        "total_steps": 7,
        "diverged_at": None,
        "reason": "",
    }
    assert read_status(trained, "run0")["step"] == 12


def test_an_early_ending_member_matches_its_single_run(cohort, trained, index, tmp_path):
    single = Cohort(cohort.shape, cohort.runs[2:])
    assert train(epath.Path(tmp_path), single, index)
    for (_, a), (_, b) in [(load_run(trained, "run2"), load_run(tmp_path, "run2"))]:
        chex.assert_trees_all_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("after", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 6, 9))])
def test_stop_and_resume_is_bit_equal(cohort, trained, index, tmp_path, after):
    workdir = epath.Path(tmp_path)
    assert not train(workdir, cohort, index, stopper(after))
    assert train(workdir, cohort, index)
    for run in cohort.runs:
        assert metrics_of(workdir, run.id) == metrics_of(trained, run.id)
        for step in (5, run.config.total_steps):
            chex.assert_trees_all_equal(load_run(workdir, run.id, step)[1], load_run(trained, run.id, step)[1])
        assert read_status(workdir, run.id) == read_status(trained, run.id)
    # The checkpoint of the stop is deleted: only the configured ones remain.
    path = checkpoint.directory(workdir, cohort.id)
    assert set(member_lists(path)) == checkpoint_steps(cohort) == {5, 7, 10, 12}


@pytest.mark.parametrize("steps_per_call", [3, pytest.param(0, marks=pytest.mark.slow)])
def test_several_steps_per_call_are_bit_equal_with_and_without_a_stop(cohort, trained, index, tmp_path, steps_per_call):
    """3 divides neither the probes' 4 steps nor the checkpoints' 5; 0 takes as many as there are between these."""
    compute = ComputeConfig(steps_per_call=steps_per_call)
    several = Cohort(cohort.shape.with_config(compute=compute), cohort.runs)
    workdir = epath.Path(tmp_path)
    assert not train(workdir, several, index, stopper(2))
    stopped_at = read_status(workdir, "run0")["step"]
    assert stopped_at == {3: 5, 0: 7}[steps_per_call]  # after calls that end at 3, 4, 5 or at 4, 5, 7
    assert train(workdir, several, index)
    for run in cohort.runs:
        assert metrics_of(workdir, run.id) == metrics_of(trained, run.id)
        chex.assert_trees_all_equal(load_run(workdir, run.id)[1], load_run(trained, run.id)[1])


@pytest.fixture(scope="module")
def options(tiny, index, vary):
    """Muon, sharpness-aware minimisation in one of two members, and warm-up, stable, decay."""
    base = vary(step_by_step(tiny), {"optimizer.name": "muon", "optimizer.schedule": "wsd"})
    base = vary(base, {"optimizer.decay_fraction": 0.5, "optimizer.decay_shape": "sqrt"})
    runs = [Run(f"rho{rho}", vary(base, {"optimizer.sam_rho": rho})) for rho in (0.0, 0.1)]
    return Cohort(shape_of(base, index.fingerprint), tuple(runs))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_other_optimisers_resume_too(options, index, tmp_path, mesh):
    straight, stopped = epath.Path(tmp_path / "a"), epath.Path(tmp_path / "b")
    assert train(straight, options, index)
    assert not train(stopped, options, index, stopper(6))
    resumed = Cohort(options.shape.with_config(mesh=MeshConfig(*mesh)), options.runs)
    assert train(stopped, resumed, index)
    for run in options.runs:
        expected, params = (load_run(workdir, run.id)[1] for workdir in (straight, stopped))
        if mesh == (1, 1, 1):
            chex.assert_trees_all_equal(params, expected)
            assert metrics_of(stopped, run.id) == metrics_of(straight, run.id)
        else:
            chex.assert_trees_all_close(params, expected, rtol=2e-3, atol=2e-4)
    first, last = (load_run(straight, run.id)[1]["unembedding"] for run in options.runs)
    assert np.abs(first - last).max() > 1e-4  # rho reached its member


def test_timings_record_each_activity(trained):
    rows = read_jsonl(trained / "runs" / "run0" / "timings.jsonl")
    assert collections.Counter(row["event"] for row in rows)["compile"] == 2
    assert {"compile", "steps", "probe", "checkpoint"} == {row["event"] for row in rows}
    steps = [row for row in rows if row["event"] == "steps"]
    assert [row["step"] for row in steps] == [4, 5, 7, 8, 10, 12]
    for row in steps:
        assert 0 < row["mfu"] < 1
        assert 0 <= row["data_seconds"] <= row["seconds"]
        assert row["tokens_per_second"] > 0


@pytest.mark.slow
def test_a_trace_covers_the_requested_steps(cohort, index, tmp_path):
    workdir = epath.Path(tmp_path)
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False, traced=(2, 3))
    assert list(pathlib.Path(workdir / "profile" / cohort.id).glob("**/*.xplane.pb"))


def test_training_a_finished_cohort_does_nothing(cohort, trained, index):
    def times():
        return {p: p.stat().st_mtime_ns for p in pathlib.Path(trained).rglob("*")}

    before = times()
    assert train(trained, cohort, index)
    assert times() == before


@pytest.mark.slow
def test_a_checkpoint_resumes_on_another_mesh(cohort, trained, index, tmp_path):
    """Stopped on one device with three members, resumed on a mesh of 2 x 2 x 2, which pads them."""
    workdir = epath.Path(tmp_path)
    assert not train(workdir, cohort, index, stopper(6))
    wider = Cohort(cohort.shape.with_config(mesh=MeshConfig(2, 2, 2)), cohort.runs)
    assert train(workdir, wider, index)
    chex.assert_trees_all_close(load_run(workdir, "run1")[1], load_run(trained, "run1")[1], rtol=2e-3, atol=2e-5)


def test_load_run_returns_the_parameters_of_the_member(cohort, trained):
    names, stack = load_stack(trained, cohort.id, 10)
    config, params = load_run(trained, "run1", 10)
    assert config == cohort.shape.model
    chex.assert_trees_all_equal(params, jax.tree.map(lambda x: x[names.index("run1")], stack))
    assert {type(x) for x in jax.tree.leaves(params)} == {np.ndarray}
    logits = model.apply(config, params, np.arange(5)[None]).logits_BLV
    assert np.isfinite(logits).all()


def test_load_run_takes_a_relative_path(trained, monkeypatch):
    monkeypatch.chdir(pathlib.Path(trained).parent)
    chex.assert_trees_all_equal(load_run(trained.name, "run0"), load_run(trained, "run0"))


def test_load_run_lists_available_runs_and_steps(trained, tmp_path):
    with pytest.raises(CheckpointError, match="no run 'run9'.*run0, run1, run2"):
        load_run(trained, "run9")
    with pytest.raises(CheckpointError, match="no checkpoint at step 6; steps: 5, 7, 10, 12"):
        load_run(trained, "run0", 6)
    with pytest.raises(CheckpointError, match="its runs: none"):
        load_run(tmp_path, "run0")


def test_log_spaced_checkpoints_run_from_the_first_step_to_the_last(cohort, vary):
    spaced = dataclasses.replace(cohort.shape.config.checkpoint, every=0, log_spaced=4)
    runs = (Run("r", vary(cohort.runs[0].config, {"tokens": 1000 * 64})),)
    steps = checkpoint_steps(Cohort(cohort.shape.with_config(checkpoint=spaced), runs))
    assert sorted(steps) == [1, 10, 100, 1000]


def copy_of(trained, tmp_path):
    """Copy a finished training without the status files of its runs."""
    workdir = epath.Path(shutil.copytree(trained, tmp_path / "copy"))
    for status in pathlib.Path(workdir).glob("runs/*/status.json"):
        status.unlink()
    return workdir


def damage(checkpoint, how):
    """Damage a checkpoint's parameters."""
    files = [p for p in pathlib.Path(checkpoint).glob("params/**/*") if p.is_file() and p.stat().st_size]
    data = max(files, key=lambda p: p.stat().st_size)
    if how == "bytes":  # many: a file has places too that nothing refers to
        data.write_bytes(bytes(b ^ (i % 97 == 0) for i, b in enumerate(data.read_bytes())))
    elif how == "checksum":  # read without an error although it differs from what was saved
        members = pathlib.Path(checkpoint / "members" / "metadata")
        output = json.loads(members.read_text())
        output["checksums"]["params/unembedding"][0] ^= 1
        members.write_text(json.dumps(output))
    elif how == "cut":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif how == "file":
        data.unlink()
    else:
        shutil.rmtree(checkpoint / how)


@pytest.mark.parametrize(
    "how", plain(["bytes", "checksum", "cut", "file", "params", "moments", "members"], "bytes", "moments")
)
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_resumed(cohort, trained, index, tmp_path, capsys, how):
    workdir = copy_of(trained, tmp_path)
    path = checkpoint.directory(workdir, cohort.id)
    damage(path / "12", how)
    if how not in ("moments", "members"):
        with pytest.raises(CheckpointError, match="12: "):
            load_run(workdir, "run0")
    assert train(workdir, cohort, index)
    assert "broken/12; training resumes from step 10" in capsys.readouterr().err
    assert (path.parent / "broken" / "12").exists()
    for run in cohort.runs:
        assert metrics_of(workdir, run.id) == metrics_of(trained, run.id)
        chex.assert_trees_all_equal(load_run(workdir, run.id)[1], load_run(trained, run.id)[1])


def test_truncated_metrics_resume_from_the_last_covered_checkpoint(cohort, trained, index, tmp_path, capsys):
    workdir = copy_of(trained, tmp_path)
    path = workdir / "runs" / "run1" / "metrics.jsonl"
    rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join(rows[:11]) + rows[11][:20] + "\n" + rows[12])  # step 11 cut, 12 whole
    assert train(workdir, cohort, index)
    assert "has 11 rows and the checkpoint is at step 12" in capsys.readouterr().err
    assert metrics_of(workdir, "run1") == metrics_of(trained, "run1")


def test_without_a_usable_checkpoint_nothing_is_changed(cohort, trained, index, tmp_path):
    workdir = copy_of(trained, tmp_path)
    (workdir / "runs" / "run1" / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"none of 4 checkpoints can be resumed from.*run1.*0 rows.*move .* away"):
        train(workdir, cohort, index)
    assert set(member_lists(checkpoint.directory(workdir, cohort.id))) == {5, 7, 10, 12}
    assert metrics_of(workdir, "run0") == metrics_of(trained, "run0")


def test_a_checkpoint_of_a_stop_is_deleted_even_after_a_kill(cohort, trained, index, tmp_path):
    workdir = epath.Path(tmp_path / "w")
    assert not train(workdir, cohort, index, stopper(5))  # a checkpoint at step 6
    assert train(workdir, cohort, index)
    path = checkpoint.directory(workdir, cohort.id)
    assert set(member_lists(path)) == {5, 7, 10, 12}
    shutil.copytree(path / "5", path / "6")  # as if its deletion never began
    (path.parent / "deleted" / "9").mkdir(parents=True)  # and this one's was cut short
    for status in pathlib.Path(workdir).glob("runs/*/status.json"):
        status.unlink()
    assert train(workdir, cohort, index)
    assert set(member_lists(path)) == {5, 7, 10, 12}
    assert not (path.parent / "deleted").exists()
    assert read_status(workdir, "run0")["state"] == "done"


def test_a_checkpoint_of_a_stop_stays_while_its_successor_is_unreadable(cohort, index, tmp_path, monkeypatch):
    workdir = epath.Path(tmp_path / "w")
    assert not train(workdir, cohort, index, stopper(5))  # a checkpoint at step 6

    def unreadable(path, step, item):
        raise CheckpointError(f"{path / str(step)}: can't be read")

    monkeypatch.setattr(checkpoint, "_load", unreadable)
    with pytest.raises(CheckpointError, match="can't be read"):
        train(workdir, cohort, index)
    assert 6 in member_lists(checkpoint.directory(workdir, cohort.id))


@pytest.mark.parametrize("content", ["", "\0" * 40, '{"item_handlers": 1.5}', "[]"])
def test_damaged_orbax_metadata_is_deleted_and_the_checkpoint_loads(cohort, trained, index, tmp_path, capsys, content):
    workdir = copy_of(trained, tmp_path)
    output = checkpoint.directory(workdir, cohort.id) / "10" / "_CHECKPOINT_METADATA"
    output.write_text(content)
    with pytest.raises(CheckpointError, match="_CHECKPOINT_METADATA.*; delete that file"):
        load_run(workdir, "run0")
    assert train(workdir, cohort, index)
    assert "delete that file; the checkpoint can be read without it; it has been deleted" in capsys.readouterr().err
    chex.assert_trees_all_equal(load_run(workdir, "run0")[1], load_run(trained, "run0")[1])


@pytest.mark.parametrize("content", ["", '{"asked": 1}', "kept"])
def test_a_damaged_execution_plan_is_decided_again(cohort, trained, index, tmp_path, capsys, content):
    workdir = copy_of(trained, tmp_path)
    path = checkpoint.directory(workdir, cohort.id).parent / "compute.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | {"chosen": {"attention": 3}}) if content == "kept" else content)
    assert train(workdir, cohort, index)
    assert json.loads(path.read_text()) == before
    assert ("chosen again" in capsys.readouterr().err) == (content != '{"asked": 1}')


def test_a_process_that_lost_its_lock_writes_no_checkpoint_or_status(cohort, index, tmp_path):
    workdir = epath.Path(tmp_path)
    write_run_files(workdir, cohort)
    steps_at_check = []

    def owned():
        steps_at_check.append(read_status(workdir, "run0")["step"])
        if len(steps_at_check) == 2:  # between the first checkpoint and its status
            raise LockError("taken over")

    with pytest.raises(LockError):
        train_cohort(workdir, cohort, index, lambda: False, owned=owned)
    assert steps_at_check == [0, 0]
    assert read_status(workdir, "run0")["step"] == 0


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(cohort, index, tmp_path):
    small = cohort.shape.with_config(model=dataclasses.replace(cohort.shape.model, vocab_size=200))
    with pytest.raises(ConfigError, match="config.model.vocab_size = 200.*outside the vocabulary"):
        train(epath.Path(tmp_path), Cohort(small, cohort.runs), index)


def test_a_second_cohort_of_the_same_shape_compiles_nothing(cohort, trained, index, vary, tmp_path, caplog):
    """Steps of both segments, initial state, probes and checkpoints all reuse the programs of the first cohort."""
    changes = {"init_seed": 7, "data_seed": 3, "optimizer.learning_rate": 1e-4, "optimizer.beta2": 0.9}
    runs = [Run(f"other{i}", vary(run.config, changes)) for i, run in enumerate(cohort.runs)]
    shape = dataclasses.replace(cohort.shape, data_name="another")
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        jax.jit(lambda x: x + 1)(1)
        assert train(epath.Path(tmp_path), Cohort(shape, tuple(runs)), index)
    compiled = [r.message.split(" with ")[0] for r in caplog.records if r.message.startswith("Compiling jit(")]
    assert compiled == ["Compiling jit(<lambda>)"]


def test_a_diverged_member_stays_diverged_after_resume_and_is_reported(tiny, index, vary, tmp_path):
    wild = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    runs = (Run("calm", tiny), Run("wild", vary(tiny, wild)))
    cohort = Cohort(shape_of(step_by_step(tiny), index.fingerprint), runs)
    whole, halves = epath.Path(tmp_path / "whole"), epath.Path(tmp_path / "halves")
    assert train(whole, cohort, index)
    assert not train(halves, cohort, index, stopper(5))
    assert train(halves, cohort, index)
    status = read_status(whole, "wild")
    assert status["state"] == "diverged"
    assert 1 <= status["diverged_at"] <= 12
    assert status["reason"] in ("loss", "gradient", "parameters")
    assert read_status(whole, "calm")["state"] == "done"
    for run in ("calm", "wild"):
        assert metrics_of(whole, run) == metrics_of(halves, run)
        assert read_status(halves, run) == read_status(whole, run)
    rows = [json.loads(line) for line in metrics_of(whole, "wild").splitlines()]
    assert [row["loss"] is None for row in rows[1:]] == [s >= status["diverged_at"] for s in range(1, 13)]


@pytest.mark.slow
def test_a_batch_too_large_for_memory_is_split_into_microbatches(cohort, trained, index, tmp_path, monkeypatch):
    """The memory of the compiled steps decides once: a resumed training keeps the choice even with more memory."""
    mesh = sharding.make_mesh(cohort.shape.config.mesh, len(cohort.runs))
    chosen = choose_execution_plan(cohort.shape, len(cohort.runs), mesh)
    memory = compile_steps(cohort.shape, cohort.runs, mesh, chosen).steps.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    workdir = epath.Path(tmp_path)
    monkeypatch.setattr(deciding, "device_memory", lambda: whole - 1.0)
    assert not train(workdir, cohort, index, stopper(2))
    monkeypatch.undo()
    assert train(workdir, cohort, index)
    plan = json.loads((checkpoint.directory(workdir, cohort.id).parent / "compute.json").read_text())
    assert plan["chosen"]["microbatches"] in (2, 4)
    chex.assert_trees_all_close(load_run(workdir, "run1")[1], load_run(trained, "run1")[1], rtol=2e-3, atol=2e-5)

    monkeypatch.setattr(deciding, "device_memory", lambda: 1000.0)
    with pytest.raises(ConfigError, match=r"batch_size = 4: .*one sequence at a time, 3 members need .*; set .*remat"):
        train(epath.Path(tmp_path / "other"), cohort, index)
