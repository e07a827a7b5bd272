"""One cohort of a sweep as a task of an engine: a child process that is asked to stop in time and then comes back."""

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
SECONDS_BETWEEN_LOOKS = 0.2
_STOPPED = 75  # the exit code of a run that a signal ended


class LaunchError(UserError):
    """Tasks that failed, or that the engine refused; the message names cohorts and logs."""

    lines = True


@dataclasses.dataclass(frozen=True)
class Task:
    """One cohort's command as a child process: what submitit carries to where it runs.

    Slurm signals every process of a task. At SIGTERM (scancel, scontrol requeue, preemption) the child has had its own
    and KillWait, 30 s by default, until SIGKILL; at USR2 (SECONDS_TO_STOP before the time limit, by up to 60 s more, or
    a preemption's GraceTime ahead of it) it gets its SIGTERM from here. A checkpoint that takes longer is lost, and the
    next start goes on from the one before.
    """

    engine: str
    cohort: int
    command: tuple[str, ...]
    log: str
    environment: tuple[tuple[str, str | None], ...] = ()  # in place of what the engine sets; None: not set

    def __call__(self) -> str:
        """Returns "done", or "stopped" where nobody wants it back; else a stopped task goes into the queue again.

        Raises LaunchError with the last lines of the child's output where it failed.
        """
        submitits = signal.getsignal(signal.SIGUSR2)
        asked: set[int] = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: asked.add(number))
        command = (*self.command, f"--cohort={self.cohort}")
        with open(self.log, "a", encoding="utf-8", errors="backslashreplace") as log:
            print(f"# {time.strftime('%F %T')} {platform.node()}: {shlex.join(command)}", file=log, flush=True)
            begin = log.tell()
            with held_back(signal.SIGUSR2):  # for good in the child, which it would kill
                full = os.environ | dict(self.environment)
                environment = {name: value for name, value in full.items() if value is not None}
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            code = self._wait(child, asked)
        if code == 0:
            return "done"
        if code != _STOPPED and not (asked and code == -signal.SIGTERM):  # the latter: before it could say otherwise
            raise LaunchError(f"cohort {self.cohort}: exit code {code}; {self.log} ends with\n{tail(self.log, begin)}")
        if self._wanted_back(asked):
            signal.signal(signal.SIGUSR2, submitits)
            signal.raise_signal(signal.SIGUSR2)  # submitit takes checkpoint(), puts it into the queue and exits
        return "stopped"

    def checkpoint(self) -> Any:
        """What runs next, for submitit: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _wait(self, child: subprocess.Popen, asked: set[int]) -> int:
        told = False
        while (code := child.poll()) is None:
            if asked and not told:
                told = True
                if self.engine == "local" or asked == {signal.SIGUSR2}:  # a second SIGTERM would end it at once
                    child.terminate()
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return code

    def _wanted_back(self, asked: set[int]) -> bool:
        """Not if launch asked it to stop, nor if Slurm has cancelled the job or put it into the queue by itself."""
        if self.engine == "local":
            return not asked
        from submitit import JobEnvironment  # its job_id names one task, where SLURM_JOB_ID may stand for the array

        look = ["squeue", "--noheader", "--format=%T", f"--jobs={JobEnvironment().job_id}"]
        return subprocess.run(look, check=True, capture_output=True).stdout.strip() == b"RUNNING"


@contextlib.contextmanager
def held_back(number: int) -> Iterator[None]:
    """The signal waits until the end, and in processes started meanwhile for ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def tail(path: str, begin: int, lines: int = 20) -> str:
    """The last lines that a log has from byte `begin` on; "" if it isn't there."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as file:
        file.seek(max(begin, os.path.getsize(path) - 8192))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
