"""Submit a sweep as an array of Slurm tasks: the options of sbatch, and the environment variables kept from it."""

import contextlib
import itertools
import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from olmo_jax.config.validation import require
from olmo_jax.console import say
from sweeps.remote.options import Options
from sweeps.remote.task import SECONDS_TO_STOP, LaunchError, Task

_MAX_TIMEOUTS = 1000  # how often a task may reach its time limit; submitit requires a number

# Inside a Slurm job the SLURM_ and SBATCH_ variables describe that job, except these, which are the user's: how to
# reach Slurm and how it prints, and the account, partition and so on of the user's jobs.
_SET_BY_USER = re.compile(
    r"SLURM_(CONF\w*|CLUSTERS|DEBUG\w*|JWT|TIME_FORMAT|EXIT_ERROR)|"
    r"SBATCH_(ACCOUNT|PARTITION|QOS|RESERVATION|WCKEY|CLUSTERS|CONSTRAINT|CLUSTER_CONSTRAINT|EXPORT|GET_USER_ENV|DEBUG)"
)
_JOB_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_")
# The variables that override an option of the script, without their prefix, where they aren't named like the option.
# sbatch obeys those that begin with SBATCH_; the srun that starts the task obeys those that begin with SLURM_.
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
    """Raise ConfigError for a path that submitit or Slurm would misread as a pattern of file names."""
    name = str(folder)
    tag = re.search(r"%[jtAa]", name)
    replaced = f"contains {tag and tag[0]}, which submitit replaces with a job's number; choose another name"
    require(tag is None, "--workdir", str(workdir), replaced)
    invalid = "contains a backslash, a line break or bytes that aren't UTF-8, which sbatch refuses; choose another name"
    require(not re.search(r"[\\\n\r\ud800-\udfff]", name), "--workdir", str(workdir), invalid)


def submit(folder: Path, tasks: Sequence[Task], options: Options) -> list[str]:
    """Submit the tasks as a job array and return lines that say how to find and stop them.

    There is one array for each depth (Task.depth), which starts once all tasks of the one before
    have ended; a branch whose parent failed then says so itself.

    Raises LaunchError if sbatch refuses them.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    more = {key.replace("_", "-"): value or not equal for key, equal, value in (m.partition("=") for m in options.more)}
    requested: dict[str, Any] = {
        "job_name": "olmo-jax",
        "partition": options.partition,
        "account": options.account,
        "time": options.minutes,
        "ntasks_per_node": 1,
        "gpus_per_node": options.gpus,
        "cpus_per_task": options.cpus,
        "mem": options.memory_gb and f"{options.memory_gb}GB",
    }
    nonempty = {key: value for key, value in requested.items() if value and key.replace("_", "-") not in more}
    more = {key: value for key, value in more.items() if value is not False}
    unset = {key: None for key in ("job_name", "wckey") if key not in nonempty}  # otherwise submitit sets its defaults
    srun = [f"--cpus-per-task={options.cpus}"] if options.cpus else []  # since 22.05 srun doesn't inherit sbatch's
    logs = _logs(folder, len(tasks)) if "%" in str(folder) else {}
    executor = submitit.SlurmExecutor(folder, max_num_timeout=_MAX_TIMEOUTS)
    additional: dict[str, Any] = (
        {"requeue": True} | {k: pattern.replace("%t", "0") for k, pattern in logs.items()} | more
    )
    executor.update_parameters(
        signal_delay_s=SECONDS_TO_STOP,
        array_parallelism=options.parallel or len(tasks),
        srun_args=[*srun, *(f"--{name}={pattern}" for name, pattern in logs.items())],
        additional_parameters=additional,
        **nonempty,
        **unset,
    )
    defaults = {"job_name"} | ({"time"} if options.minutes == type(options).minutes else set())
    explicit = {key.replace("_", "-") for key in nonempty.keys() - defaults} | more.keys()
    jobs: list[Any] = []
    arrays: list[str] = []
    try:
        with _without(conflicting_variables(os.environ, explicit)):
            for _, group in itertools.groupby(tasks, key=lambda task: task.depth):
                if arrays:
                    after = ",".join(filter(None, [additional.get("dependency"), f"afterany:{arrays[-1]}"]))
                    executor.update_parameters(additional_parameters=additional | {"dependency": after})
                jobs += executor.submit_array(list(group))
                arrays.append(jobs[-1].job_id.split("_")[0])
    except (FailedJobError, FailedSubmissionError) as error:
        raise LaunchError(f"sbatch: {error}") from error
    ids = ",".join(arrays)
    return [
        *(f"cohort {t.cohort}: Slurm job {job.job_id}, log {t.log}" for t, job in zip(tasks, jobs, strict=True)),
        f"to list them: squeue --jobs={ids}; to stop: scancel {ids.replace(',', ' ')}; to resume: the same launch",
    ]


def conflicting_variables(environment: Collection[str], explicit: Collection[str]) -> list[str]:
    """Return the variables to hide from sbatch, sorted: they would override its script, and reach the tasks.

    Args:
      environment: names of variables.
      explicit: options of sbatch that the user gave to `launch`, such as "cpus-per-task".

    Returns:
      Those that describe the Slurm job that this process runs in, if any, and those that contradict an option.
    """
    inside = any(name in environment for name in ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID"))
    contradicting = {f"SBATCH_{name}" for option in _SET_BY_LAUNCH for name in _variables(option)}
    contradicting |= {prefix + name for option in explicit for name in _variables(option) for prefix in _JOB_PREFIXES}
    return sorted(
        name
        for name in environment
        if name in contradicting or (inside and name.startswith(_JOB_PREFIXES) and not _SET_BY_USER.fullmatch(name))
    )


def _variables(option: str) -> tuple[str, ...]:
    return _VARIABLES.get(option, (option.upper().replace("-", "_"),))


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """Remove variables from the process's environment within the block, and print a line that names them."""
    if names:
        say(f"hidden from sbatch, as they describe another job or contradict an option: {', '.join(names)}")
    removed = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(removed)


def _logs(folder: Path, tasks: int) -> dict[str, str]:
    """Return patterns of the names of logs, for a folder whose name contains a `%`, which Slurm would replace."""
    base = str(folder).replace("%", "%%")
    return {name: f"{base}/{'%A_%a' if tasks > 1 else '%j'}_%t_log.{name[:3]}" for name in ("output", "error")}
