"""Locks between processes, of one machine or of several that share a file system; it needn't have locks of its own.

`Lock` is a lock file that names its owner and that the owner keeps fresh: one process per cohort.

The owner writes a beat into the file every few seconds. Another process that sees no new beat for a minute by its own
clock, or knows the owner to be dead for it ran on this machine, takes the lock over; clocks of two machines are never
compared. Where the owner was only asleep, it finds by `mine` that the lock is lost.

`exclusive_lock` is the system's flock where there is one, and such a `Lock` elsewhere: Lustre has no flock unless
mounted with it, and NFS has none without its lock daemon.
"""

import contextlib
import errno
import fcntl
import json
import os
import platform
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from olmo_jax.errors import UserError
from olmo_jax.files import write_json

_BEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_TRIES = 0.01
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_FIELDS = {"host": str, "pid": int, "started": str, "token": str}


class LockError(UserError):
    """The lock was taken over by another process; what this one would write might overwrite that one's work."""


class Lock:
    """A lock at `path`, not held yet.

    Args:
      beat, stale: seconds between two beats, and without one until the lock may be taken over.
      clock: seconds that never jump.
    """

    def __init__(
        self,
        path: epath.Path,
        beat: float = _BEAT_SECONDS,
        stale: float = _STALE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path, self._beat, self._stale, self._clock = path, beat, stale, clock
        self._me = _myself()
        self._seen: tuple[Any, float] = (None, 0.0)
        self._released = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self) -> bool:
        """Takes the lock if nobody has it, or its owner is dead or silent; False where somebody is at work."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._guarded():
            there = self._read()
            if there is not None and not _dead(there) and not self._silent(there):
                return False
            self._write(0)
        self._released.clear()
        self._beating = threading.Thread(target=self._keep, name=f"lock {self._path}", daemon=True)
        self._beating.start()
        return True

    def holder(self) -> str:
        """Who has the lock, for people: "process 4711 on host"; "" for nobody."""
        there = self._read()
        return "" if there is None else f"process {there['pid']} on {there['host']}"

    def held(self) -> bool:
        """Whether somebody has it who isn't known to be dead."""
        there = self._read()
        return there is not None and not _dead(there)

    def mine(self) -> bool:
        """Whether this process still has it."""
        there = self._read()
        return there is not None and there["token"] == self._me["token"]

    def lost(self) -> LockError:
        """What to raise once it isn't this process's any more."""
        return LockError(
            f"{self._path}: taken over by {self.holder() or 'somebody who has ended since'}, for this process gave "
            f"no sign of life for {self._stale:.0f} seconds; run the same command again once that one is done"
        )

    def release(self) -> None:
        """Gives the lock back, if it is still this process's."""
        self._released.set()
        if self._beating is not None:
            self._beating.join()
        with self._guarded():
            if self.mine():
                self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """What is read within is still so when it is written: of two that would take the lock over only one does."""
        path = Path(self._path).parent / f".{self._path.stem}.lock"
        with path.open("wb") as guard:
            if _flock(guard.fileno()):
                yield
                return
        with _created(path.with_name(f"{path.name}.owner"), self._stale, self._clock):
            yield

    def _keep(self) -> None:
        count = 0
        while not self._released.wait(self._beat):
            count += 1
            try:
                with self._guarded():
                    if not self.mine():
                        return
                    self._write(count)
            except OSError:  # a full disk: the work itself meets it too and says so; till then others see silence
                continue

    def _silent(self, there: dict[str, Any]) -> bool:
        now = self._clock()
        if self._seen[0] != there:
            self._seen = there, now
        return now - self._seen[1] > self._stale

    def _read(self) -> dict[str, Any] | None:
        return _owner(Path(self._path))

    def _write(self, count: int) -> None:
        write_json(self._path, self._me | {"beat": count}, durable=False)  # one that a power cut empties is free


@contextlib.contextmanager
def exclusive_lock(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends; waits for it, which `progress` is told once.

    Raises LockError at the end where the file system has no locks and another process has taken this one over.
    """
    waiting = f"{path}: another process holds this lock; waiting for it"
    with path.open("wb") as file:
        try:
            there = _flock(file.fileno(), wait=False)
        except BlockingIOError:
            progress(waiting)
            there = _flock(file.fileno())
        if there:
            yield
            return
    lock = Lock(epath.Path(path.with_name(f"{path.name}.owner")))
    if not lock.acquire():
        progress(waiting)
        while not lock.acquire():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    try:
        yield
        if not lock.mine():
            raise lock.lost()
    finally:
        lock.release()


def lacks_locks(folder: epath.PathLike) -> bool:
    """Whether the file system of a folder, which must be writable, refuses to lock files."""
    with tempfile.TemporaryFile(dir=folder) as file:
        if not _flock(file.fileno()):
            return True
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return True
    return False


def _flock(descriptor: int, wait: bool = True) -> bool:
    """Locks an open file until it is closed; False where the file system has no locks.

    Raises BlockingIOError without `wait` where another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def _created(path: Path, stale: float, clock: Callable[[], float]) -> Iterator[None]:
    """Holds a file that only one process can create, for a moment: it has no beat.

    It is taken from an owner that is dead, or that has held it for `stale` seconds by one's own clock. Of several that
    take it from such an owner in the same instant, a quicker one's file may be lost.
    """
    mine = json.dumps(_myself()).encode()
    seen, since = b"", clock()
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            break
        except FileExistsError:
            pass
        if (content := _bytes(path)) != seen:
            seen, since = content, clock()
        owner = _parsed(content)
        if (owner is not None and _dead(owner)) or clock() - since > stale:
            _take_away(path, content)
        else:
            time.sleep(_SECONDS_BETWEEN_TRIES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(mine)
    try:
        yield
    finally:
        if _bytes(path) == mine:
            path.unlink(missing_ok=True)


def _take_away(path: Path, content: bytes) -> None:
    """Removes a file if its content is still `content`. By a rename, so that only one of two processes succeeds."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if aside.read_bytes() != content:  # of somebody who was quicker
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _owner(path: Path) -> dict[str, Any] | None:
    """Who a lock file names; None for no file, and for one that is damaged, as by a power cut."""
    return _parsed(_bytes(path))


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    whole = isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in _FIELDS.items())
    return owner if whole else None


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _started(pid), "token": uuid.uuid4().hex}


def _host() -> str:
    """The machine, and on Linux the container: a pid means nothing outside it."""
    space = Path("/proc/self/ns/pid")
    return platform.node() + (f" {os.readlink(space)}" if space.exists() else "")


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since the machine did; "" if there is none, or none can tell."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _dead(owner: dict[str, Any]) -> bool:
    """Whether an owner is known to have ended: a process of this machine that isn't there, or is another by now."""
    if not owner["started"] or owner["host"] != _host():
        return False
    started = _started(owner["pid"])
    return started != owner["started"] and not (started == "" and _hidden(owner["pid"]))


def _hidden(pid: int) -> bool:
    """Whether a process is there that /proc doesn't show: another user's, where it is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
