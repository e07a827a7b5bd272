"""What long work shows: a bar with the time left on a terminal, a plain line now and then elsewhere; on stderr."""

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_SECONDS_BETWEEN_LINES = 10.0
_LONGEST_LINE = 1000
_SECONDS_OF_A_RATE = 60.0
_UNITS_OF_A_RATE = 3


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
    last minute count, or the last few where they take longer.
    """

    def __init__(self, total: int, done: int, now: float):
        self._total, self._first = total, done
        self._marks: collections.deque[tuple[int, float]] = collections.deque()

    def add(self, done: int, now: float) -> None:
        """Notes how much is done at a time in seconds. Counts that go backwards begin anew."""
        if self._marks and done < self._marks[-1][0]:
            self._marks.clear()
            self._first = done
        if done <= self._first or (self._marks and done == self._marks[-1][0]):
            return
        self._marks.append((done, now))
        while len(self._marks) > _UNITS_OF_A_RATE and now - self._marks[1][1] >= _SECONDS_OF_A_RATE:
            self._marks.popleft()

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left: 0 when all is done, None while there is no rate yet."""
        last = self._marks[-1] if self._marks else (self._first, 0.0)
        if last[0] >= self._total:
            return 0.0
        if len(self._marks) < _UNITS_OF_A_RATE:
            return None
        first = self._marks[0]
        return (last[1] - first[1]) / (last[0] - first[0]) * (self._total - last[0])


def _bar(title: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def update(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield update
