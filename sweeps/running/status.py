"""Show the progress of a working directory: one line per run, with its checkpoints, and the evaluations left."""

import collections
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from etils import epath

from eval.evaluate import jobs
from olmo_jax.checkpoint import directory, member_lists
from olmo_jax.cohort import Cohort, Run, checkpoint_steps
from olmo_jax.logs.metrics import METRICS, TIMINGS, last_row, read_timings
from olmo_jax.storage.run_status import ENDED, read_status
from sweeps.planning.plan import Plan
from sweeps.running import stage_times
from sweeps.running.stacks import failure, lock_of

_POLL_SECONDS = 5.0
_RECENT_ROWS = 20


def show(workdir: epath.Path, plan: Plan, watch: bool) -> None:
    """Print the status; with `watch`, every few seconds until every run has ended or a signal arrives."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    if not watch:
        print("\n".join(status_lines(workdir, plan)))
        return
    with Live(console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(Text("\n".join(status_lines(workdir, plan))), refresh=True)
            if all(read_status(workdir, run.id)["state"] in ENDED for run in plan.runs):
                return
            time.sleep(_POLL_SECONDS)


class RunStatus(NamedTuple):
    """The progress of a run.

    Attributes:
      state: waiting, training, stopped, failed, done or diverged. step, total: steps of training done, and in all.
      loss: the last one. seconds_left: of training; None if it isn't training or nothing is known yet.
      checkpoints: one mark per checkpoint that is due, x if it is written. reason: why the run diverged.
    """

    run_id: str
    state: str
    step: int
    total: int
    loss: float | None
    seconds_left: float | None
    checkpoints: str
    reason: str


class StackStatus(NamedTuple):
    """The runs of a stack, why it failed ("" if it didn't), how its time was spent, and the evaluations left."""

    folder: str
    runs: tuple[RunStatus, ...]
    failure: str
    time: str
    evaluations_left: int

    @property
    def has_checkpoints(self) -> bool:
        return any("x" in run.checkpoints for run in self.runs)


def stack_statuses(workdir: epath.Path, plan: Plan) -> list[StackStatus]:
    """Return the status of every stack of a plan."""
    return [_stack_status(workdir, plan, stack) for stack in plan.stacks]


def _stack_status(workdir: epath.Path, plan: Plan, stack: Cohort) -> StackStatus:
    written, seconds = member_lists(directory(workdir, stack.folder)), step_seconds(workdir, stack)
    runs = tuple(_run_status(workdir, stack, run, written, seconds) for run in stack.runs)
    left = len(jobs(workdir, stack, plan.evaluation))
    return StackStatus(stack.folder, runs, failure(workdir, stack) or "", _time(workdir, stack), left)


def status_lines(workdir: epath.Path, plan: Plan) -> list[str]:
    """Return each run's state, step, loss, time left and checkpoints (x written, . due), then seconds by stage."""
    stacks = stack_statuses(workdir, plan)
    width = max(len(run.id) for run in plan.runs)
    lines = [f"{'run':<{width}}  {'state':<9} {'step':>13} {'loss':>8} {'left':>7}  checkpoints"]
    for stack in stacks:
        lines += [f"{run.run_id:<{width}}  {_line(run)}" for run in stack.runs]
        if stack.failure:
            lines.append(f"{stack.folder} failed: {stack.failure}")
    return lines + summary_lines(workdir, plan, stacks)


def summary_lines(workdir: epath.Path, plan: Plan, stacks: Sequence[StackStatus]) -> list[str]:
    """Return how the time was spent, and what is left to evaluate."""
    if not any(stack.has_checkpoints for stack in stacks):
        return ["nothing is trained yet"]
    left = sum(stack.evaluations_left for stack in stacks)
    return [
        *(stack.time for stack in stacks if stack.time),
        f"{left} evaluations of checkpoints are left" if left else "all that is trained is evaluated",
        *stage_times.lines(workdir, plan),
    ]


def _run_status(
    workdir: epath.Path, stack: Cohort, run: Run, written: dict[int, list[str]], seconds_a_step: float | None
) -> RunStatus:
    status = read_status(workdir, run.id)
    state = _state(workdir, stack, status)
    row = last_row(workdir / "runs" / run.id / METRICS) or {"step": status["step"]}
    total = run.config.total_steps
    # Stopping and importing write checkpoints at steps that the configuration doesn't name.
    written_steps = {step for step, runs in written.items() if run.id in runs}
    due = sorted({step for step in checkpoint_steps(stack) if step <= total} | written_steps)
    left = (total - row["step"]) * seconds_a_step if state == "training" and seconds_a_step else None
    return RunStatus(
        run.id,
        state,
        row["step"],
        total,
        row.get("loss"),
        left,
        "".join("x" if run.id in written.get(step, ()) else "." for step in due),
        f"{status['reason']} not finite at step {status['diverged_at']}" if status.get("diverged_at") else "",
    )


def _line(run: RunStatus) -> str:
    loss = "" if run.loss is None else f"{run.loss:.3f}"
    left = "" if run.seconds_left is None else duration(run.seconds_left)
    why = f"  {run.reason}" if run.reason else ""
    return f"{run.state:<9} {f'{run.step}/{run.total}':>13} {loss:>8} {left:>7}  {run.checkpoints}{why}"


def _state(workdir: epath.Path, stack: Cohort, status: dict[str, Any]) -> str:
    """Return the state of a run: waiting, training, stopped, failed, done or diverged."""
    state = str(status["state"])
    if state in ENDED or lock_of(workdir, stack).held():
        return state
    if failure(workdir, stack):
        return "failed"
    return "stopped" if state == "training" else state


def step_seconds(workdir: epath.Path, stack: Cohort) -> float | None:
    """Return the recent seconds per step, probes and checkpoints included; None before the first steps.

    Only rows since the last compilation count.
    """
    rows = read_timings(workdir / "runs" / _longest(stack).id / TIMINGS)
    begun = max((i for i, row in enumerate(rows) if row["event"] == "compile"), default=-1)
    recent = rows[begun + 1 :][-_RECENT_ROWS:]
    steps = recent[-1]["step"] - recent[0]["step"] if recent else 0
    return sum(row["seconds"] for row in recent[1:]) / steps if steps > 0 else None


def _longest(stack: Cohort) -> Run:
    """Return the longest run, whose timings are those of the whole stack."""
    return max(stack.runs, key=lambda run: run.config.total_steps)


def duration(seconds: float) -> str:
    """Return a time as minutes and seconds, or as hours from one hour on."""
    if seconds < 3600:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
    return f"{seconds / 3600:.1f} h"


def _time(workdir: epath.Path, stack: Cohort) -> str:
    """Return how a stack's training time was spent, over all starts; "" before the first steps."""
    rows = read_timings(workdir / "runs" / _longest(stack).id / TIMINGS)
    spent: collections.Counter[str] = collections.Counter()
    for row in rows:
        spent[row["event"]] += row["seconds"]
    steps = [row for row in rows if row["event"] == "steps" and "mfu" in row]
    if not sum(row["seconds"] for row in steps):
        return ""
    total, stepping = sum(spent.values()), sum(row["seconds"] for row in steps)
    tokens = sum(row["tokens_per_second"] * row["seconds"] for row in steps) / stepping
    peak = sum(row["mfu"] * row["seconds"] for row in steps) / stepping
    shares = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in spent.most_common())
    waited = sum(row["data_seconds"] for row in steps) / total
    return (
        f"{stack.folder}: {tokens:,.0f} tokens/s, {peak:.1%} of the matmul peak; of {total:.0f} s: {shares}; making "
        f"batches {waited:.1%}"
    )
