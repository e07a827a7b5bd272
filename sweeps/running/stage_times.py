"""Where the seconds of a working directory went, by stage: what `olmo-jax status` prints as a table.

stages.jsonl has a row for each time that a stage did something: {"stage", "seconds", "time"}, the time that of its end.
What training and evaluation were spent on is in timings.jsonl of the runs and in their results; directories that are
older than stages.jsonl have these alone.
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
    """A stage's seconds, and the parts of them that are known, in the order they are shown in."""

    stage: str
    seconds: float
    parts: dict[str, float]


@contextlib.contextmanager
def timed(workdir: epath.Path, stage: str, does_something: bool) -> Iterator[None]:
    """Adds a row for what runs within, however that ends; none for a stage that finds nothing left to do.

    A directory that isn't there is not made for that: what is refused leaves none behind.
    """
    start = time.monotonic()
    try:
        yield
    finally:
        if does_something and workdir.exists():
            add(workdir, stage, time.monotonic() - start)


def add(workdir: epath.Path, stage: str, seconds: float) -> None:
    """Appends a row to stages.jsonl, in the process that writes, after cutting a line that a kill left unfinished."""
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
    """The rows of stages.jsonl, without those that are damaged: nothing but a table of times depends on them."""
    path = workdir / STAGES_FILE
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for line in lines if (row := _row(line)) is not None]


def spent(workdir: epath.Path, plan: Plan) -> list[Spent]:
    """What each stage took over all starts, as far as anything is known of it.

    A stage takes at least its parts: a process that was killed wrote these and no row for the stage.
    """
    total: dict[str, float] = collections.defaultdict(float)
    for row in read(workdir):
        total[row["stage"]] += row["seconds"]
    parts = {"train": _training(workdir, plan), "evaluate": _evaluation(workdir, plan)}
    found = []
    for stage in (*STAGES, *sorted(total.keys() - set(STAGES))):
        of = {name: seconds for name, seconds in parts.get(stage, {}).items() if seconds}
        seconds = max(total[stage], sum(of.values()))
        if of and seconds > sum(of.values()):
            of[_REST] = seconds - sum(of.values())
        if seconds:
            found.append(Spent(stage, seconds, of))
    return found


def lines(workdir: epath.Path, plan: Plan) -> list[str]:
    """The table, a line for each stage and part with seconds and share; [] where nothing is known."""
    found = spent(workdir, plan)
    if not found:
        return []
    whole = sum(one.seconds for one in found)
    rows = [("stage", "seconds", "share")]
    for stage, seconds, parts in found:
        rows += [_shown(stage, seconds, whole), *(_shown(f"  {name}", part, whole) for name, part in parts.items())]
    rows.append(_shown("all stages", whole, whole))
    width = max(len(name) for name, *_ in rows)
    return [f"{name:<{width}}  {seconds:>9} {share:>6}" for name, seconds, share in rows]


def _shown(name: str, seconds: float, whole: float) -> tuple[str, str, str]:
    return name, f"{seconds:,.1f}", f"{seconds / whole:.1%}"


def _training(workdir: epath.Path, plan: Plan) -> dict[str, float]:
    """Seconds by event. Runs of a stack share their time, and the longest was there throughout."""
    found: dict[str, float] = dict.fromkeys([*_EVENTS.values(), "making batches"], 0.0)
    for stack in plan.stacks:
        longest = max(stack.runs, key=lambda run: run.config.total_steps)
        for row in read_timings(workdir / "runs" / longest.id / TIMINGS):
            name, waited = _EVENTS.get(row["event"], row["event"]), row.get("data_seconds", 0.0)
            found[name] = found.get(name, 0.0) + row["seconds"] - waited
            found["making batches"] += waited
    return found


def _evaluation(workdir: epath.Path, plan: Plan) -> dict[str, float]:
    """Seconds by kind of evaluation, the longest first. The models that were measured together all hold their time."""
    kinds = {evaluation.name: evaluation.kind for evaluation in evaluations(plan.evaluation)}
    jobs: set[tuple[str, str, float]] = set()
    for stack in plan.stacks:
        for run in stack.runs:
            for step in results.steps(workdir, run.id):
                for name, result in results.read_all(workdir, run.id, step).items():
                    if _is_time(seconds := result.get("seconds")):
                        jobs.add((stack.folder, name, seconds))
    found: dict[str, float] = collections.defaultdict(float)
    for _, name, seconds in jobs:
        found[kinds.get(name, name)] += seconds
    return dict(sorted(found.items(), key=lambda of: -of[1]))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("stage"), str) and _is_time(row.get("seconds"))
    return row if whole else None


def _is_time(seconds: Any) -> TypeGuard[float]:
    return type(seconds) in (int, float) and math.isfinite(seconds) and seconds >= 0
