"""One owner at a time: an owner that ended or stopped its heartbeat loses the lock, independently of wall clocks."""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from orbax.checkpoint._src.serialization import tensorstore_utils

from olmo_jax.storage import lock as locks
from olmo_jax.storage import orbax_adapter
from olmo_jax.storage.lock import Lock, LockError, exclusive_lock, lacks_locks
from tests.olmo_jax.storage import nolocks


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "cohort" / "lock.json")


@pytest.fixture(params=["flock", errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def file_system(request, monkeypatch):
    """A file system with flock, and two that refuse it with different errors."""
    if request.param != "flock":
        refused = OSError(request.param, os.strerror(request.param))
        monkeypatch.setattr(fcntl, "flock", lambda file, operation: (_ for _ in ()).throw(refused))
    return request.param


class Clock:
    """A clock that advances on demand."""

    now = 100.0

    def __call__(self):
        return self.now


def foreign(path, beat=0):
    """Write the lock of a process on another machine, whose liveness can't be checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "5", "token": "theirs", "beat": beat}))


def test_only_one_owner_holds_the_lock_until_released(path, file_system):
    first, second = Lock(path), Lock(path)
    assert first.acquire()
    assert not second.acquire()
    assert str(os.getpid()) in second.holder()
    assert first.mine() and not second.mine()
    first.release()
    assert not path.exists()
    assert second.acquire()
    second.release()


def test_one_of_many_concurrent_requests_gets_the_lock(path, file_system):
    several = [Lock(path) for _ in range(12)]
    got = []
    threads = [threading.Thread(target=lambda lock=lock: got.append(lock.acquire())) for lock in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(got) == 1
    for lock in several:
        lock.release()
    assert not path.exists()


COUNT = """
import sys, time
from pathlib import Path
from etils import epath
from olmo_jax.storage.lock import Lock
folder, count = Path(sys.argv[1]), 0
while count < 10:
    lock = Lock(epath.Path(folder / "lock.json"))
    if lock.acquire():
        path = folder / "count"
        before = int(path.read_text())
        time.sleep(0.001)
        path.write_text(str(before + 1))
        lock.release()
        count += 1
    time.sleep(0.002)
"""


def test_processes_take_turns_where_files_cannot_be_locked(tmp_path):
    """As on Lustre mounted without flock: flock and fcntl fail with ENOSYS."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "count").write_text("0")
    environment = nolocks.environment(shared, tmp_path)
    probe = f"from olmo_jax.storage.lock import lacks_locks; print(lacks_locks({str(shared)!r}))"
    output = subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, text=True)
    assert output.stdout == "True\n", output.stderr
    processes = [subprocess.Popen([sys.executable, "-c", COUNT, shared], env=environment) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (shared / "count").read_text() == "30"
    assert {path.name for path in shared.iterdir()} == {"count", ".lock.lock"}


def test_orbax_uses_file_locks_once_configured(monkeypatch):
    default = dict(tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT)
    monkeypatch.setattr(tensorstore_utils, "_DEFAULT_OCDBT_TS_CONTEXT", default)
    orbax_adapter.lock_by_files()
    assert tensorstore_utils.get_ts_context()["file_io_locking"].to_json() == {"mode": "lockfile"}


def test_a_killed_local_process_loses_the_lock_immediately(path):
    code = (
        f"from olmo_jax.storage.lock import Lock; from etils import epath; Lock(epath.Path({str(path)!r})).acquire();"
    )
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


def test_a_remote_owner_loses_the_lock_after_a_minute_without_heartbeat(path, file_system):
    clock = Clock()
    lock = Lock(path, stale=60.0, clock=clock)
    foreign(path)
    assert not lock.acquire()
    clock.now += 59
    assert not lock.acquire()
    foreign(path, beat=1)  # a heartbeat
    clock.now += 59
    assert not lock.acquire()
    clock.now += 59
    assert not lock.acquire()
    clock.now += 2
    assert lock.acquire()
    lock.release()


def test_an_owner_counts_as_working_until_it_is_silent(path):
    clock = Clock()
    lock = Lock(path, stale=60.0, clock=clock)
    assert not lock.working()
    foreign(path)
    assert lock.working()
    clock.now += 61
    assert lock.held() and not lock.working()
    foreign(path, beat=1)
    assert lock.working()
    path.unlink()
    mine = Lock(path)
    assert mine.acquire() and not mine.working()
    mine.release()


def test_heartbeats_keep_the_lock(path):
    mine = Lock(path, beat=0.02)
    assert mine.acquire()
    beat = json.loads(path.read_text())["beat"]
    deadline = time.monotonic() + 10
    while json.loads(path.read_text())["beat"] == beat:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mine.release()


def test_an_owner_that_lost_the_lock_is_notified_and_keeps_the_new_lock_intact(path, file_system):
    mine = Lock(path, beat=0.01)
    assert mine.acquire()
    foreign(path)
    assert not mine.mine()
    with pytest.raises(LockError, match="taken over by process 1 on elsewhere.*run the same command again"):
        raise mine.lost()
    time.sleep(0.1)
    mine.release()
    assert json.loads(path.read_text())["token"] == "theirs"
    assert not list(path.parent.glob(".lock.lock.owner*"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(200),
        b'{"host": "elsewh',
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"host": "elsewhere", "pid": "many", "started": "5", "token": "theirs", "beat": 0}',
    ],
)
def test_a_damaged_lock_file_counts_as_free(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    lock = Lock(path)
    assert lock.holder() == "" and not lock.held() and not lock.mine()
    assert lock.acquire()
    assert lock.mine()
    lock.release()
    assert not path.exists()


def test_a_live_process_hidden_from_proc_keeps_the_lock(path, monkeypatch):
    """With hidepid, /proc has no entry for another user's process, and only sending a signal shows that it exists."""
    path.parent.mkdir()
    path.write_text(json.dumps(locks._myself() | {"token": "theirs"}))
    monkeypatch.setattr(locks, "_started", lambda pid: "")
    assert Lock(path).held()
    monkeypatch.setattr(os, "kill", lambda pid, number: (_ for _ in ()).throw(ProcessLookupError))
    assert not Lock(path).held()


def test_a_guard_is_taken_from_dead_owners_immediately_and_silent_ones_later(tmp_path):
    path, clock, dead = tmp_path / "guard", Clock(), subprocess.Popen(["true"])
    dead.wait()
    path.write_text(json.dumps(locks._myself() | {"pid": dead.pid, "started": "1"}))
    with locks._created(path, 60.0, clock):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    for content in (json.dumps({"host": "elsewhere", "pid": 1, "started": "5", "token": "theirs"}), ""):
        path.write_text(content)
        held = threading.Event()

        def hold(held=held):
            with locks._created(path, 60.0, clock):
                held.set()

        thread = threading.Thread(target=hold)
        thread.start()
        assert not held.wait(0.1)
        clock.now += 61
        thread.join()
        assert held.is_set()
    assert not list(tmp_path.iterdir())


def test_removing_a_stale_lock_keeps_one_replaced_meanwhile(tmp_path):
    path = tmp_path / "guard"
    path.write_text("theirs")
    locks._take_away(path, b"of the dead")
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exclusive_lock_waits_for_its_holder(tmp_path, file_system, monkeypatch):
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)
    output, order, begun = [], [], threading.Event()

    def second():
        begun.set()
        with exclusive_lock(tmp_path / "a.lock", output.append):
            order.append("second")

    thread = threading.Thread(target=second)
    with contextlib.suppress(KeyError), exclusive_lock(tmp_path / "a.lock", output.append):
        thread.start()
        begun.wait()
        while not output:
            time.sleep(0.01)
        order.append("first")
        raise KeyError("an error lets go of it too")
    thread.join()
    assert order == ["first", "second"]
    assert len(output) == 1 and "another process holds this lock; waiting" in output[0]


def test_loss_of_an_exclusive_lock_is_reported_at_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_flock", lambda descriptor, wait=True: False)
    with pytest.raises(LockError, match="taken over by process 1 on elsewhere"), exclusive_lock(tmp_path / "a", print):
        foreign(tmp_path / "a.owner")


def test_a_file_system_without_locks_is_detected(tmp_path, monkeypatch):
    assert not lacks_locks(tmp_path)
    refused = OSError(errno.ENOSYS, "Function not implemented")
    monkeypatch.setattr(fcntl, "lockf", lambda file, operation: (_ for _ in ()).throw(refused))
    assert lacks_locks(tmp_path)
    assert not list(tmp_path.iterdir())
