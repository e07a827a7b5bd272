"""What a run and its ancestors were trained on together: a branch continues its parent's tokens, FLOPs and decay."""

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


def trained_until(workdir: epath.Path, run: str, config: TrainConfig, step: int) -> dict[str, Any]:
    """Return tokens, training_flops and weight_decay_dose until a step, counted from the root.

    They are None where an ancestor doesn't say: of an imported run, at most the tokens are known.
    """
    if config.imported:
        rows = {row["step"]: row for row in read_jsonl(workdir / "runs" / run / METRICS)}
        return {"tokens": rows.get(step, {}).get("tokens"), "training_flops": None, "weight_decay_dose": None}
    branch, start = config.branch, config.branch.start_step
    own = {
        "tokens": (step - start) * config.tokens_per_step,
        "training_flops": float(flops.run_step(config)) * (step - start),
        "weight_decay_dose": cumulative_weight_decay(config, step) - cumulative_weight_decay(config, start),
    }
    if not branch.parent:
        return own
    folder = parent_workdir(workdir, config)
    if not is_run(folder, branch.run):
        return own | {"tokens": step * config.tokens_per_step, "training_flops": None, "weight_decay_dose": None}
    before = trained_until(folder, branch.run, run_config(folder, branch.run), branch.step)
    return {name: None if before[name] is None else before[name] + value for name, value in own.items()}
