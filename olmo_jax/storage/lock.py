"""Locks between processes on one machine or several that share a file system, even one without file locks.

`Lock` is a lock file that names its owner, one process per cohort. The owner writes a heartbeat into the file every few
seconds. Another process takes the lock over if it sees no new heartbeat for a minute by its own clock, or if the owner
ran on the same machine and has ended; clocks of two machines are never compared. An owner that was only suspended
learns from `mine` that it has lost the lock.

`exclusive_lock` uses the system's flock if the file system supports it, and a `Lock` otherwise: Lustre supports flock
only with a mount option, and NFS only with its lock daemon.
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
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 0.01
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_FIELDS = {"host": str, "pid": int, "started": str, "token": str}


class LockError(UserError):
    """Another process has taken the lock over; writes by this process might overwrite its work."""


class Lock:
    """A lock file at `path`; `acquire` takes the lock.

    Args:
      beat, stale: seconds between heartbeats, and seconds without one after which the lock may be taken over.
      clock: a monotonic clock, in seconds.
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
        self._heartbeat: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free or its owner has ended or is silent; return False if another process has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._guarded():
            owner = self._read()
            if owner is not None and not _dead(owner) and not self._silent(owner):
                return False
            self._write(0)
        self._released.clear()
        self._heartbeat = threading.Thread(target=self._keep, name=f"lock {self._path}", daemon=True)
        self._heartbeat.start()
        return True

    def holder(self) -> str:
        """Return a description of the owner, such as "process 4711 on host"; "" if the lock is free."""
        owner = self._read()
        return "" if owner is None else f"process {owner['pid']} on {owner['host']}"

    def held(self) -> bool:
        """Return whether the lock has an owner that isn't known to have ended."""
        owner = self._read()
        return owner is not None and not _dead(owner)

    def working(self) -> bool:
        """Return whether another process holds the lock and hasn't been silent since this object first saw it."""
        owner = self._read()
        return owner is not None and not self.mine() and not _dead(owner) and not self._silent(owner)

    def mine(self) -> bool:
        """Return whether this process still holds the lock."""
        owner = self._read()
        return owner is not None and owner["token"] == self._me["token"]

    def lost(self) -> LockError:
        """Return the error to raise when this process no longer holds the lock."""
        return LockError(
            f"{self._path}: taken over by {self.holder() or 'a process that has ended since'}, because this process "
            f"wrote no heartbeat for {self._stale:.0f} seconds; run the same command again when the other has ended"
        )

    def release(self) -> None:
        """Release the lock, if this process still holds it."""
        self._released.set()
        if self._heartbeat is not None:
            self._heartbeat.join()
        with self._guarded():
            if self.mine():
                self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Make reading and writing the lock file atomic, so that only one of two processes takes the lock over."""
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
            except OSError:  # a full disk: the work itself will report it; until then others see no heartbeat
                continue

    def _silent(self, owner: dict[str, Any]) -> bool:
        now = self._clock()
        if self._seen[0] != owner:
            self._seen = owner, now
        return now - self._seen[1] > self._stale

    def _read(self) -> dict[str, Any] | None:
        return _owner(Path(self._path))

    def _write(self, count: int) -> None:
        # Not durable: a file that a power cut has emptied counts as free.
        write_json(self._path, self._me | {"beat": count}, durable=False)


@contextlib.contextmanager
def exclusive_lock(path: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that is released when the process ends, however it ends; `progress` is told once of a wait for it.

    Raises LockError on exit if the file system has no locks and another process has taken this lock over.
    """
    waiting = f"{path}: another process holds this lock; waiting for it"
    with path.open("wb") as file:
        try:
            locked = _flock(file.fileno(), wait=False)
        except BlockingIOError:
            progress(waiting)
            locked = _flock(file.fileno())
        if locked:
            yield
            return
    lock = Lock(epath.Path(path.with_name(f"{path.name}.owner")))
    if not lock.acquire():
        progress(waiting)
        while not lock.acquire():
            time.sleep(_POLL_SECONDS)
    try:
        yield
        if not lock.mine():
            raise lock.lost()
    finally:
        lock.release()


def lacks_locks(folder: epath.PathLike) -> bool:
    """Return whether the file system of a folder, which must be writable, doesn't support file locks."""
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
    """Lock an open file until it is closed; return False if the file system has no locks.

    Raises BlockingIOError without `wait` if another process holds the lock.
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
    """Hold a file that only one process can create, for a short time: it has no heartbeat.

    It is taken from an owner that has ended, or has held it for `stale` seconds by this process's clock. If several
    processes do so at the same instant, the file of a faster one may be lost.
    """
    mine = json.dumps(_myself()).encode()
    last_content, since = b"", clock()
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            break
        except FileExistsError:
            pass
        if (content := _bytes(path)) != last_content:
            last_content, since = content, clock()
        owner = _parsed(content)
        if (owner is not None and _dead(owner)) or clock() - since > stale:
            _take_away(path, content)
        else:
            time.sleep(_RETRY_SECONDS)
    with os.fdopen(descriptor, "wb") as file:
        file.write(mine)
    try:
        yield
    finally:
        if _bytes(path) == mine:
            path.unlink(missing_ok=True)


def _take_away(path: Path, content: bytes) -> None:
    """Remove a file if its content is still `content`, by a rename, so that only one of two processes succeeds."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if aside.read_bytes() != content:  # written by a faster process
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _owner(path: Path) -> dict[str, Any] | None:
    """Return the owner in a lock file; None if there is no file or it is damaged, as by a power cut."""
    return _parsed(_bytes(path))


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return None
    valid = isinstance(owner, dict) and all(isinstance(owner.get(name), kind) for name, kind in _FIELDS.items())
    return owner if valid else None


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _started(pid), "token": uuid.uuid4().hex}


def _host() -> str:
    """Return the machine and, on Linux, the pid namespace: a pid is valid only within it."""
    namespace = Path("/proc/self/ns/pid")
    return platform.node() + (f" {os.readlink(namespace)}" if namespace.exists() else "")


def _started(pid: int) -> str:
    """Return when a process of this machine started, in ticks since boot; "" if it doesn't exist or isn't visible."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _dead(owner: dict[str, Any]) -> bool:
    """Return whether an owner is known to have ended: its pid on this machine is free or belongs to another process."""
    if not owner["started"] or owner["host"] != _host():
        return False
    started = _started(owner["pid"])
    return started != owner["started"] and not (started == "" and _hidden(owner["pid"]))


def _hidden(pid: int) -> bool:
    """Return whether a process exists that /proc hides: another user's, if /proc is mounted with hidepid."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
