"""What a working directory holds so far: a line a run, with each checkpoint and the evaluations that are left."""

import collections

from etils import epath

from eval.evaluate import tasks
from olmo_jax.checkpoint import directory, member_lists
from olmo_jax.cohort import Cohort
from olmo_jax.metrics import TIMINGS, read_jsonl
from olmo_jax.train import checkpoint_steps, read_status
from sweeps.plan import Plan


def status_lines(workdir: epath.Path, plan: Plan) -> list[str]:
    """Runs with state, step and checkpoints (x written, . to come), then what is left to evaluate."""
    width = max(len(run.id) for run in plan.runs)
    lines = [f"{'run':<{width}}  {'state':<9} {'step':>13}  checkpoints"]
    left, written_at_all = 0, False
    for cohort in plan.cohorts:
        written = member_lists(directory(workdir, cohort.id))
        todo = tasks(workdir, cohort, plan.evaluation)
        left += len(todo)
        written_at_all |= bool(written)
        for run in cohort.runs:
            now = read_status(workdir, run.id)
            total = run.config.total_steps
            # Beside those that the configuration names there are those of a stop, or of an import.
            there = {step for step, runs in written.items() if run.id in runs}
            due = sorted({step for step in checkpoint_steps(cohort) if step <= total} | there)
            marks = "".join("x" if run.id in written.get(step, ()) else "." for step in due)
            steps = f"{now['step']}/{total}"
            lines.append(f"{run.id:<{width}}  {now['state']:<9} {steps:>13}  {marks}")
    if not written_at_all:
        return [*lines, "nothing is trained yet"]
    return [
        *lines,
        *(text for cohort in plan.cohorts if (text := _time(workdir, cohort))),
        f"{left} evaluations of cohorts' checkpoints are left" if left else "all that is trained is evaluated",
    ]


def _time(workdir: epath.Path, cohort: Cohort) -> str:
    """Where a cohort's training time went, over all starts; "" before there is any."""
    rows = read_jsonl(workdir / "runs" / cohort.runs[0].id / TIMINGS)
    spent: collections.Counter[str] = collections.Counter()
    for row in rows:
        spent[row["event"]] += row["seconds"]
    steps = [row for row in rows if row["event"] == "steps" and "mfu" in row]
    if not steps:
        return ""
    total, stepping = sum(spent.values()), sum(row["seconds"] for row in steps)
    tokens = sum(row["tokens_per_second"] * row["seconds"] for row in steps) / stepping
    peak = sum(row["mfu"] * row["seconds"] for row in steps) / stepping
    shares = ", ".join(f"{name} {seconds / total:.1%}" for name, seconds in spent.most_common())
    waited = sum(row["data_seconds"] for row in steps) / total
    return (
        f"{cohort.id}: {tokens:,.0f} tokens/s, {peak:.1%} of the matmul peak; of {total:.0f} s: {shares}; making "
        f"batches {waited:.1%}"
    )
