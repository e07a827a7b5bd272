"""One line of metrics a step and run, fetched from the device only once the next steps are on their way there.

A run's metrics.jsonl holds steps without gap or repeat: rows are flushed before the checkpoint of their step commits,
and `resume_at` cuts what lies beyond the checkpoint that a resumed run starts from. Clock times are kept apart, in
timings.jsonl, so that metrics.jsonl is the same, byte for byte, for the same run.
"""

import contextlib
import itertools
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from etils import epath

from olmo_jax.errors import UserError
from olmo_jax.execution import processes
from olmo_jax.files import write_whole
from olmo_jax.logs.writers import Writer

METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
_LONGEST_ROW = 2**17  # bytes
_OF_STEPS = {"tokens_per_second", "step_seconds", "data_seconds", "mfu"}  # what a row of timings says of some steps
_SECONDS_BETWEEN_FLUSHES = 5.0  # so that others can follow


def to_json(row: Mapping[str, Any]) -> str:
    """One line of JSON; NaN and infinities, which JSON hasn't got, become null."""
    return json.dumps({k: _finite(v) for k, v in row.items()}, allow_nan=False)


def read_jsonl(path: epath.Path) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines, none if it isn't there.

    What a kill or a power cut has left of the last lines, cut short or filled with NUL, is left out. Raises
    MetricsError where whole rows follow a damaged one.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines[:-1]]
    whole = list(itertools.takewhile(lambda row: row is not None, rows))
    if any(row is not None for row in rows[len(whole) :]):
        raise MetricsError(f"{path}: line {len(whole) + 1} is damaged; put the file back from a copy, or mend the line")
    return [row for row in whole if row is not None]


def read_timings(path: epath.Path) -> list[dict[str, Any]]:
    """Rows of a timings.jsonl, without those that are damaged: nothing but a share of time depends on them."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for line in lines if (row := _row(line)) is not None and _is_timing(row)]


def last_row(path: epath.Path) -> dict[str, Any] | None:
    """The last whole row of a file of JSON lines, however long it is; None if there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_ROW))
        lines = file.read().split(b"\n")[:-1]
    return next((row for line in reversed(lines) if (row := _row(line)) is not None), None)


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of metrics or timings from its line; None where it can't be one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return None
    return row if "event" in row or all(v is None or type(v) in (int, float) for v in row.values()) else None


def _is_timing(row: Mapping[str, Any]) -> bool:
    needed = {"seconds"} | (_OF_STEPS if row.get("event") == "steps" else set())
    numbers = (type(value) in (int, float) and math.isfinite(value) for key, value in row.items() if key != "event")
    return isinstance(row.get("event"), str) and needed <= row.keys() and all(numbers)


def write_jsonl(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines whole or not at all."""
    _write_lines(path, [to_json(row) for row in rows])


class MetricsLog:
    """Appends rows to the runs' files, one call of steps late.

    Args:
      directories: of the runs, in the order of the member axis; inert members beyond them are not logged. None in a
        process that isn't the one that writes (execution/processes.py).
      writers: for each run, where else its rows go.
    """

    def __init__(self, directories: Sequence[epath.Path], writers: Sequence[Sequence[Writer]]):
        self._directories = directories
        self._files: list[TextIO] = [(d / METRICS).open("a") for d in directories]
        self._timings: list[TextIO] = [(d / TIMINGS).open("a") for d in directories]
        self._writers = writers
        self._flushed = time.monotonic()
        self._pending: tuple[Sequence[Mapping[str, Any]], Any, dict[str, Any]] = ((), {}, {})

    def later(self, rows: Sequence[Mapping[str, Any]], values_KM: Any) -> None:
        """Takes what some steps report; writes what came before.

        Args:
          rows: a row a step, for every member. values_KM: {name: [K, M]}, of which the first steps are meant.
        """
        self._write()
        self._pending = rows, values_KM, {}

    def also(self, values_M: Any) -> None:
        """Adds values, {name: [M]}, to the row taken last."""
        self._pending[2].update(values_M)

    def time(self, row: Mapping[str, Any]) -> None:
        """Appends a row of clock times to every run's timings.jsonl."""
        for file in self._timings:
            file.write(to_json(row) + "\n")

    def flush(self) -> None:
        """Everything taken so far is in the files."""
        self._write()
        self._flush_files()

    def close(self) -> None:
        """Everything taken so far is in the files, which are closed."""
        with self:
            pass

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """As `close`; where something was raised the files are closed without what was taken last."""
        with contextlib.ExitStack() as closing:
            for file in (*self._files, *self._timings):
                closing.callback(file.close)
            if kind is None:
                self.flush()
                for writer in itertools.chain.from_iterable(self._writers):
                    writer.close()

    def _flush_files(self) -> None:
        self._flushed = time.monotonic()
        for file in (*self._files, *self._timings):
            file.flush()

    def _write(self) -> None:
        rows, values_KM, added_M = self._pending
        self._pending = (), {}, {}
        of_steps, of_last = processes.fetch(values_KM), processes.fetch(added_M)
        for k, row in enumerate(rows):
            host = {name: v[k] for name, v in of_steps.items()} | (of_last if k == len(rows) - 1 else {})
            for m, file in enumerate(self._files):
                full = dict(row) | {name: float(str(v[m])) for name, v in host.items()}  # float32's shortest digits
                file.write(to_json(full) + "\n")
                for writer in self._writers[m]:
                    writer.write(full)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._flush_files()


class MetricsError(UserError):
    """A metrics file that does not belong to the checkpoint beside it."""


def check_rows(directory: epath.Path, step: int) -> list[str]:
    """The rows of a run's metrics.jsonl up to `step`, as text.

    Raises MetricsError if one is missing or cut short: to go on from there would leave a gap.
    """
    path = directory / METRICS
    rows = path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []
    whole = (re.match(rf'\{{"step": {i}[,}}]', row) and row.endswith("}") for i, row in enumerate(rows[: step + 1]))
    count = sum(1 for _ in itertools.takewhile(bool, whole))
    if count < step + 1:
        raise MetricsError(f"{path} has {count} rows and the checkpoint is at step {step}")
    return rows[: step + 1]


def resume_at(directory: epath.Path, step: int) -> None:
    """Cuts a run's metrics.jsonl to the rows up to `step`; -1 empties it. Raises MetricsError if rows are missing."""
    rows = check_rows(directory, step)
    _write_lines(directory / METRICS, rows)
    if (timings := directory / TIMINGS).exists():  # times stay, but for a line that a kill cut short
        _write_lines(timings, [to_json(row) for row in read_timings(timings)])


def _write_lines(path: epath.Path, lines: Sequence[str]) -> None:
    write_whole(path, "".join(line + "\n" for line in lines))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
