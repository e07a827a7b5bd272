"""The time of a working directory by stage: what is recorded, and the table that adds it up."""

import dataclasses
import json

import pytest
from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.results import Evaluation, Measured
from olmo_jax.cohort import Cohort, Run, shape_of
from sweeps.planning.plan import Plan
from sweeps.running import stage_times
from sweeps.running.stage_times import STAGES_FILE, Spent, add, lines, read, spent, timed


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def plan(tiny):
    """One stack of two runs, of which the second is longer."""
    runs = Run("short", tiny), Run("long", dataclasses.replace(tiny, tokens=2 * tiny.tokens))
    cohort = Cohort(shape_of(tiny, "abc"), runs)
    return Plan((cohort,), {"main": "abc"}, EvalConfig(), stacks=(cohort,))


def time_training(workdir, run, *rows):
    (workdir / "runs" / run).mkdir(parents=True)
    stepping = {"tokens_per_second": 1.0, "step_seconds": 1.0, "mfu": 0.1}
    whole = [{"step": 1, **row} | (stepping if row["event"] == "steps" else {}) for row in rows]
    (workdir / "runs" / run / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))


def time_evaluation(workdir, run, step, kind, name, seconds):
    results.write(workdir, run, step, Evaluation(kind, name, {}), "abc", Measured({"x": 1.0}, {}), seconds)


def test_stage_times_add_up_over_starts_with_parts_and_remainder(workdir, plan):
    add(workdir, "prepare", 30.0)
    add(workdir, "train", 60.0)
    add(workdir, "train", 20.0)
    add(workdir, "evaluate", 8.0)
    add(workdir, "report", 2.0)
    time_training(workdir, "short", {"event": "steps", "seconds": 99.0, "data_seconds": 0.0})
    time_training(
        workdir, "long",
        {"event": "compile", "seconds": 6.0}, {"event": "steps", "seconds": 40.0, "data_seconds": 1.5},
        {"event": "probe", "seconds": 3.0}, {"event": "checkpoint", "seconds": 2.0},
        {"event": "steps", "seconds": 20.0, "data_seconds": 0.5},
    )  # fmt: skip
    for run, step, kind, name, seconds in (
        ("short", 12, "gptq", "gptq_3", 2.5), ("long", 12, "gptq", "gptq_3", 2.5),  # measured together
        ("long", 24, "gptq", "gptq_3", 1.25), ("long", 24, "gptq", "gptq_4", 1.25),
        ("short", 12, "lm_loss", "lm_loss", 1.0), ("long", 12, "lm_loss", "lm_loss", 1.0),
        ("short", 12, "", "of_an_earlier_configuration", 0.5),
    ):  # fmt: skip
        time_evaluation(workdir, run, step, kind, name, seconds)
    assert spent(workdir, plan) == [
        Spent("prepare", 30.0, {}),
        Spent("train", 80.0, {"set-up and compiling": 6.0, "steps": 58.0, "probes": 3.0, "checkpoints": 2.0,
                              "making batches": 2.0, "rest": 9.0}),
        Spent("evaluate", 8.0, {"gptq": 5.0, "lm_loss": 1.0, "of_an_earlier_configuration": 0.5, "rest": 1.5}),
        Spent("report", 2.0, {}),
    ]  # fmt: skip
    table = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in lines(workdir, plan)}
    assert table["stage"] == ["seconds", "share"]
    assert (table["steps"], table["evaluate"]) == (["58.0", "48.3%"], ["8.0", "6.7%"])
    assert table["all stages"] == ["120.0", "100.0%"]


def test_without_the_timing_file_times_come_from_runs_and_results(workdir, plan):
    time_training(workdir, "long", {"event": "compile", "seconds": 4.0})
    time_evaluation(workdir, "long", 24, "lm_loss", "lm_loss", 2.0)
    assert spent(workdir, plan) == [
        Spent("train", 4.0, {"set-up and compiling": 4.0}),
        Spent("evaluate", 2.0, {"lm_loss": 2.0}),
    ]


def test_a_killed_stage_takes_at_least_the_time_of_its_parts(workdir, plan):
    time_training(workdir, "long", {"event": "probe", "seconds": 50.0})
    add(workdir, "train", 7.0)
    assert spent(workdir, plan) == [Spent("train", 50.0, {"probes": 50.0})]


def test_an_empty_directory_has_no_stage_times(workdir, plan):
    assert spent(workdir, plan) == []
    assert lines(workdir, plan) == []


@pytest.mark.parametrize("torn", [b'{"stage": "prep', b"\0\0\0", b'{"stage": "train", "seconds": 5.0}'])
def test_an_incomplete_last_line_is_ignored_and_truncated(workdir, torn):
    add(workdir, "prepare", 1.0)
    whole = (workdir / STAGES_FILE).read_bytes()
    (workdir / STAGES_FILE).write_bytes(whole + torn)
    add(workdir, "train", 2.0)
    written = (workdir / STAGES_FILE).read_bytes()
    assert written.startswith(whole + b'{"stage": "train", "seconds": 2.0')
    assert [row["stage"] for row in read(workdir)] == ["prepare", "train"]


@pytest.mark.parametrize(
    "damaged",
    ["", "null", "[]", "{", "\0", '{"stage": "train"}', '{"stage": "train", "seconds": "5"}',
     '{"stage": 1, "seconds": 5}', '{"stage": "train", "seconds": NaN}', '{"stage": "train", "seconds": -1}',
     '{"stage": "train", "seconds": true}', "[" * 100_000],
)  # fmt: skip
def test_damaged_rows_are_ignored(workdir, plan, damaged):
    add(workdir, "prepare", 1.0)
    with open(workdir / STAGES_FILE, "a") as file:
        file.write(damaged + "\n")
    add(workdir, "prepare", 2.0)
    assert spent(workdir, plan) == [Spent("prepare", 3.0, {})]


def test_interrupted_stages_are_timed_and_idle_ones_are_not(workdir, monkeypatch):
    clock = iter([10.0, 14.0, 20.0, 25.0])
    monkeypatch.setattr(stage_times.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), timed(workdir, "train", True):
        raise KeyboardInterrupt
    with timed(workdir, "evaluate", False):
        pass
    assert [(row["stage"], row["seconds"]) for row in read(workdir)] == [("train", 4.0)]


def test_a_refused_command_leaves_no_directory_behind(workdir):
    with pytest.raises(ValueError, match="no data"), timed(workdir / "new", "prepare", True):
        raise ValueError("no data")
    assert not (workdir / "new").exists()
