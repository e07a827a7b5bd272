"""Stop work immediately on SIGINT and SIGTERM, even inside a library call that doesn't check for signals."""

import atexit
import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS_TO_END = 1.0
_SECONDS_BETWEEN_LOOKS = 0.1


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt inside the context; the previous handlers are restored after it.

    Only the main thread can set signal handlers; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _AbandonedError(Exception):
    """Raised in the worker thread after the main thread has stopped waiting for it."""


def waited_for(call: Callable[[Callable[[], None]], T]) -> T:
    """Return or raise what `call` does; it runs in another thread, so that this one can handle signals meanwhile.

    If a signal ends the wait, the call has one second to finish. After that it is abandoned, and doesn't keep the
    process from exiting.

    Args:
      call: receives a function that raises once the call has been abandoned. It must call that function regularly, and
        always before it runs Python code, which mustn't be running when the interpreter shuts down.
    """
    done, abandoned = threading.Event(), threading.Event()
    outcome: dict[str, Any] = {}

    def check() -> None:
        if abandoned.is_set():
            raise _AbandonedError

    def work() -> None:
        try:
            outcome["value"] = call(check)
        except BaseException as error:  # noqa: BLE001  raised below, in the thread that waits
            outcome["error"] = error
        finally:
            done.set()

    try:
        threading.Thread(target=work, daemon=True).start()
        # A wait without a timeout would miss a signal that another thread receives, or that arrives just before it.
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            pass
    except KeyboardInterrupt:
        abandoned.set()
        done.wait(_SECONDS_TO_END)
        # The abandoned call keeps the cores busy, which would delay the garbage collection at exit by seconds.
        atexit.register(gc.freeze)
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
