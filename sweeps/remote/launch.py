"""Start a sweep as several tasks on an engine: Slurm, processes of this machine, or cloud machines.

There is one task per cohort (task.py). Whether a run is done is read from its status.json in the working directory,
never from the engine.
"""

import os
import shlex
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from olmo_jax.config.validation import ConfigError, require
from olmo_jax.console import say
from olmo_jax.errors import UserError
from sweeps.remote.options import Options
from sweeps.remote.slurm import check_folder, submit
from sweeps.remote.task import POLL_SECONDS, LaunchError, Task, signal_blocked, tail

_ENDLESS_MINUTES = 60 * 24 * 365


class StoppedError(UserError):
    """A signal stopped local tasks, each after a checkpoint; the same command resumes them."""

    exit_code = 75


def launch(
    workdir: Any, command: Sequence[str], cohorts: Sequence[int], options: Options, depths: Sequence[int] = ()
) -> list[str]:
    """Start one task per cohort and return lines that say how to find, inspect and stop them.

    Args:
      workdir: a directory that every task can reach; its launch/ holds logs and submitit's files.
      command: the command line of a run; task K appends `--cohort=K`.
      cohorts: the indexes of the cohorts in the plan.
      depths: for each, how many others it has to wait for, one after another (branches.depths); () for none.

    On Slurm it returns once the tasks are queued. On this machine it waits for them; after SIGTERM or SIGINT it stops
    them and raises StoppedError once they have ended. For SkyPilot it writes launch/sky.yaml and starts nothing.

    Raises ConfigError, and LaunchError for what the engine refused or, on this machine, for cohorts that failed.
    """
    options.check()
    need = "needs a directory of a file system; --mirror copies it to a bucket"
    require("://" not in str(workdir), "--workdir", str(workdir), need)
    folder = Path(workdir).absolute() / "launch"
    if options.engine == "sky":
        from sweeps.remote.sky import write_task

        return write_task(folder, command, cohorts, options, depths)
    try:
        import submitit
    except ModuleNotFoundError as error:
        message = f"--engine={options.engine}: submitit is not installed; pip install 'olmo-jax[slurm]'"
        raise ConfigError(message) from error
    if options.engine == "slurm":
        for name in ("sbatch", "srun"):
            if shutil.which(name) is None:
                message = f"no {name} on PATH; launch on a Slurm machine, or on this one with --engine=local"
                raise ConfigError(f"--engine=slurm: {message}")
    check_folder(workdir, folder)
    folder.mkdir(parents=True, exist_ok=True)
    # submitit hides all GPUs from a local task that asks for none.
    visible = (("CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")),)
    environment = visible if options.engine == "local" and not options.gpus else ()
    tasks = [
        Task(options.engine, k, tuple(command), str(folder / f"cohort-{k}.log"), environment, depth)
        for k, depth in zip(cohorts, depths or [0] * len(cohorts), strict=True)
    ]
    tasks.sort(key=lambda task: task.depth)
    if options.engine == "slurm":
        lines = submit(folder / "submitit", tasks, options)
    else:
        lines = _local(submitit.LocalExecutor(folder / "submitit"), tasks, options)
    place = f"--workdir={shlex.quote(str(workdir))}"
    return [*lines, f"to watch: olmo-jax status {place} --watch; once all is done: olmo-jax report {place}"]


def _local(executor: Any, tasks: Sequence[Task], options: Options) -> list[str]:
    from sweeps.running.stages import stop_on_signals

    parallel = len(tasks) if options.parallel == 0 else options.parallel or 1
    waiting, slots, failed = list(tasks), list(range(parallel)), []
    running: list[tuple[Task, int, Any]] = []
    with stop_on_signals() as stop:
        while running or (waiting and not stop()):
            while waiting and slots and not stop():
                if any(task.depth < waiting[0].depth for task, _, _ in running):
                    break  # branches start once their parents' cohorts are done
                task, slot = waiting.pop(0), slots.pop(0)
                gpus = range(slot * options.gpus, (slot + 1) * options.gpus)
                executor.update_parameters(
                    timeout_min=_ENDLESS_MINUTES, gpus_per_node=options.gpus, visible_gpus=tuple(gpus)
                )
                with signal_blocked(signal.SIGINT):  # a terminal sends it to every process; we send tasks SIGTERM
                    running.append((task, slot, executor.submit(task)))
                say(f"cohort {task.cohort}: started, log {task.log}")
            time.sleep(POLL_SECONDS)
            for entry in list(running):
                task, slot, job = entry
                if not job.done():
                    if stop():
                        os.kill(int(job.job_id), signal.SIGTERM)  # repeated: one before the handler is set is lost
                    continue
                running.remove(entry)
                slots.append(slot)
                outcome = _outcome(job)
                if outcome == "failed" or (outcome == "lost" and not stop()):
                    cause = tail(task.log, 0, lines=1) or job.paths.stderr
                    failed.append(f"cohort {task.cohort}: {outcome}, log {task.log}; {cause}")
                    say(failed[-1])
                else:
                    say(f"cohort {task.cohort}: {'done' if outcome == 'done' else 'stopped'}")
        if stop():
            raise StoppedError("tasks were stopped after a checkpoint; run the same command again to resume")
    if failed:
        raise LaunchError("\n".join([f"{len(failed)} of {len(tasks)} cohorts failed", *failed]))
    return [f"cohort {task.cohort}: done, log {task.log}" for task in tasks]


def _outcome(job: Any) -> str:
    """Return done, stopped, failed, or lost for a process that ended without leaving a result."""
    if not job.paths.result_pickle.exists():
        return "lost"
    return "failed" if job.exception() is not None else job.result()
