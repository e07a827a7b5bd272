"""What long work shows: a bar with the time left on a terminal, a plain line now and then elsewhere; on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """One plain line on stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Yields `update(done, note)`, where `done` counts to `total` from where an earlier start left off."""
    if sys.stderr.isatty():
        yield from _bar(title, total, done)
        return
    start, first = time.monotonic(), done
    spoken = start

    def update(done: int, note: str = "") -> None:
        nonlocal spoken
        now = time.monotonic()
        if now - spoken < _SECONDS_BETWEEN_LINES and done < total:
            return
        spoken = now
        left = (now - start) / max(done - first, 1) * (total - done)
        say(f"{title}: {done}/{total} {note} {now - start:.0f}s, {left:.0f}s left")

    yield update


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
