"""Metrics, one line per step and run, fetched from the device only after the next steps have been dispatched.

A run's metrics.jsonl holds every step once: rows are flushed before the checkpoint of their step commits, and
`resume_at` removes the rows after the checkpoint from which a run resumes. Clock times are stored separately, in
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
_MAX_ROW_LENGTH = 2**17  # bytes
_STEPS_FIELDS = {"tokens_per_second", "step_seconds", "data_seconds", "mfu"}  # fields of a timings row for steps
_SECONDS_BETWEEN_FLUSHES = 5.0  # so that readers can follow a running training


def to_json(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON, with null for NaN and infinities, which JSON lacks."""
    return json.dumps({k: _finite(v) for k, v in row.items()}, allow_nan=False)


def read_jsonl(path: epath.Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines, [] if there is no such file.

    Last lines that a kill or a power cut has truncated or filled with NUL are left out. Raises MetricsError if valid
    rows follow a damaged one.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = [parsed_row(line) for line in lines[:-1]]
    valid = list(itertools.takewhile(lambda row: row is not None, rows))
    if any(row is not None for row in rows[len(valid) :]):
        raise MetricsError(
            f"{path}: line {len(valid) + 1} is damaged; put the file back from a copy, or repair the line"
        )
    return [row for row in valid if row is not None]


def read_timings(path: epath.Path) -> list[dict[str, Any]]:
    """Return the rows of a timings.jsonl except damaged ones, whose loss affects only reported shares of time."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [row for line in lines if (row := parsed_row(line)) is not None and _is_timing(row)]


def last_row(path: epath.Path) -> dict[str, Any] | None:
    """Return the last valid row of a file of JSON lines, reading only its end; None if there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MAX_ROW_LENGTH))
        lines = file.read().split(b"\n")[:-1]
    return next((row for line in reversed(lines) if (row := parsed_row(line)) is not None), None)


def parsed_row(line: bytes) -> dict[str, Any] | None:
    """Return the row of metrics or timings in a line; None if the line is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return None
    return row if "event" in row or all(v is None or type(v) in (int, float) for v in row.values()) else None


def _is_timing(row: Mapping[str, Any]) -> bool:
    required = {"seconds"} | (_STEPS_FIELDS if row.get("event") == "steps" else set())
    numbers = (type(value) in (int, float) and math.isfinite(value) for key, value in row.items() if key != "event")
    return isinstance(row.get("event"), str) and required <= row.keys() and all(numbers)


def write_jsonl(path: epath.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines atomically."""
    _write_lines(path, [to_json(row) for row in rows])


class MetricsLog:
    """A log that appends rows to the runs' files, delayed by one call of several steps.

    Args:
      directories: those of the runs, in the order of the member axis; inert members after them are not logged. Empty in
        processes other than the first, which writes (execution/processes.py).
      writers: for each run, further writers of its rows.
    """

    def __init__(self, directories: Sequence[epath.Path], writers: Sequence[Sequence[Writer]]):
        self._directories = directories
        self._files: list[TextIO] = [(d / METRICS).open("a") for d in directories]
        self._timings: list[TextIO] = [(d / TIMINGS).open("a") for d in directories]
        self._writers = writers
        self._flushed = time.monotonic()
        self._pending: tuple[Sequence[Mapping[str, Any]], Any, dict[str, Any]] = ((), {}, {})

    def later(self, rows: Sequence[Mapping[str, Any]], values_KM: Any) -> None:
        """Store the metrics of some steps for the next call, and write those stored before.

        Args:
          rows: one row per step, shared by all members. values_KM: {name: [K, M]}, which may have more steps than rows.
        """
        self._write()
        self._pending = rows, values_KM, {}

    def also(self, values_M: Any) -> None:
        """Add values, {name: [M]}, to the last row stored."""
        self._pending[2].update(values_M)

    def time(self, row: Mapping[str, Any]) -> None:
        """Append a row of clock times to every run's timings.jsonl."""
        for file in self._timings:
            file.write(to_json(row) + "\n")

    def flush(self) -> None:
        """Write everything stored so far to the files."""
        self._write()
        self._flush_files()

    def close(self) -> None:
        """Write everything stored so far to the files and close them."""
        with self:
            pass

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close as `close` does; after an exception, close the files without the rows stored last."""
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
        step_values, last_values = processes.fetch(values_KM), processes.fetch(added_M)
        for k, row in enumerate(rows):
            values = {name: v[k] for name, v in step_values.items()} | (last_values if k == len(rows) - 1 else {})
            for m, file in enumerate(self._files):
                full = dict(row) | {name: float(str(v[m])) for name, v in values.items()}  # float32's shortest digits
                file.write(to_json(full) + "\n")
                for writer in self._writers[m]:
                    writer.write(full)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._flush_files()


class MetricsError(UserError):
    """A metrics file that does not belong to the checkpoint beside it."""


def check_rows(directory: epath.Path, step: int, first: int = 0) -> list[str]:
    """Return the rows of a run's metrics.jsonl from step `first` to `step`, as text.

    Raises MetricsError if one is missing or truncated: resuming at `step` would leave a gap.
    """
    path, needed = directory / METRICS, step + 1 - first
    rows = path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []
    numbered = enumerate(rows[:needed], first)
    valid = (re.match(rf'\{{"step": {i}[,}}]', row) and row.endswith("}") for i, row in numbered)
    count = sum(1 for _ in itertools.takewhile(bool, valid))
    if count < needed:
        since = f" from step {first} on" if first else ""
        raise MetricsError(f"{path} has {count} rows{since} and the checkpoint is at step {step}")
    return rows[:needed]


def resume_at(directory: epath.Path, step: int, first: int = 0) -> None:
    """Truncate a run's metrics.jsonl, whose first row is that of step `first`, after `step`; `first` - 1 empties it.

    Raises MetricsError if earlier rows are missing.
    """
    rows = check_rows(directory, step, first)
    _write_lines(directory / METRICS, rows)
    if (timings := directory / TIMINGS).exists():  # times are kept, except damaged lines
        _write_lines(timings, [to_json(row) for row in read_timings(timings)])


def _write_lines(path: epath.Path, lines: Sequence[str]) -> None:
    write_whole(path, "".join(line + "\n" for line in lines))


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
