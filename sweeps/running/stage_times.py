"""Record and sum the seconds that each stage of a sweep took, which `olmo-jax status` prints as a table.

stages.jsonl has one row for each time that a stage did some work: {"stage", "seconds", "time"}, the time being that of
its end. The parts of training and evaluation come from the runs' timings.jsonl and results; directories that are older
than stages.jsonl have only these.
"""

import collections
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeGuard

from etils import epath

from eval import results
from eval.suite import evaluations
from olmo_jax.execution import processes
from olmo_jax.logs.metrics import TIMINGS, read_timings
from sweeps.planning.plan import Plan

STAGES_FILE = "stages.jsonl"
STAGES = ("prepare", "train", "evaluate", "report")
_EVENTS = {"compile": "set-up and compiling", "steps": "steps", "probe": "probes", "checkpoint": "checkpoints"}
_REST = "rest"


class Spent(NamedTuple):
    """A stage's seconds, and those of its known parts, in the order in which they are shown."""

    stage: str
    seconds: float
    parts: dict[str, float]


@contextlib.contextmanager
def timed(workdir: epath.Path, stage: str, does_something: bool) -> Iterator[None]:
    """Add a row with the time spent in the block, even if it raises; none for a stage that had nothing left to do.

    A working directory that doesn't exist isn't created, so that a refused command leaves none behind.
    """
    start = time.monotonic()
    try:
        yield
    finally:
        if does_something and workdir.exists():
            add(workdir, stage, time.monotonic() - start)


def add(workdir: epath.Path, stage: str, seconds: float) -> None:
    """Append a row to stages.jsonl, in the first process only, after removing a line that a kill left unfinished."""
    if not processes.is_first():
        return
    row = {"stage": stage, "seconds": round(seconds, 3), "time": round(time.time(), 3)}
    with open(workdir / STAGES_FILE, "ab+") as file:
        file.seek(0)
        written = file.read()
        file.truncate(written.rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read(workdir: epath.Path) -> list[dict[str, Any]]:
    """Return the rows of stages.jsonl without damaged ones, since only the table of times depends on them."""
    path = workdir / STAGES_FILE
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for line in lines if (row := _row(line)) is not None]


def spent(workdir: epath.Path, plan: Plan) -> list[Spent]:
    """Return the time that each stage took over all starts; stages without a recorded time are left out.

    A stage takes at least as long as its parts: a process that was killed has recorded parts but no row for the stage.
    """
    total: dict[str, float] = collections.defaultdict(float)
    for row in read(workdir):
        total[row["stage"]] += row["seconds"]
    parts = {"train": _training(workdir, plan), "evaluate": _evaluation(workdir, plan)}
    result = []
    for stage in (*STAGES, *sorted(total.keys() - set(STAGES))):
        known = {name: seconds for name, seconds in parts.get(stage, {}).items() if seconds}
        seconds = max(total[stage], sum(known.values()))
        if known and seconds > sum(known.values()):
            known[_REST] = seconds - sum(known.values())
        if seconds:
            result.append(Spent(stage, seconds, known))
    return result


def lines(workdir: epath.Path, plan: Plan) -> list[str]:
    """Return the table, one line per stage and part with seconds and share; [] if no time is recorded."""
    stages = spent(workdir, plan)
    if not stages:
        return []
    whole = sum(stage.seconds for stage in stages)
    rows = [("stage", "seconds", "share")]
    for stage, seconds, parts in stages:
        rows += [_shown(stage, seconds, whole), *(_shown(f"  {name}", part, whole) for name, part in parts.items())]
    rows.append(_shown("all stages", whole, whole))
    width = max(len(name) for name, *_ in rows)
    return [f"{name:<{width}}  {seconds:>9} {share:>6}" for name, seconds, share in rows]


def _shown(name: str, seconds: float, whole: float) -> tuple[str, str, str]:
    return name, f"{seconds:,.1f}", f"{seconds / whole:.1%}"


def _training(workdir: epath.Path, plan: Plan) -> dict[str, float]:
    """Return seconds by event. The runs of a stack share their time, so those of the longest run cover all of it."""
    seconds: dict[str, float] = dict.fromkeys([*_EVENTS.values(), "making batches"], 0.0)
    for stack in plan.stacks:
        longest = max(stack.runs, key=lambda run: run.config.total_steps)
        for row in read_timings(workdir / "runs" / longest.id / TIMINGS):
            name, waited = _EVENTS.get(row["event"], row["event"]), row.get("data_seconds", 0.0)
            seconds[name] = seconds.get(name, 0.0) + row["seconds"] - waited
            seconds["making batches"] += waited
    return seconds


def _evaluation(workdir: epath.Path, plan: Plan) -> dict[str, float]:
    """Return seconds by kind of evaluation, the longest first.

    Models that were evaluated together all record the time that they took together, which is counted once.
    """
    kinds = {evaluation.name: evaluation.kind for evaluation in evaluations(plan.evaluation)}
    jobs: set[tuple[str, str, float]] = set()
    for stack in plan.stacks:
        for run in stack.runs:
            for step in results.steps(workdir, run.id):
                for name, result in results.read_all(workdir, run.id, step).items():
                    if _is_time(seconds := result.get("seconds")):
                        jobs.add((stack.folder, name, seconds))
    by_kind: dict[str, float] = collections.defaultdict(float)
    for _, name, seconds in jobs:
        by_kind[kinds.get(name, name)] += seconds
    return dict(sorted(by_kind.items(), key=lambda item: -item[1]))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("stage"), str) and _is_time(row.get("seconds"))
    return row if whole else None


def _is_time(seconds: Any) -> TypeGuard[float]:
    return type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0
