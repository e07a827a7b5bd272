"""Jobs are `eval`, so that an item says what is done with it."""

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
    with contextlib.closing(in_order(eval, items, processes, few)) as found:
        yield from found


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes):
    slow = [f"__import__('time').sleep({0.1 if number % 4 == 0 else 0}) or {number}" for number in range(20)]
    assert list(results(slow, processes)) == list(range(20))


def test_no_items():
    assert list(results([])) == []


@pytest.mark.parametrize(("processes", "few", "here"), [(1, 0, True), (3, 4, True), (3, 3, False)])
def test_few_items_are_worked_on_here(processes, few, here):
    pids = set(results(["__import__('os').getpid()"] * 3, processes, few))
    assert (pids == {os.getpid()}) == here


def test_each_process_works_on_one_core_and_there_are_no_more_than_asked_for():
    item = "__import__('time').sleep(.02) or (__import__('os').getpid(), __import__('os').environ['RAYON_NUM_THREADS'])"
    found = set(results([item] * 12))
    assert len(found) == 2 and {threads for _, threads in found} == {"1"}
    assert cores() >= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_error_in_order_is_raised_after_what_precedes_it(processes):
    def items():
        yield from ["0", "__import__('time').sleep(.1) or 1", "1 / 0", "undefined"]
        raise DataError("unreadable")

    found = results(items(), processes)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_an_error_holds_no_view_of_a_buffer():
    """CPython 3.12.1 crashes when it collects a traceback whose frames hold a memoryview of a BytesIO."""
    with pytest.raises(ZeroDivisionError) as raised:
        list(results(["1 / 0", *["__import__('time').sleep(9)"] * 9]))
    held = [value for frame, _ in traceback.walk_tb(raised.value.__traceback__) for value in frame.f_locals.values()]
    assert any(isinstance(value, bytes) for value in held), "an item waits to be sent"
    assert not any(isinstance(value, memoryview) for value in held)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_reading_is_raised_in_its_turn(processes):
    def items():
        yield from "01234"
        raise DataError("unreadable")

    found = []
    with pytest.raises(DataError, match="unreadable"):
        found.extend(results(items(), processes))
    reading = results(items(), processes)
    assert list(itertools.islice(reading, 5)) == list(range(5))


def test_no_more_is_read_than_is_worked_on_soon():
    read = itertools.count()
    found = results((str(next(read)) for _ in range(1000)), 2)
    assert next(found) == 0
    assert next(read) < 20
    found.close()


def test_a_killed_process_is_told_in_one_line():
    with pytest.raises(DataError, match=r"ended \(SIGKILL\), as for lack of memory") as raised:
        list(results(["__import__('os').kill(__import__('os').getpid(), 9)", "1", "2"]))
    assert "\n" not in str(raised.value)


def test_processes_end_with_a_reader_that_stops():
    found = results(["__import__('os').getpid()"] + ["__import__('time').sleep(60)"] * 5)
    pid = next(found)
    found.close()
    assert ended(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_their_parent_in_the_middle_of_work(number):
    code = (
        "from olmo_jax.data.tokenizing.workers import in_order; pid = '__import__(\"os\").getpid()'\n"
        "for x in in_order(eval, [pid, *['__import__(\"time\").sleep(60)'] * 6], 2, 0): print(x, flush=True)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.send_signal(number)
    parent.communicate()
    assert ended(pid)
