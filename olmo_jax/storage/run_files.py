"""The runs of a working directory, their records in config.json, and the folder of their data."""

from pathlib import Path
from typing import Any

from etils import epath

from olmo_jax.config import TrainConfig, from_config_dict
from olmo_jax.errors import CheckpointError
from olmo_jax.files import DamagedFileError, read_json
from olmo_jax.storage import names
from olmo_jax.storage.paths import local


def known_runs(workdir: epath.PathLike) -> list[str]:
    """Return the ids of a working directory's runs, sorted."""
    runs = epath.Path(workdir) / "runs"
    return sorted(p.name for p in runs.iterdir() if (p / "config.json").exists()) if runs.exists() else []


def is_run(workdir: epath.PathLike, run_id: str) -> bool:
    """Return whether a working directory has a run with that id."""
    return "\0" not in run_id and (epath.Path(workdir) / "runs" / run_id / "config.json").exists()


def matching_runs(workdir: epath.PathLike, pattern: str) -> list[str]:
    """Return the sorted ids that match an id or a pattern like "olmo-4m-*"; raises CheckpointError if none does."""
    known = known_runs(workdir)
    matches = names.matching(known, pattern)
    if not matches:
        raise CheckpointError(f"no run '{pattern}' in {workdir}; its runs: {', '.join(known) or 'none'}")
    return matches


def run_record(workdir: epath.PathLike, run_id: str) -> dict[str, Any]:
    """Return a run's config.json: run_id, cohort, folder (of its stack) and config.

    Raises CheckpointError if there is no such run, DamagedFileError if the file is damaged.
    """
    if not is_run(workdir, run_id):
        known = ", ".join(known_runs(workdir)) or "none"
        raise CheckpointError(f"no run '{run_id}' in {workdir}; its runs: {known}")
    path = epath.Path(workdir) / "runs" / run_id / "config.json"
    remedy = f"`olmo-jax status --workdir={workdir}` writes it again from sweep.json"
    record = read_json(path, remedy)
    config, texts = record.get("config"), [record.get(key) for key in ("run_id", "cohort", "folder")]
    if (
        not (isinstance(config, dict) and isinstance(config.get("model"), dict))
        or not all(isinstance(text, str) and text for text in texts)
        or record["run_id"] != run_id
    ):
        raise DamagedFileError(f"{path}: isn't a valid record of a run's configuration; {remedy}")
    return record


def run_config(workdir: epath.PathLike, run_id: str) -> TrainConfig:
    """Return a run's configuration. Raises what `run_record` raises."""
    return from_config_dict(TrainConfig, run_record(workdir, run_id)["config"], "config")


def data_root(workdir: epath.Path, config: TrainConfig) -> Path:
    """Return the folder of prepared data: config.data.root, or data/ in the working directory."""
    return local(config.data.root) if config.data.root else Path(workdir) / "data"
