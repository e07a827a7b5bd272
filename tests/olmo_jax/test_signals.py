import os
import signal
import threading
import time

import pytest

from olmo_jax import signals
from olmo_jax.signals import ended_by_signals, waited_for


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_and_handlers_are_restored(number, monkeypatch):
    monkeypatch.setattr(signals, "_SECONDS_TO_END", 0.0)
    before = signal.getsignal(number)
    never = threading.Event()
    threading.Timer(0.1, os.kill, (os.getpid(), number)).start()
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        waited_for(lambda check: never.wait(30))
    assert signal.getsignal(number) == before
    never.set()


def test_an_interruptible_call_returns_and_raises_like_a_direct_one():
    assert waited_for(lambda check: 5) == 5
    with pytest.raises(ZeroDivisionError):
        waited_for(lambda check: 1 // 0)


def test_other_threads_do_not_change_signal_handlers():
    handlers = []

    def work():
        with ended_by_signals():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]


def test_an_abandoned_call_ends_at_its_next_check():
    ended = threading.Event()

    def work(check):
        try:
            while not time.sleep(0.01):
                check()
        finally:
            ended.set()

    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        waited_for(work)
    assert ended.is_set()


def test_a_signal_that_does_not_wake_the_waiting_thread_ends_the_wait():
    """The system gives the signal to the thread of the call, so that the main thread's wait isn't interrupted."""
    never = threading.Event()

    def work(check):
        time.sleep(0.1)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        while not never.wait(0.01):
            check()

    late = threading.Timer(5, never.set)
    late.start()
    with pytest.raises(KeyboardInterrupt), ended_by_signals():
        waited_for(work)
    assert not never.is_set()
    late.cancel()
