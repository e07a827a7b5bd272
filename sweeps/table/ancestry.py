"""What a run and its ancestors were trained on together: a branch continues its parent's tokens, FLOPs and decay."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from olmo_jax.branch import parent_workdir
from olmo_jax.config import TrainConfig
from olmo_jax.execution import flops
from olmo_jax.logs.metrics import METRICS, read_jsonl
from olmo_jax.optimizer import cumulative_weight_decay
from olmo_jax.storage.run_files import is_run, run_config


def root(workdir: epath.Path, run: str, config: TrainConfig) -> str:
    """Return the id of the run that a run descends from: itself, unless it is a branch.

    If an ancestor in another working directory is gone, this is the first one that is known only by its id.
    """
    while config.branch.parent:
        run, workdir = config.branch.run, parent_workdir(workdir, config)
        if not is_run(workdir, run):
            break
        config = run_config(workdir, run)
    return run


def trained_before(workdir: epath.Path, config: TrainConfig) -> dict[str, Any]:
    """Return tokens, training_flops and weight_decay_dose of a run's ancestors until it starts; 0 without any.

    They are None where an ancestor doesn't say: of an imported run, at most the tokens are known.
    """
    branch = config.branch
    if not branch.parent:
        return dict.fromkeys(_COUNTS, 0)
    folder = parent_workdir(workdir, config)
    if not is_run(folder, branch.run):
        return dict.fromkeys(_COUNTS) | {"tokens": branch.start_step * config.tokens_per_step}
    parent = run_config(folder, branch.run)
    if parent.imported:
        rows = {row["step"]: row for row in read_jsonl(folder / "runs" / branch.run / METRICS)}
        return dict.fromkeys(_COUNTS) | {"tokens": rows.get(branch.step, {}).get("tokens")}
    return trained_until(parent, branch.step, trained_before(folder, parent))


_COUNTS = ("tokens", "training_flops", "weight_decay_dose")


def trained_until(config: TrainConfig, step: int, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of `trained_before` until a step of a run, from those until its start."""
    start = config.branch.start_step
    own = (
        (step - start) * config.tokens_per_step,
        float(flops.run_step(config)) * (step - start),
        cumulative_weight_decay(config, step) - cumulative_weight_decay(config, start),
    )
    return {k: None if before[k] is None else before[k] + x for k, x in zip(_COUNTS, own, strict=True)}
