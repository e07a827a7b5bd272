"""Parallel workers. The job is `eval`, so that each item is the code to run."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from olmo_jax.data import DataError
from olmo_jax.data.tokenizing.workers import cores, in_order
from tests.olmo_jax.data.tokenizing.processes import ended

CHECKOUT = Path(__file__).parents[4]


def results(items, processes=2, few=0):
    with contextlib.closing(in_order(eval, items, processes, few)) as received:
        yield from received


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes):
    slow = [f"__import__('time').sleep({0.1 if number % 4 == 0 else 0}) or {number}" for number in range(20)]
    assert list(results(slow, processes)) == list(range(20))


def test_no_items_give_no_results():
    assert list(results([])) == []


@pytest.mark.parametrize(("processes", "few", "in_parent"), [(1, 0, True), (3, 4, True), (3, 3, False)])
def test_few_items_are_processed_in_the_parent(processes, few, in_parent):
    pids = set(results(["__import__('os').getpid()"] * 3, processes, few))
    assert (pids == {os.getpid()}) == in_parent


def test_processes_use_one_core_each_up_to_the_requested_number():
    item = "__import__('time').sleep(.02) or (__import__('os').getpid(), __import__('os').environ['RAYON_NUM_THREADS'])"
    received = set(results([item] * 12))
    assert len(received) == 2 and {threads for _, threads in received} == {"1"}
    assert cores() >= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_error_is_raised_after_the_preceding_results(processes):
    def items():
        yield from ["0", "__import__('time').sleep(.1) or 1", "1 / 0", "undefined"]
        raise DataError("unreadable")

    received = results(items(), processes)
    assert [next(received), next(received)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(received)


def test_an_error_holds_no_view_of_a_buffer():
    """CPython 3.12.1 crashes when it collects a traceback whose frames hold a memoryview of a BytesIO."""
    with pytest.raises(ZeroDivisionError) as raised:
        list(results(["1 / 0", *["__import__('time').sleep(9)"] * 9]))
    held = [value for frame, _ in traceback.walk_tb(raised.value.__traceback__) for value in frame.f_locals.values()]
    assert any(isinstance(value, bytes) for value in held), "an item waits to be sent"
    assert not any(isinstance(value, memoryview) for value in held)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_read_error_is_raised_in_order(processes):
    def items():
        yield from "01234"
        raise DataError("unreadable")

    received = []
    with pytest.raises(DataError, match="unreadable"):
        received.extend(results(items(), processes))
    reading = results(items(), processes)
    assert list(itertools.islice(reading, 5)) == list(range(5))


def test_reading_stays_a_bounded_number_of_items_ahead():
    read = itertools.count()
    received = results((str(next(read)) for _ in range(1000)), 2)
    assert next(received) == 0
    assert next(read) < 20
    received.close()


def test_a_killed_process_is_reported_in_one_line():
    with pytest.raises(DataError, match=r"ended \(SIGKILL\), perhaps for lack of memory") as raised:
        list(results(["__import__('os').kill(__import__('os').getpid(), 9)", "1", "2"]))
    assert "\n" not in str(raised.value)


def test_processes_end_when_the_reader_stops():
    received = results(["__import__('os').getpid()"] + ["__import__('time').sleep(60)"] * 5)
    pid = next(received)
    received.close()
    assert ended(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_when_the_parent_is_killed(number):
    code = (
        "from olmo_jax.data.tokenizing.workers import in_order; pid = '__import__(\"os\").getpid()'\n"
        "for x in in_order(eval, [pid, *['__import__(\"time\").sleep(60)'] * 6], 2, 0): print(x, flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.send_signal(number)
    parent.communicate()
    assert ended(pid)
