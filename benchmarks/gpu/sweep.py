"""Carry out a sweep by its command, from an empty directory to its report, in as many starts as it takes."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Column, UnfinishedError

# What a sweep imports beyond what a training step does.
NEEDS = (
    "grain",
    "tensorflow_datasets",
    "orbax",
    "tokenizers",
    "pandas",
    "statsmodels",
    "sklearn",
    "altair",
    "vl_convert",
)
COLUMNS = (
    Column("s in total", "total_s", ",.0f"),
    Column("s of steps", "steps_s", ",.0f"),
    Column("s of probes", "probe_s", ",.0f"),
    Column("s of checkpoints", "checkpoint_s", ",.1f"),
    Column("s compiling", "compile_s", ",.0f"),
    Column("s of evaluations", "evaluate_s", ",.0f"),
    Column("models", "runs", "d"),
)
_ROOT = Path(__file__).parents[2]
_WORK = _ROOT / ".cache" / "gpu"
# A sweep that has run for so long is stopped at a checkpoint, and the next start continues it.
_SECONDS = 480.0
_STOPPED = 75


def workdir_of(name: str, version: int, arguments: list[str]) -> Path:
    """Return the folder of a command, which outlives the process so that the sweep can be resumed.

    Another version of the part or of JAX measures anew, in another folder.
    """
    words = [name, f"v{version}", f"jax{importlib.metadata.version('jax')}", *arguments]
    return _WORK / "-".join(re.sub("[^a-z0-9.]+", "-", word) for word in words)


def carry_out(arguments: list[str], workdir: Path) -> dict[str, Any]:
    """Run a sweep by `olmo-jax` and return its seconds by stage and event, over all starts, and its number of models.

    Raises as `run` does.
    """
    run(arguments, workdir)
    return _seconds(workdir)


def plan(arguments: list[str]) -> dict[str, Any]:
    """Resolve a sweep by `olmo-jax plan`, for a dry run, in which nothing is measured. Raises as `run` does."""
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder) / "work")
    return {}


def run(arguments: list[str], workdir: Path) -> None:
    """Run `olmo-jax` with these arguments; raises UnfinishedError if its time was up, RuntimeError if it failed."""
    command = [sys.executable, "-m", "sweeps.cli", *arguments, f"--workdir={workdir}"]
    # As for a user, the cache of compiled programs is on.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    process = subprocess.Popen(
        command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        _, errors = process.communicate()
    finally:  # when this process is interrupted, the sweep must not keep the device
        process.terminate()
        process.wait()
    if process.returncode == _STOPPED:
        raise UnfinishedError(f"`{' '.join(command[2:])}` stopped at a checkpoint")
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise RuntimeError(f"`{' '.join(command[2:])}` ended with exit code {process.returncode}: {last[0]}")


def _seconds(workdir: Path) -> dict[str, Any]:
    from etils import epath

    from olmo_jax.logs.metrics import TIMINGS, read_timings
    from sweeps.running import stage_times

    stages = dict.fromkeys(("prepare", "train", "evaluate", "report"), 0.0)
    for row in stage_times.read(epath.Path(workdir)):
        stages[row["stage"]] = stages.get(row["stage"], 0.0) + row["seconds"]
    # The runs of a stack have the same rows, which count once.
    runs = sorted((workdir / "runs").iterdir())
    of_stacks = {json.loads((run / "config.json").read_text())["folder"]: run for run in runs}
    events = dict.fromkeys(("steps", "probe", "checkpoint", "compile"), 0.0)
    for run in of_stacks.values():
        for row in read_timings(epath.Path(run / TIMINGS)):
            if row["event"] in events:
                events[row["event"]] += row["seconds"]
    return {f"{event}_s": value for event, value in events.items()} | {
        "total_s": sum(stages.values()),
        "evaluate_s": stages["evaluate"],
        "runs": len(runs),
    }
