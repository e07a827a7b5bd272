"""One process a cohort: a lock file that names its owner and that the owner keeps fresh.

The owner writes a beat into the file every few seconds. Another process that sees no new beat for a minute by its own
clock, or knows the owner to be dead for it ran on this machine, takes the lock over; clocks of two machines are never
compared. Where the owner was only asleep, it finds by `mine` that the lock is lost.
"""

import contextlib
import fcntl
import json
import os
import platform
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
        with (Path(self._path).parent / f".{self._path.stem}.lock").open("w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
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
        try:
            return json.loads(self._path.read_text())
        except FileNotFoundError:
            return None

    def _write(self, count: int) -> None:
        write_json(self._path, self._me | {"beat": count})


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
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[19]
    except FileNotFoundError:
        return ""


def _dead(owner: dict[str, Any]) -> bool:
    """Whether an owner is known to have ended: a process of this machine that isn't there, or is another by now."""
    return bool(owner["started"]) and owner["host"] == _host() and _started(owner["pid"]) != owner["started"]
