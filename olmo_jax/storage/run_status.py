"""The status of a run: its status.json, or its checkpoints if that file is missing or damaged."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from olmo_jax.checkpoint import CheckpointError, read_end, run_steps
from olmo_jax.cohort import Run
from olmo_jax.execution import processes
from olmo_jax.files import DamagedFileError, read_json, write_json
from olmo_jax.step import REASONS, State
from olmo_jax.storage.run_files import is_run, run_config

ENDED = ("done", "diverged")
# In the status of an imported run of which not all checkpoints were kept.
DROPPED = "dropped"


def read_status(workdir: epath.Path, run_id: str) -> dict[str, Any]:
    """Return a run's state (waiting, training, done or diverged), step, total_steps, diverged_at and reason."""
    return _stored(workdir, run_id) or _from_checkpoints(workdir, run_id)


def has_ended(workdir: epath.Path, run_id: str) -> bool:
    """Return whether the run's status.json says that it is done or diverged.

    Without a readable status.json the answer is False: training then checks the checkpoints themselves.
    """
    status = _stored(workdir, run_id)
    return status is not None and status["state"] in ENDED


def write_statuses(workdir: epath.Path, members: Sequence[Run], state: State, step: int) -> None:
    """Write the status of the members of a stack at `step`, in the first process."""
    diverged_M, reason_M = (x.tolist() for x in processes.fetch((state.diverged_at, state.reason)))
    if not processes.is_first():
        return
    for run, diverged_at, reason in zip(members, diverged_M, reason_M, strict=False):
        write_json(_path(workdir, run.id), _status(step, run.config.total_steps, diverged_at, reason))


def restore_statuses(workdir: epath.Path, runs: Sequence[Run]) -> None:
    """Write status.json, in the first process, for runs that have checkpoints but no valid status.json."""
    for run in runs if processes.is_first() else ():
        if _stored(workdir, run.id) is None and (status := _from_checkpoints(workdir, run.id))["state"] != "waiting":
            write_json(_path(workdir, run.id), status)


def _path(workdir: epath.Path, run_id: str) -> epath.Path:
    return workdir / "runs" / run_id / "status.json"


def _stored(workdir: epath.Path, run_id: str) -> dict[str, Any] | None:
    """Return the content of status.json; None if it is missing or damaged."""
    try:
        status = read_json(_path(workdir, run_id), "determined from the checkpoints")
    except (FileNotFoundError, DamagedFileError):
        return None
    valid = (
        status.get("state") in ("waiting", "training", *ENDED)
        and all(type(status.get(key)) is int and status[key] >= 0 for key in ("step", "total_steps"))
        and (status.get("diverged_at") is None or type(status["diverged_at"]) is int)
        and status.get("reason") in REASONS
    )
    return status if valid else None


def _from_checkpoints(workdir: epath.Path, run_id: str) -> dict[str, Any]:
    steps = run_steps(workdir, run_id) if is_run(workdir, run_id) else []
    if not steps:
        return {"state": "waiting", "step": 0}
    total = run_config(workdir, run_id).total_steps
    try:
        diverged_at, reason = read_end(workdir, run_id, steps[-1])
    except CheckpointError:  # training decides which checkpoint to resume from
        return {"state": "training", "step": steps[-1], "total_steps": total, "diverged_at": None, "reason": ""}
    return _status(steps[-1], total, diverged_at, reason)


def _status(step: int, total_steps: int, diverged_at: int, reason: int) -> dict[str, Any]:
    """Return the content of status.json; `diverged_at` is a step or -1, `reason` an index into REASONS."""
    ended = "diverged" if diverged_at >= 0 else "done"
    return {
        "state": ended if step == total_steps else "training",
        "step": step,
        "total_steps": total_steps,
        "diverged_at": diverged_at if diverged_at >= 0 else None,
        "reason": REASONS[reason],
    }
