"""One owner at a time: the dead and the silent lose the lock, whatever clocks say, and who lost it is told."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from olmo_jax.lock import Lock, LockError


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "cohort" / "lock.json")


class Clock:
    """Seconds that pass when told to."""

    now = 100.0

    def __call__(self):
        return self.now


def foreign(path, beat=0):
    """The lock of a process on another machine, which can't be asked whether it lives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "5", "token": "theirs", "beat": beat}))


def test_only_one_has_it_until_it_is_released(path):
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    assert not second.acquire()
    assert str(os.getpid()) in second.holder()
    assert first.mine() and not second.mine()
    first.release()
    assert not path.exists()
    assert second.acquire()
    second.release()


def test_of_many_at_once_one_gets_it(path):
    locks = [Lock(path) for _ in range(12)]
    got = []
    threads = [threading.Thread(target=lambda lock=lock: got.append(lock.acquire())) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1
    for lock in locks:
        lock.release()
    assert not path.exists()


def test_a_killed_process_of_this_machine_loses_it_at_once(path):
    code = f"from olmo_jax.lock import Lock; from etils import epath; Lock(epath.Path({str(path)!r})).acquire();"
    process = subprocess.Popen([sys.executable, "-c", code + "print('mine', flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "mine\n"
    lock = Lock(path)
    assert lock.held()
    assert not lock.acquire()
    process.kill()
    process.communicate()
    assert not lock.held()
    assert lock.acquire()
    lock.release()


def test_another_machine_loses_it_after_a_minute_of_silence_by_our_clock(path):
    clock = Clock()
    lock = Lock(path, stale=60.0, clock=clock)
    foreign(path)
    assert not lock.acquire()
    clock.now += 59
    assert not lock.acquire()
    foreign(path, beat=1)  # a sign of life
    clock.now += 59
    assert not lock.acquire()
    clock.now += 59
    assert not lock.acquire()
    clock.now += 2
    assert lock.acquire()
    lock.release()


def test_beats_keep_it(path):
    mine = Lock(path, beat=0.02)
    assert mine.acquire()
    beat = json.loads(path.read_text())["beat"]
    deadline = time.monotonic() + 10
    while json.loads(path.read_text())["beat"] == beat:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mine.release()


def test_who_slept_through_a_take_over_is_told_and_lets_it_be(path):
    mine = Lock(path, beat=0.01)
    assert mine.acquire()
    foreign(path)
    assert not mine.mine()
    with pytest.raises(LockError, match="taken over by process 1 on elsewhere.*run the same command again"):
        raise mine.lost()
    time.sleep(0.1)
    mine.release()
    assert json.loads(path.read_text())["token"] == "theirs"
