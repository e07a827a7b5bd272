"""One cohort of a sweep as a task of an engine: a child process that is stopped in time and then requeued."""

import contextlib
import dataclasses
import os
import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from olmo_jax.errors import UserError

SECONDS_TO_STOP = 300
POLL_SECONDS = 0.2
_STOPPED = 75  # the exit code of a run that a signal stopped


class LaunchError(UserError):
    """Tasks failed, or the engine refused them; the message names cohorts and logs."""

    lines = True


@dataclasses.dataclass(frozen=True)
class Task:
    """One cohort's command, run as a child process; submitit pickles the task and calls it where it runs.

    Slurm signals every process of a task. At SIGTERM (scancel, scontrol requeue, preemption) the child gets the signal
    itself and has KillWait, 30 s by default, until SIGKILL. At USR2 (SECONDS_TO_STOP to SECONDS_TO_STOP + 60 s before
    the time limit, or GraceTime before a preemption) the task sends it SIGTERM. A checkpoint that takes longer is lost,
    and the next start resumes from the one before.
    """

    engine: str
    cohort: int
    command: tuple[str, ...]
    log: str
    environment: tuple[tuple[str, str | None], ...] = ()  # overrides what the engine sets; None: unset
    depth: int = 0  # it starts once all tasks of smaller depth are done

    def __call__(self) -> str:
        """Run the command and return "done", or "stopped" if it was stopped for good; otherwise it is requeued.

        Raises LaunchError with the last lines of the child's output if it failed.
        """
        submitit_handler = signal.getsignal(signal.SIGUSR2)
        received: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: received.add(number))
        command = (*self.command, f"--cohort={self.cohort}")
        with open(self.log, "a", encoding="utf-8", errors="backslashreplace") as log:
            print(f"# {time.strftime('%F %T')} {platform.node()}: {shlex.join(command)}", file=log, flush=True)
            begin = log.tell()
            with signal_blocked(signal.SIGUSR2):  # the child inherits the block; otherwise USR2 would kill it
                variables = os.environ | dict(self.environment)
                environment = {name: value for name, value in variables.items() if value is not None}
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            code = self._wait(child, received)
        if code == 0:
            return "done"
        # -SIGTERM: the signal came before the child had its handler.
        if code != _STOPPED and not (received and code == -signal.SIGTERM):
            raise LaunchError(f"cohort {self.cohort}: exit code {code}; {self.log} ends with\n{tail(self.log, begin)}")
        if self._should_requeue(received):
            signal.signal(signal.SIGUSR2, submitit_handler)
            signal.raise_signal(signal.SIGUSR2)  # submitit calls checkpoint(), requeues its result and exits
        return "stopped"

    def checkpoint(self) -> Any:
        """Return what submitit is to requeue: this task."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _wait(self, child: subprocess.Popen, received: set[int]) -> int:
        handled = False
        while (code := child.poll()) is None:
            if received and not handled:
                handled = True
                if self.engine == "local" or received == {signal.SIGUSR2}:  # a second SIGTERM would end it at once
                    child.terminate()
            time.sleep(POLL_SECONDS)
        return code

    def _should_requeue(self, received: set[int]) -> bool:
        """Return False if launch stopped the task, or if Slurm has cancelled the job or requeued it by itself."""
        if self.engine == "local":
            return not received
        from submitit import JobEnvironment  # its job_id names one task; SLURM_JOB_ID may name the whole array

        query = ["squeue", "--noheader", "--format=%T", f"--jobs={JobEnvironment().job_id}"]
        return subprocess.run(query, check=True, capture_output=True).stdout.strip() == b"RUNNING"


@contextlib.contextmanager
def signal_blocked(number: int) -> Iterator[None]:
    """Block a signal within the block; processes started in it inherit the mask and keep the signal blocked."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def tail(path: str, begin: int, lines: int = 20) -> str:
    """Return the last lines that a log has from byte `begin` on; "" if it doesn't exist."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        file.seek(max(begin, os.path.getsize(path) - 8192))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
