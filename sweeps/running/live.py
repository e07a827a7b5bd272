"""What the live page shows of a sweep in training: its status, and its curves, read incrementally."""

import dataclasses
import math
import threading
from collections.abc import Sequence
from typing import Any

from etils import epath

from olmo_jax.config import TrainConfig
from olmo_jax.logs.metrics import METRICS, parsed_row
from sweeps.planning.plan import Plan, leaves
from sweeps.running.status import duration, stack_statuses, summary_lines

# The maximum number of points sent of each curve; more can't be distinguished on the page.
_POINTS = 200
_LOSS = "loss"
# Colours can't distinguish more values of a setting than this.
_MOST_LEVELS = 12


class Live:
    """A sweep as its working directory shows it; `snapshot` may be called repeatedly."""

    def __init__(self, workdir: epath.Path, plan: Plan):
        self._workdir, self._plan = workdir, plan
        self._curves = {run.id: _Curve(workdir / "runs" / run.id / METRICS) for run in plan.runs}
        self._reading = threading.Lock()
        self._settings = varying([run.config for run in plan.runs])

    def snapshot(self, metric: str) -> dict[str, Any]:
        """Return what the page shows, ready for JSON: runs, lines about the sweep, metrics, and curves of one metric.

        Args:
          metric: the one to draw beside the loss; for one that no run has, only the curves of the loss are returned.
        """
        stacks = stack_statuses(self._workdir, self._plan)
        runs = [run for stack in stacks for run in stack.runs]
        with self._reading:  # each request runs in a thread of its own
            for curve in self._curves.values():
                curve.read()
            metrics = sorted({name for curve in self._curves.values() for name in curve.columns if "/" in name})
            curves = [
                {"run": run_id, "metric": name, "step": step, "value": value}
                for run_id, curve in self._curves.items()
                for name in (_LOSS, metric)
                for step, value in curve.points(name)
            ]
        return {
            "runs": [
                run._asdict() | {"left": "" if run.seconds_left is None else duration(run.seconds_left)} for run in runs
            ],
            "lines": [f"{stack.folder} failed: {stack.failure}" for stack in stacks if stack.failure]
            + summary_lines(self._workdir, self._plan, stacks),
            "metrics": metrics,
            "settings": {run.id: values for run, values in zip(self._plan.runs, self._settings, strict=True)},
            "curves": curves,
            "finished": all(run.state in ("done", "diverged") for run in runs)
            and not sum(stack.evaluations_left for stack in stacks),
            "has_report": (self._workdir / "report" / "index.html").exists(),
        }


class _Curve:
    """The rows of a metrics.jsonl by column."""

    def __init__(self, path: epath.Path):
        self._path, self._offset = path, 0
        self.columns: dict[str, list[tuple[int, float]]] = {}

    def read(self) -> None:
        """Read the complete lines added since the last call; reread a file that resumed training has made shorter."""
        try:
            size = self._path.stat().length
        except OSError:  # not written yet
            return
        if size < self._offset:
            self._offset, self.columns = 0, {}
        with self._path.open("rb") as file:
            file.seek(self._offset)
            *lines, _ = file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines)
        for line in lines:
            row = parsed_row(line) or {}
            for name, value in row.items():
                if name != "step" and value is not None and math.isfinite(value):
                    self.columns.setdefault(name, []).append((row["step"], value))

    def points(self, name: str) -> list[tuple[int, float]]:
        """Return at most _POINTS points of a column, including the last."""
        every = self.columns.get(name, [])
        stride = -(-len(every) // _POINTS) or 1
        return every[::-1][::stride][::-1]


def varying(configs: Sequence[TrainConfig]) -> list[dict[str, Any]]:
    """Return, for each run, the settings by dotted key in which the runs differ, if they take few enough values."""
    flat = [leaves(dataclasses.asdict(config)) for config in configs]
    levels = {key: {repr(values[key]) for values in flat} for key in flat[0]}
    keys = [key for key, distinct in levels.items() if 1 < len(distinct) <= _MOST_LEVELS]
    return [{key: values[key] for key in keys} for values in flat]
