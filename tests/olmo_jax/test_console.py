"""The time left is shown once a rate is known, and matches the time that the work then takes."""

import contextlib
import errno
import io
import os
import pathlib
import pty
import re
import subprocess
import sys
import termios

import pytest

from olmo_jax import console as progresses
from olmo_jax.console import Rate, progress, say

ROOT = pathlib.Path(__file__).parents[2]


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def left_after(seconds, total, done=0):
    """Return the time left shown after each unit, for units of the given durations."""
    clock = 50.0
    rate, results = Rate(total, done, clock), []
    for unit, length in enumerate(seconds, done + 1):
        clock += length
        rate.add(unit, clock)
        results.append(rate.seconds_left())
    return results


def test_compilation_time_of_the_first_unit_is_excluded_from_the_rate():
    assert left_after([25.0, 0.1, 0.1, 0.1], total=100) == [None, None, pytest.approx(9.7), pytest.approx(9.6)]


def test_after_a_resume_only_new_units_count():
    assert left_after([30.0, 2.0, 2.0], total=1000, done=900) == [None, None, pytest.approx(2.0 * 97)]


def test_time_left_follows_recent_units_if_they_become_longer():
    quick, slow = left_after([1.0] * 200 + [100.0] * 10, total=300)[199::10]
    assert quick == pytest.approx(100.0)
    assert slow == pytest.approx(100.0 * 90)


def test_several_units_at_once_and_none_at_all():
    rate = Rate(100, 0, 0.0)
    for done, now in ((10, 5.0), (10, 6.0), (30, 7.0), (50, 9.0)):
        rate.add(done, now)
    assert rate.seconds_left() == pytest.approx(4.0 / 40 * 50)
    rate.add(20, 10.0)  # begun anew at an earlier checkpoint
    assert rate.seconds_left() is None


def test_no_time_left_is_shown_for_units_of_very_different_lengths():
    # Losses in a moment, then the first fine-tuning: their mean would tell 2,500 s of a minute's work.
    assert left_after([0.1, 0.1, 0.1, 36.0], total=70) == [None, None, pytest.approx(6.7), None]
    # One in ten takes 11 s: of the first ten the mean is 2 s and its error 1 s, of which a little more is too much.
    results = left_after([9.0] + [1.0] * 9 + [11.01] + [1.0] * 9, total=100)
    assert results[9:11] == [pytest.approx(90.0), None]
    assert results[11] == pytest.approx(21.01 / 11 * 88)


@pytest.mark.parametrize(("second", "shown"), [(2.9, True), (3.1, False)])
def test_a_rate_is_shown_if_its_error_is_at_most_half_of_it(second, shown):
    # Of two lengths a and b the mean has the error |a - b| / 2, as a share of it |a - b| / (a + b): half at b = 3 a.
    assert (left_after([7.0, 1.0, second], total=10)[-1] is not None) == shown


def test_a_long_pause_in_the_middle_is_forgotten_after_a_minute():
    results = left_after([1.0] * 10 + [30.0] + [1.0] * 80, total=100)
    assert results[9] == pytest.approx(90.0)
    assert results[10] is None
    assert results[-1] == pytest.approx(9.0)


def test_jumps_in_the_count_are_weighted_by_units_not_calls():
    rate = Rate(1000, 0, 0.0)
    for done, now in ((12, 20.0), (24, 23.0), (25, 23.25), (37, 26.25), (100, 42.0)):
        rate.add(done, now)
    assert rate.seconds_left() == pytest.approx(0.25 * 900)


@pytest.mark.parametrize(("total", "done"), [(0, 0), (5, 5), (5, 6)])
def test_nothing_to_do_takes_no_time(total, done):
    rate = Rate(total, done, 0.0)
    assert rate.seconds_left() == 0.0
    rate.add(done, 1.0)
    assert rate.seconds_left() == 0.0


def test_lines_show_the_time_left_once_known(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progresses.time, "monotonic", clock)
    with progress("train c", 70) as show:
        for step in range(1, 71):
            clock.now += 40.0 if step == 1 else 1.0
            show(step, "loss 5" if step > 1 else "")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train c: 1/70 40s"
    assert lines[1] == "train c: 11/70 loss 5 50s, 59s left"
    assert lines[-1] == "train c: 70/70 loss 5 109s, 0s left"


@pytest.mark.parametrize(
    "error", [*(OSError(n, "gone") for n in (errno.EPIPE, errno.EIO, errno.ENOSPC)), RuntimeError("reentrant call")]
)
def test_a_line_that_cannot_be_written_does_not_stop_the_work(monkeypatch, error):
    attempted = []

    class Gone(io.StringIO):
        def write(self, text):
            attempted.append(text)
            raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    assert say("a line") is None
    assert attempted == ["a line"], "it was tried, and the error didn't get out"


def test_an_overlong_line_is_shortened_in_the_middle(capsys):
    say(f"model/config.json: {'x' * 10**6}; get it again\nand a short one")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("model/config.json: xxx") and first.endswith("xxx; get it again")
    assert "[999,033 characters left out]" in first and len(first) < 1100
    assert second == "and a short one"


def test_parts_of_a_step_print_lines_only_if_they_take_long(capsys, monkeypatch):
    with progress("  parts", 2, within=True) as show:
        show(1, "")
        show(2, "")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progresses, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("  parts", 2, within=True) as show:
        show(2, "")
    assert capsys.readouterr().err.startswith("  parts: 2/2")


ON_A_TERMINAL = """
from olmo_jax.console import one_table, progress, say
with one_table():
    for title in ("train a", "train b", "evaluate"):
        with progress(title, 3) as show:
            for done in (1, 2, 3):
                with progress("  parts", 2, within=True) as parts:
                    parts(2)
                show(done, f"note {done}")
    say("a line between")
"""


def test_on_a_terminal_all_progress_is_one_table_whose_rows_stay():
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (40, 120))
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", ON_A_TERMINAL], env=environment, stderr=writer)
    os.close(writer)
    written = b""
    with contextlib.suppress(OSError):  # the terminal is gone with its last writer
        while piece := os.read(reader, 65536):
            written += piece
    os.close(reader)
    assert process.wait(60) == 0
    # What is left on the screen: the last time that each row was drawn, in order.
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode()).replace("\r", "\n").split("a line between")[-1]
    rows = [line for line in last.splitlines() if "3/3" in line][-3:]
    assert [row.split("\u2501")[0].strip() for row in rows] == ["train a", "train b", "evaluate"]
    assert all("note 3" in row for row in rows)
    assert "parts" in written.decode() and "parts" not in rows[-1] + last.rpartition("note 3")[2]
