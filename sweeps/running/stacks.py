"""Distributes the stacks of a sweep over the processes that share its working directory, one process per stack."""

import time
from collections.abc import Callable, Sequence

from etils import epath

from olmo_jax.cohort import Cohort
from olmo_jax.console import say
from olmo_jax.errors import UserError
from olmo_jax.execution import processes
from olmo_jax.storage.lock import Lock, LockError

_POLL_SECONDS = 1.0
# How often in a row nobody may be found working before what a stack needs counts as never to come.
_PATIENCE = 5
_FAILURE = "failed.txt"


def lock_of(workdir: epath.Path, stack: Cohort) -> Lock:
    """Return the lock that the process working on a stack holds."""
    return Lock(workdir / "cohorts" / stack.folder / "lock.json")


def failure(workdir: epath.Path, stack: Cohort) -> str:
    """Return the error that ended the last attempt to work on a stack, or ""."""
    path = workdir / "cohorts" / stack.folder / _FAILURE
    return path.read_bytes().decode(errors="replace").strip() if path.exists() else ""


def one_process_per_stack(
    workdir: epath.Path,
    stacks: Sequence[Cohort],
    stop: Callable[[], bool],
    work: Callable[[Cohort, Callable[[], bool]], bool],
    lacking: Callable[[Cohort], str] = lambda stack: "",
) -> bool:
    """Work on every stack under its lock: first on the free stacks, then on those that other processes had locked.

    Args:
      stop: returns whether to stop. work: takes a stack and such a `stop`, which also raises LockError once the lock is
        lost; returns False if it was stopped.
      lacking: says what a stack needs that isn't there yet, "" if nothing; it is waited for as long as some stack of
        the working directory is locked by another process.

    Returns:
      False if `stop` ended it. An error raised by `work` is recorded for `failure` and raised again; a UserError only
      after the other stacks are done. A stack that will never have what it needs raises UserError, likewise.
    """
    waiting = [(stack, lock_of(workdir, stack)) for stack in stacks]
    announced: set[str] = set()
    failed: list[Exception] = []
    others, idle = _Others(workdir), 0
    while waiting:
        held, needs = [], {}
        for stack, lock in waiting:
            if processes.any_process(stop()):
                return False
            need = lacking(stack)
            if processes.any_process(bool(need)):
                held.append((stack, lock))
                needs[stack.folder] = need or "another process doesn't see the checkpoints that it starts from"
                continue
            if not processes.broadcast(processes.is_first() and lock.acquire()):
                held.append((stack, lock))
                if stack.folder not in announced:
                    say(f"{stack.folder}: {lock.holder()} is working on it; waiting")
                announced.add(stack.folder)
                continue
            try:
                if not _with_lock(workdir, stack, lock, stop, work):
                    return False
            except LockError:
                raise
            except UserError as error:
                if not failed and stack is not waiting[-1][0]:
                    say(f"{stack.folder}: {error}; continuing with the others")
                failed.append(error)
        if len(held) == len(waiting):
            idle = 0 if len(needs) < len(held) or processes.broadcast(others.work()) else idle + 1
            # Another process may be between two stacks. After a failure of this one it is that which is missing.
            if idle > (0 if failed else _PATIENCE):
                failed += [UserError(f"{folder}: {need}; train that first") for folder, need in needs.items()]
                break
            for folder in needs.keys() - announced:
                say(f"{folder}: {needs[folder]}; waiting")
            announced |= needs.keys()
            time.sleep(_POLL_SECONDS)
        waiting = held
    if failed:
        raise failed[0]
    return True


class _Others:
    """Whether other processes work on stacks of a working directory."""

    def __init__(self, workdir: epath.Path):
        self._cohorts, self._locks = workdir / "cohorts", dict[str, Lock]()

    def work(self) -> bool:
        paths = {str(path): path for path in self._cohorts.glob("*/lock.json")}
        # Locks are kept, since only one that has been watched for a while is known to be silent.
        self._locks |= {name: Lock(path) for name, path in paths.items() if name not in self._locks}
        return any(self._locks[name].working() for name in paths)


def _with_lock(
    workdir: epath.Path,
    stack: Cohort,
    lock: Lock,
    stop: Callable[[], bool],
    work: Callable[[Cohort, Callable[[], bool]], bool],
) -> bool:
    def stop_or_lost() -> bool:
        if processes.any_process(processes.is_first() and not lock.mine()):
            raise lock.lost()
        return stop()

    note = workdir / "cohorts" / stack.folder / _FAILURE
    try:
        if processes.is_first():
            note.unlink(missing_ok=True)
        return work(stack, stop_or_lost)
    except LockError:
        raise
    except Exception as error:
        note.write_bytes(f"{str(error) or type(error).__name__}\n".encode(errors="backslashreplace"))
        raise
    finally:
        if processes.is_first():
            lock.release()
