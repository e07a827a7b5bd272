"""SIGINT and SIGTERM stop work immediately, even inside a library call that doesn't check for signals."""

import atexit
import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS_TO_END = 1.0


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes SIGINT and SIGTERM raise KeyboardInterrupt within, whatever they do outside.

    Only the main thread can say what signals do; in another nothing changes.
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


class _GivenUpError(Exception):
    """Raised in the worker thread once the main thread has stopped waiting for it."""


def waited_for(call: Callable[[Callable[[], None]], T]) -> T:
    """What `call` returns or raises; it works in another thread, so that signals reach this one meanwhile.

    Where a signal ends the wait, the call has a second to end. Then it is left to itself, and doesn't keep the process
    from ending.

    Args:
      call: takes a function that it calls now and then, which raises once nobody waits any more; always before it runs
        code of Python, which mustn't be in the middle of something when the interpreter ends.
    """
    done, given_up = threading.Event(), threading.Event()
    outcome: dict[str, Any] = {}

    def check() -> None:
        if given_up.is_set():
            raise _GivenUpError

    def work() -> None:
        try:
            outcome["value"] = call(check)
        except BaseException as error:  # noqa: BLE001  raised below, in the thread that waits
            outcome["error"] = error
        finally:
            done.set()

    try:
        threading.Thread(target=work, daemon=True).start()
        done.wait()
    except KeyboardInterrupt:
        given_up.set()
        done.wait(_SECONDS_TO_END)
        # What is left to itself takes the cores, and the interpreter's last search for garbage would be seconds behind.
        atexit.register(gc.freeze)
        raise
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
