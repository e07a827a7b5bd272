"""What long work shows: a bar with the time left on a terminal, a plain line now and then elsewhere; on stderr."""

import collections
import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator

_SECONDS_BETWEEN_LINES = 10.0
_LONGEST_LINE = 1000
_SECONDS_OF_A_RATE = 60.0
_MARKS_OF_A_RATE = 3
_MOST_MARKS = 500
# Of a rate that is told, the standard error is at most this share.
_MOST_ERROR = 0.5


def say(text: str) -> None:
    """One plain line on stderr; stdout is for results.

    The work doesn't end with whoever stopped reading, nor where a signal's handler speaks into a line that is being
    written (RuntimeError: reentrant call): such a line is lost.
    """
    with contextlib.suppress(OSError, RuntimeError):
        print("\n".join(map(shortened, text.split("\n"))), file=sys.stderr, flush=True)


def shortened(line: str) -> str:
    """A line without its middle where it is longer than anybody reads, such as one that quotes a damaged file."""
    if len(line) <= _LONGEST_LINE:
        return line
    half = _LONGEST_LINE // 2
    return f"{line[:half]} [{len(line) - 2 * half:,} characters left out] {line[-half:]}"


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yields `update(done, note)`, where `done` counts to `total` from where an earlier start left off."""
    if sys.stderr.isatty():
        yield from _bar(title, total, done)
        return
    clock = time.monotonic
    start = spoken = clock()
    rate = Rate(total, done, start)

    def update(done: int, note: str = "") -> None:
        nonlocal spoken
        now = clock()
        rate.add(done, now)
        if now - spoken < _SECONDS_BETWEEN_LINES and done < total:
            return
        spoken = now
        left = rate.seconds_left()
        told = "" if left is None else f", {left:.0f}s left"
        say(" ".join(filter(None, (f"{title}: {done}/{total}", note, f"{now - start:.0f}s"))) + told)

    yield update


class Rate:
    """Estimates the time left from how fast work went lately.

    The first unit doesn't count: it waits for compiling, and for whatever else is done once. Of the others those of the
    last minute count, or the last few where they take longer. Where these differ so much that their mean says little of
    the others, as evaluations of several kinds do, nothing is told.
    """

    def __init__(self, total: int, done: int, now: float):
        self._total, self._first = total, done
        self._marks: collections.deque[tuple[int, float]] = collections.deque(maxlen=_MOST_MARKS)

    def add(self, done: int, now: float) -> None:
        """Notes how much is done at a time in seconds. Counts that go backwards begin anew."""
        if self._marks and done < self._marks[-1][0]:
            self._marks.clear()
            self._first = done
        if done <= self._first or (self._marks and done == self._marks[-1][0]):
            return
        self._marks.append((done, now))
        while len(self._marks) > _MARKS_OF_A_RATE and now - self._marks[1][1] >= _SECONDS_OF_A_RATE:
            self._marks.popleft()

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left: 0 when all is done, None while there is nothing to tell them from."""
        last = self._marks[-1] if self._marks else (self._first, 0.0)
        if last[0] >= self._total:
            return 0.0
        if len(self._marks) < _MARKS_OF_A_RATE:
            return None
        first = self._marks[0]
        seconds, rate = last[1] - first[1], (last[1] - first[1]) / (last[0] - first[0])
        stretches = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(self._marks)]
        squares = sum((taken - rate * units) ** 2 for units, taken in stretches)
        # The standard error of a ratio of sums, as a share of it (Cochran 1977, equation 6.13), without the rest of
        # the population: the units that are left needn't be like those that were done.
        error = math.sqrt(squares * len(stretches) / (len(stretches) - 1)) / seconds if seconds else 0.0
        return rate * (self._total - last[0]) if error <= _MOST_ERROR else None


def _bar(title: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    rate = Rate(total, done, time.monotonic())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="", left="")

        def update(done: int, note: str = "") -> None:
            rate.add(done, time.monotonic())
            left = rate.seconds_left()
            bar.update(task, completed=done, note=note, left="" if left is None else f"{left:.0f}s left")

        yield update
