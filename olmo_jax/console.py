"""Progress on stderr: bars with the estimated time left on a terminal, a plain line every few seconds elsewhere."""

import collections
import contextlib
import contextvars
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is needed only on a terminal
    from rich.progress import Progress

_SECONDS_BETWEEN_LINES = 10.0
_MAX_LINE_LENGTH = 1000
_RATE_WINDOW_SECONDS = 60.0
_MIN_MARKS = 3
_MAX_MARKS = 500
# The time left is shown only if the relative standard error of the rate is at most this.
_MAX_RELATIVE_ERROR = 0.5


def say(text: str) -> None:
    """Print one plain line to stderr; stdout is for results.

    A line that can't be written is dropped, so that work goes on after the reader of stderr has exited, and when a
    signal handler prints while another line is being written (RuntimeError: reentrant call).
    """
    with contextlib.suppress(OSError, RuntimeError):
        print("\n".join(map(shortened, text.split("\n"))), file=sys.stderr, flush=True)


def shortened(line: str) -> str:
    """Return the line with its middle cut out if it is too long to read, such as one that quotes a damaged file."""
    if len(line) <= _MAX_LINE_LENGTH:
        return line
    half = _MAX_LINE_LENGTH // 2
    return f"{line[:half]} [{len(line) - 2 * half:,} characters left out] {line[-half:]}"


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0, within: bool = False) -> Iterator[Callable[[int, str], None]]:
    """Yield `update(done, note)` to report progress; `done` counts up to `total`, from the count reached before.

    `within` is for the parts of one step of other work that reports its own progress. In a table on a terminal (see
    one_table) they are a row that is removed when they are done; elsewhere a line is printed only every ten seconds.
    """
    if sys.stderr.isatty() and (_table.get() or not within):
        yield from _row(title, total, done, passing=within)
        return
    clock = time.monotonic
    start = printed_at = clock()
    rate = Rate(total, done, start)

    def update(done: int, note: str = "") -> None:
        nonlocal printed_at
        now = clock()
        rate.add(done, now)
        if now - printed_at < _SECONDS_BETWEEN_LINES and (within or done < total):
            return
        printed_at = now
        left = rate.seconds_left()
        time_left = "" if left is None else f", {left:.0f}s left"
        say(" ".join(filter(None, (f"{title}: {done}/{total}", note, f"{now - start:.0f}s"))) + time_left)

    yield update


class Rate:
    """An estimate of the time left, from the recent rate of work.

    The first unit is ignored, since it includes compilation and other work that is done once. Of the others, those of
    the last minute count, or the last few if they take longer. If their durations differ so much that their mean
    predicts little, as with evaluations of several kinds, there is no estimate.
    """

    def __init__(self, total: int, done: int, now: float):
        self._total, self._first = total, done
        self._marks: collections.deque[tuple[int, float]] = collections.deque(maxlen=_MAX_MARKS)

    def add(self, done: int, now: float) -> None:
        """Record that `done` units are complete at time `now` (seconds).

        A smaller count than before restarts the estimate.
        """
        if self._marks and done < self._marks[-1][0]:
            self._marks.clear()
            self._first = done
        if done <= self._first or (self._marks and done == self._marks[-1][0]):
            return
        self._marks.append((done, now))
        while len(self._marks) > _MIN_MARKS and now - self._marks[1][1] >= _RATE_WINDOW_SECONDS:
            self._marks.popleft()

    def seconds_left(self) -> float | None:
        """Return the estimated seconds left: 0 when all is done, None while there is no estimate."""
        last = self._marks[-1] if self._marks else (self._first, 0.0)
        if last[0] >= self._total:
            return 0.0
        if len(self._marks) < _MIN_MARKS:
            return None
        first = self._marks[0]
        seconds, rate = last[1] - first[1], (last[1] - first[1]) / (last[0] - first[0])
        intervals = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(self._marks)]
        squares = sum((duration - rate * units) ** 2 for units, duration in intervals)
        # The relative standard error of a ratio estimate (Cochran 1977, equation 6.13), without the finite-population
        # correction: the units left need not resemble those done.
        error = math.sqrt(squares * len(intervals) / (len(intervals) - 1)) / seconds if seconds else 0.0
        return rate * (self._total - last[0]) if error <= _MAX_RELATIVE_ERROR else None


@contextlib.contextmanager
def one_table() -> Iterator[None]:
    """On a terminal, show all progress inside the context as rows of one live table; they remain when they are done."""
    if not sys.stderr.isatty():
        yield
        return
    with _new_table() as table:
        token = _table.set(table)
        try:
            yield
        finally:
            _table.reset(token)


_table: "contextvars.ContextVar[Progress | None]" = contextvars.ContextVar("table", default=None)


def _new_table() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
    )


def _row(title: str, total: int, done: int, passing: bool) -> Iterator[Callable[[int, str], None]]:
    rate = Rate(total, done, time.monotonic())
    shared = _table.get()
    with contextlib.nullcontext(shared) if shared else _new_table() as table:
        row = table.add_task(title, total=total, completed=done, note="", left="")

        def update(done: int, note: str = "") -> None:
            rate.add(done, time.monotonic())
            left = rate.seconds_left()
            table.update(row, completed=done, note=note, left="" if left is None else f"{left:.0f}s left")

        try:
            yield update
        finally:
            table.remove_task(row) if passing else table.stop_task(row)
