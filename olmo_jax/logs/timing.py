"""Where the time of training goes: what timings.jsonl says, and traces for the profiler."""

import collections
import contextlib
import functools
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from etils import epath

from olmo_jax.cohort import Shape
from olmo_jax.execution import flops
from olmo_jax.logs.metrics import MetricsLog

_PEAK_SIZE = {"cpu": 2048}
# So many matmuls, or at least two and as many as fit into so many seconds.
_PEAK_REPEATS, _PEAK_SECONDS = 5, 0.4


@functools.cache
def matmul_peak(dtype: str) -> float:
    """FLOP/s of large square matmuls on one device of this machine: what MFU is a fraction of."""
    return 1.0 / matmul_seconds(dtype)


def matmul_seconds(dtype: str) -> float:
    """Seconds a FLOP takes in the fastest of some large square matmuls; the first of them may compile."""
    size = _PEAK_SIZE.get(jax.default_backend(), 8192)
    x_NN = jnp.ones((size, size), dtype)
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < _PEAK_REPEATS and sum(taken) < _PEAK_SECONDS):
        start = time.perf_counter()
        jax.block_until_ready(jnp.matmul(x_NN, x_NN))
        taken.append(time.perf_counter() - start)
    return min(taken) / (2.0 * size**3)


class Clock:
    """Appends to timings.jsonl how long each stretch of a segment took.

    A row: event ("compile", "steps", "probe" or "checkpoint"), the step it ended at, seconds. That of "steps" says also
    tokens_per_second over all members, step_seconds, data_seconds (of which the device may have seen nothing: it is
    still busy with what was sent before) and mfu: the FLOPs of flops.train_step over those of the devices' matmul peak.
    """

    def __init__(self, log: MetricsLog, shape: Shape, members: int, devices: int, step: int):
        self._log, self._shape, self._members = log, shape, members
        # A CPU's virtual devices are all the same one.
        self._peak = matmul_peak(shape.model.compute_dtype) * (1 if jax.default_backend() == "cpu" else devices)
        self._last, self._step, self._waited = time.monotonic(), step, 0.0
        self._spent: dict[str, float] = collections.defaultdict(float)
        self.note = ""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what makes the next batches."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def event(self, name: str, step: int) -> None:
        """A stretch has ended now, at `step`."""
        now, taken = time.monotonic(), step - self._step
        seconds = now - self._last
        if name == "steps" and not taken:
            return
        row = {"event": name, "step": step, "seconds": round(seconds, 4), "time": round(time.time(), 3)}
        if name == "steps":
            row |= self._of_steps(taken, seconds)
            self._waited = 0.0
        elif name == "probe" and step:  # at step 0 it is mostly its compilation
            self._spent[name] += seconds
        self._log.time(row)
        self._last, self._step = now, step

    def _of_steps(self, taken: int, seconds: float) -> dict[str, float]:
        shape = self._shape
        rate = taken * self._members * shape.tokens_per_step / seconds
        size = shape.batch_size, shape.sequence_length
        work = taken * self._members * flops.train_step(shape.model, *size, last=shape.arithmetic)
        mfu = work / seconds / self._peak
        self._spent["steps"] += seconds
        probes = self._spent["probe"] / (self._spent["probe"] + self._spent["steps"])
        told = f", probes {probes:.0%} of the time" if probes else ""
        self.note = f"{rate:,.0f} tokens/s, {mfu:.0%} of peak{told}"
        return {
            "tokens_per_second": round(rate, 1),
            "step_seconds": round(seconds / taken, 6),
            "data_seconds": round(self._waited, 4),
            "mfu": round(mfu, 4),
        }


class Trace:
    """A trace for the profiler from the first of some steps to the last; () for none.

    Attributes:
      steps: those at which a call of steps has to end.
    """

    def __init__(self, directory: epath.Path, traced: Sequence[int]):
        self._directory, self._on = directory, False
        self.steps = [traced[0] - 1, traced[-1]] if traced else []

    def at(self, step: int) -> None:
        """Begins or ends the trace where `step` steps are done."""
        if self.steps and not self._on and self.steps[0] <= step < self.steps[1]:
            jax.profiler.start_trace(str(self._directory))
            self._on = True
        elif self._on and step >= self.steps[1]:
            self.end()

    def end(self) -> None:
        """Writes the trace that is on; training ends here."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
