"""Signals that end work at once, also while a library is at it that doesn't look for them."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


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


def waited_for(call: Callable[[], T]) -> T:
    """What `call` returns or raises; it works in another thread, so that signals reach this one meanwhile.

    Where a signal ends the wait, the call is left to itself; it doesn't keep the process from ending.
    """
    done = threading.Event()
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = call()
        except BaseException as error:  # noqa: BLE001  raised below, in the thread that waits
            outcome["error"] = error
        finally:
            done.set()

    threading.Thread(target=work, daemon=True).start()
    done.wait()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]
