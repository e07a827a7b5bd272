"""What `status` shows of runs that wait, train, were stopped, failed, diverged or are done."""

import pytest
from etils import epath

from eval.config import EvalConfig
from olmo_jax.checkpoint import CheckpointError
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.logs.metrics import last_row, write_jsonl
from olmo_jax.train import train_cohort, write_run_files
from sweeps.planning.plan import Plan
from sweeps.running.stacks import lock_of, one_process_per_stack
from sweeps.running.status import show, status_lines, step_seconds


@pytest.fixture
def plan(tiny, index, vary):
    """Two stacks of one cohort: a calm and a wild run, and one that comes later."""
    wild = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0}
    shape = shape_of(vary(tiny, {"compute.steps_per_call": 1}), index.fingerprint)
    first = Cohort(shape, (Run("calm", tiny), Run("wild", vary(tiny, wild))))
    second = Cohort(shape, (Run("later", vary(tiny, {"init_seed": 7})),), part=1)
    cohort = Cohort(shape, (*first.runs, *second.runs))
    return Plan((cohort,), {"main": index.fingerprint}, EvalConfig(), stacks=(first, second))


def states(workdir, plan):
    lines = status_lines(workdir, plan)
    return {line.split()[0]: line.split()[1:] for line in lines if line.split()[0] in ("calm", "wild", "later")}


def begin(workdir, plan):
    for stack in plan.stacks:
        write_run_files(workdir, stack)


def test_status_shows_waiting_training_stopped_and_ended_runs(plan, index, tmp_path):
    workdir, first = epath.Path(tmp_path), plan.stacks[0]
    begin(workdir, plan)
    assert {run: state[0] for run, state in states(workdir, plan).items()} == dict.fromkeys(
        ("calm", "wild", "later"), "waiting"
    )
    observed = []

    def look():
        observed.append(states(workdir, plan)["calm"])
        return len(observed) > 6

    def train(stack, stop):
        return train_cohort(workdir, stack, index, stop)

    assert not one_process_per_stack(workdir, [first], look, train)
    assert {state[0] for state in observed[1:]} == {"training"}
    after = states(workdir, plan)
    assert after["calm"][0] == "stopped"
    step, loss, marks = after["calm"][1], after["calm"][2], after["calm"][-1]
    assert step.endswith("/12")
    assert float(loss) == pytest.approx(last_row(workdir / "runs" / "calm" / "metrics.jsonl")["loss"], abs=1e-3)
    assert marks.count("x") >= 1 and marks.count(".") >= 1  # written, to come

    assert one_process_per_stack(workdir, plan.stacks, lambda: False, train)
    ended = states(workdir, plan)
    assert ended["calm"][:2] == ["done", "12/12"]
    assert ended["later"][0] == "done"
    assert ended["wild"][0] == "diverged"
    assert " ".join(ended["wild"]).endswith(("parameters not finite at step 1", "gradient not finite at step 2",
                                             "loss not finite at step 2"))  # fmt: skip
    assert set(ended["calm"][-1]) == {"x"}


def test_a_failed_run_shows_the_reason_until_retried(plan, tmp_path):
    workdir = epath.Path(tmp_path)
    begin(workdir, plan)

    def fail(stack, stop):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        one_process_per_stack(workdir, plan.stacks, lambda: False, fail)

    done = []

    def fail_one(stack, stop):
        if stack.part == 0:
            raise CheckpointError("the disk is full")
        done.append(stack.folder)
        return True

    with pytest.raises(CheckpointError, match="disk is full"):  # once the other stack is done
        one_process_per_stack(workdir, plan.stacks, lambda: False, fail_one)
    assert done == [plan.stacks[1].folder]
    assert states(workdir, plan)["calm"][0] == "failed"
    assert states(workdir, plan)["later"][0] == "waiting"
    assert any("failed: the disk is full" in line for line in status_lines(workdir, plan))
    assert not lock_of(workdir, plan.stacks[0]).held()
    assert one_process_per_stack(workdir, plan.stacks, lambda: False, lambda stack, stop: True)
    assert states(workdir, plan)["calm"][0] == "waiting"


def test_step_time_averages_steps_since_the_last_compilation(plan, tmp_path):
    workdir, stack = epath.Path(tmp_path), plan.stacks[0]
    begin(workdir, plan)
    timings = workdir / "runs" / "calm" / "timings.jsonl"
    stepping = {"tokens_per_second": 1.0, "step_seconds": 1.0, "data_seconds": 0.0, "mfu": 0.1}

    def row(event, step, seconds):
        return {"event": event, "step": step, "seconds": seconds} | (stepping if event == "steps" else {})

    before = [row("compile", 0, 30.0), row("steps", 1, 9.0), row("steps", 13, 300.0)]
    assert step_seconds(workdir, stack) is None
    write_jsonl(timings, [*before[:1], row("steps", 1, 9.0)])
    assert step_seconds(workdir, stack) is None  # the first steps include one-off waits
    again = [row("compile", 4, 20.0), row("probe", 4, 5.0), row("steps", 16, 6.0), row("checkpoint", 16, 4.0),
             row("steps", 17, 0.5)]  # fmt: skip
    write_jsonl(timings, [*before, *again])
    assert step_seconds(workdir, stack) == pytest.approx((6.0 + 4.0 + 0.5) / (17 - 4))


def test_watching_ends_when_all_runs_have_ended(plan, index, tmp_path, capsys):
    workdir = epath.Path(tmp_path)
    begin(workdir, plan)
    for stack in plan.stacks:
        assert train_cohort(workdir, stack, index, lambda: False)
    show(workdir, plan, watch=True)
    assert "12/12" in capsys.readouterr().out
