"""A sweep as an array of Slurm tasks: what sbatch is told, and what of the environment it may see."""

import contextlib
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from olmo_jax.config.validation import require
from olmo_jax.console import say
from sweeps.remote.options import Options
from sweeps.remote.task import SECONDS_TO_STOP, LaunchError, Task

_RETURNS = 1000  # time limits that a task may reach; submitit wants a number

# What a Slurm job has in its environment isn't the user's but for these: where Slurm is and how it speaks, and on whose
# account and where the user has things run.
_OF_THE_USER = re.compile(
    r"SLURM_(CONF\w*|CLUSTERS|DEBUG\w*|JWT|TIME_FORMAT|EXIT_ERROR)|"
    r"SBATCH_(ACCOUNT|PARTITION|QOS|RESERVATION|WCKEY|CLUSTERS|CONSTRAINT|CLUSTER_CONSTRAINT|EXPORT|GET_USER_ENV|DEBUG)"
)
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_")
# sbatch's variables, without SBATCH_, that would win over what the script says of an option; where they aren't named as
# the option is. SLURM_ before them, they win over what sbatch was told once srun starts the task.
_VARIABLES = {
    "array": ("ARRAY_INX",),
    "cpus-per-task": ("CPUS_PER_TASK", "CPUS_PER_GPU"),
    "gpus-per-node": ("GPUS", "GPUS_PER_NODE", "GPUS_PER_TASK", "GPUS_PER_SOCKET"),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "mem-per-cpu": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "mem-per-gpu": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "ntasks-per-node": ("NTASKS", "NPROCS", "NTASKS_PER_NODE"),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
    "switches": ("REQ_SWITCH",),
    "time": ("TIMELIMIT",),
}
_SET_BY_LAUNCH = ("array", "error", "open-mode", "output", "requeue", "signal", "wait")


def check_folder(workdir: object, folder: Path) -> None:
    """Raises ConfigError for a path that submitit or Slurm would take for a pattern of file names."""
    name = str(folder)
    tag = re.search(r"%[jtAa]", name)
    takes = f"holds {tag and tag[0]}, which submitit replaces by the number of a job; choose another name"
    require(tag is None, "--workdir", str(workdir), takes)
    odd = "holds a backslash, a line break or bytes that aren't UTF-8, which sbatch can't take; choose another name"
    require(not re.search(r"[\\\n\r\ud800-\udfff]", name), "--workdir", str(workdir), odd)


def submit(folder: Path, tasks: Sequence[Task], options: Options) -> list[str]:
    """Puts an array of the tasks into the queue and returns lines that say where they are and how to stop them.

    Raises LaunchError for what sbatch refuses.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    more = {key.replace("_", "-"): value or not equal for key, equal, value in (m.partition("=") for m in options.more)}
    asked: dict[str, Any] = {
        "job_name": "olmo-jax",
        "partition": options.partition,
        "account": options.account,
        "time": options.minutes,
        "ntasks_per_node": 1,
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "mem": options.memory_gb and f"{options.memory_gb}GB",
    }
    given = {key: value for key, value in asked.items() if value and key.replace("_", "-") not in more}
    more = {key: value for key, value in more.items() if value is not False}
    unset = {key: None for key in ("job_name", "wckey") if key not in given}  # submitit has names of its own for these
    srun = [f"--cpus-per-task={options.cpus}"] if options.cpus else []  # sbatch's isn't passed on since 22.05
    logs = _logs(folder, len(tasks)) if "%" in str(folder) else {}
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_RETURNS)
    executor.update_parameters(
        signal_delay_s=SECONDS_TO_STOP,
        array_parallelism=options.parallel or len(tasks),
        srun_args=[*srun, *(f"--{name}={pattern}" for name, pattern in logs.items())],
        additional_parameters={"requeue": True}
        | {name: pattern.replace("%t", "0") for name, pattern in logs.items()}
        | more,
        **given,
        **unset,
    )
    unasked = {"job_name"} | ({"time"} if options.minutes == type(options).minutes else set())
    said = {key.replace("_", "-") for key in given.keys() - unasked} | more.keys()
    try:
        with _without(foreign(os.environ, said)):
            jobs = executor.submit_array(tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(f"sbatch: {error}") from error
    ids = jobs[0].job_id.split("_")[0]
    return [
        *(f"cohort {t.cohort}: Slurm job {job.job_id}, log {t.log}" for t, job in zip(tasks, jobs, strict=True)),
        f"in the queue: squeue --jobs={ids}; to stop: scancel {ids}; to go on: the same launch",
    ]


def foreign(environment: Collection[str], said: Collection[str]) -> list[str]:
    """The variables that sbatch must not see, sorted: they win over what its script says, and reach the tasks.

    Args:
      environment: names of variables.
      said: options of sbatch that somebody gave to `launch`, such as "cpus-per-task".

    Returns:
      Those that describe the Slurm job that this runs in, if it does, and those that contradict an option.
    """
    inside = any(name in environment for name in ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID"))
    contradicting = {f"SBATCH_{name}" for option in _SET_BY_LAUNCH for name in _variables(option)}
    contradicting |= {prefix + name for option in said for name in _variables(option) for prefix in _OF_A_JOB}
    return sorted(
        name
        for name in environment
        if name in contradicting or (inside and name.startswith(_OF_A_JOB) and not _OF_THE_USER.fullmatch(name))
    )


def _variables(option: str) -> tuple[str, ...]:
    return _VARIABLES.get(option, (option.upper().replace("-", "_"),))


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """The process's environment without some variables, which one line names."""
    if names:
        say(f"kept from sbatch, for they are another job's or contradict what was asked: {', '.join(names)}")
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def _logs(folder: Path, tasks: int) -> dict[str, str]:
    """submitit's patterns of the names of logs where Slurm would take a `%` in the folder's name for one of its own."""
    base = str(folder).replace("%", "%%")
    return {name: f"{base}/{'%A_%a' if tasks > 1 else '%j'}_%t_log.{name[:3]}" for name in ("output", "error")}
