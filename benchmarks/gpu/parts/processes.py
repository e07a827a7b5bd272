"""Measure the same models in separate processes that share the device, each with a part of the memory."""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.part import Column
from benchmarks.gpu.parts import cohorts

NAME = "processes"
TITLE = "Single models in P processes on one device at the same time, without MPS."
VERSION = 1
NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column("tokens/s of all processes", "tokens_per_s", ",.0f"),
    Column("ms per step", "step_ms", ".2f"),
    Column("s starting", "start_s", ".0f"),
)
_ROOT = Path(__file__).parents[3]
_ROUND_SECONDS, _ROUNDS, _MEMORY = 1.0, 3, 0.9


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"d16_P2": cohorts.tiny() | {"processes": 2}}
    return {f"d{width}_P{p}": cohorts.of_width(width, 1) | {"processes": p} for width in cohorts.WIDTHS for p in (2, 8)}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Time all processes taking the same steps at the same time, until the last one is done."""
    start = time.perf_counter()
    workers = [_Worker(case) for _ in range(case["processes"])]
    try:
        once = _together(workers, 1)
        start_s = time.perf_counter() - start
        calls = max(1, math.ceil(_ROUND_SECONDS / once)) if case["dtype"] == "bfloat16" else 1
        taken = statistics.median(_together(workers, calls) for _ in range(_ROUNDS))
    finally:
        for worker in workers:
            worker.close()
    steps = calls * case["steps"]
    return {
        "tokens_per_s": case["processes"] * steps * training.tokens(case) / taken,
        "step_ms": 1e3 * taken / steps,
        "start_s": start_s,
    }


def _together(workers: list["_Worker"], calls: int) -> float:
    start = time.perf_counter()
    for worker in workers:
        worker.send(calls)
    for worker in workers:
        worker.wait()
    return time.perf_counter() - start


class _Worker:
    """A separate process of benchmarks/gpu/worker.py; after its first call it is compiled and warm."""

    def __init__(self, case: dict[str, Any]):
        share = f"{_MEMORY / case['processes']:.3f}"
        # Without filtering, the last line of stderr is the error.
        environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": share, "JAX_TRACEBACK_FILTERING": "off"}
        # A file, because a pipe that nobody reads would block the process once it is full.
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  `close` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.worker", json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=os.environ | environment,
            cwd=_ROOT,
        )

    def send(self, calls: int) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `wait` reports why it has ended
            self._process.stdin.write(f"{calls}\n")
            self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until its calls are done. Raises MemoryError or RuntimeError with stderr's last line if it has ended."""
        assert self._process.stdout is not None
        if self._process.stdout.readline():
            return
        self._stderr.seek(0)
        text = self._stderr.read()
        last = text.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise (MemoryError if "RESOURCE_EXHAUSTED" in text else RuntimeError)(f"a process ended: {last[0]}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()
