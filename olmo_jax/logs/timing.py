"""Timing of training: the rows of timings.jsonl, and traces for the profiler."""

import collections
import contextlib
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from etils import epath

from olmo_jax.cohort import Run, Shape
from olmo_jax.execution import flops
from olmo_jax.logs.metrics import MetricsLog

_PEAK_SIZE = {"cpu": 2048}
# The number of matmuls; fewer, but at least two, if they would take longer than _PEAK_SECONDS.
_PEAK_REPEATS, _PEAK_SECONDS = 5, 0.4


@functools.cache
def matmul_peak(dtype: str) -> float:
    """Return the FLOP/s of large square matmuls on one device of this machine, the denominator of MFU."""
    return 1.0 / matmul_seconds(dtype)


def matmul_seconds(dtype: str) -> float:
    """Return the seconds per FLOP of the fastest of some large square matmuls; the first of them may compile."""
    size = _PEAK_SIZE.get(jax.default_backend(), 8192)
    x_NN = jnp.ones((size, size), dtype)
    durations: list[float] = []
    while len(durations) < 2 or (len(durations) < _PEAK_REPEATS and sum(durations) < _PEAK_SECONDS):
        start = time.perf_counter()
        jax.block_until_ready(jnp.matmul(x_NN, x_NN))
        durations.append(time.perf_counter() - start)
    return min(durations) / (2.0 * size**3)


class Clock:
    """A clock that appends the duration of each part of a segment to timings.jsonl.

    Each row has an event ("compile", "steps", "probe" or "checkpoint"), the step at which it ended, and seconds. Rows
    of "steps" also have tokens_per_second over all members, step_seconds, data_seconds (which may overlap with the
    device's work on earlier steps) and mfu: the FLOP/s of flops.run_step divided by the devices' matmul peak.
    """

    def __init__(self, log: MetricsLog, shape: Shape, members: Sequence[Run], devices: int, step: int):
        self._log, self._tokens = log, shape.tokens_per_step * len(members)
        self._flops = sum(flops.run_step(run.config) for run in members)
        # A CPU's virtual devices are all the same one.
        self._peak = matmul_peak(shape.model.compute_dtype) * (1 if jax.default_backend() == "cpu" else devices)
        self._last, self._step, self._waited = time.monotonic(), step, 0.0
        self._spent: dict[str, float] = collections.defaultdict(float)
        self.note = ""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time inside the context, which prepares the next batches."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def event(self, name: str, step: int) -> None:
        """Record that an event ended now, at `step`."""
        now, steps = time.monotonic(), step - self._step
        seconds = now - self._last
        if name == "steps" and not steps:
            return
        row = {"event": name, "step": step, "seconds": round(seconds, 4), "time": round(time.time(), 3)}
        if name == "steps":
            row |= self._steps_fields(steps, seconds)
            self._waited = 0.0
        elif name == "probe" and step:  # at step 0 it is mostly compilation
            self._spent[name] += seconds
        self._log.time(row)
        self._last, self._step = now, step

    def _steps_fields(self, steps: int, seconds: float) -> dict[str, float]:
        rate = steps * self._tokens / seconds
        mfu = steps * self._flops / seconds / self._peak
        self._spent["steps"] += seconds
        probes = self._spent["probe"] / (self._spent["probe"] + self._spent["steps"])
        probe_share = f", probes {probes:.0%} of the time" if probes else ""
        self.note = f"{rate:,.0f} tokens/s, {mfu:.0%} of peak{probe_share}"
        return {
            "tokens_per_second": round(rate, 1),
            "step_seconds": round(seconds / steps, 6),
            "data_seconds": round(self._waited, 4),
            "mfu": round(mfu, 4),
        }


class Trace:
    """A profiler trace from the first step in `traced` to the last; () for none.

    Attributes:
      steps: the steps at which a call of several steps has to end.
    """

    def __init__(self, directory: epath.Path, traced: Sequence[int]):
        self._directory, self._running = directory, False
        self.steps = [traced[0] - 1, traced[-1]] if traced else []

    def at(self, step: int) -> None:
        """Start or stop the trace if it is due after `step` steps."""
        if self.steps and not self._running and self.steps[0] <= step < self.steps[1]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif self._running and step >= self.steps[1]:
            self.end()

    def end(self) -> None:
        """Write the trace if one is running, at the end of training or of the trace."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
