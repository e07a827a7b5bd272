"""One tidy table of a sweep: a row a (run, checkpoint), with its configuration, geometry and every loss."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
from etils import epath

from eval.config import EvalConfig
from eval.evaluate import read_results
from olmo_jax import checkpoint
from olmo_jax.config import TrainConfig, from_config_dict
from olmo_jax.metrics import METRICS, read_jsonl
from olmo_jax.model import parameter_count
from olmo_jax.optimizer import weight_decay_dose
from olmo_jax.train import read_status
from sweeps.plan import configuration, leaves

TABLE = "results.parquet"
_KNOWN_OF_IMPORTED = r"name|imported|model\.|data\.(name|corpus|train_domains|sequence_length)"


def build_table(workdir: epath.Path, config: EvalConfig) -> pd.DataFrame:
    """The table of a working directory, from its files alone; of the evaluations, those of `config`.

    Columns: run_id, cohort, configuration (the run less its seeds), step, final, tokens (seen by then), diverged_at,
    parameters, parameters_non_embedding, weight_decay_dose (by then); `config.<dotted key>`; `train/<metric>` of that
    step; `<target>/<metric>` of the probe, and `<target>_spread/<metric>` over its probe sets; `<evaluation>/<name>` in
    nats per token. What wasn't measured is missing, and so is how an imported run was trained; its tokens are those of
    its revision's name, rounded as they are there.
    """
    rows = [row for run in checkpoint.known_runs(workdir) for row in _rows_of(workdir, run, config)]
    table = pd.DataFrame(rows)
    if "diverged_at" in table:
        table["diverged_at"] = table["diverged_at"].astype("Int64")
    return table


def write_table(workdir: epath.Path, table: pd.DataFrame) -> None:
    """Writes results.parquet, whole or not at all."""
    path = workdir / TABLE
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(table.to_parquet(index=False))
    partial.replace(path)


def is_written(workdir: epath.Path, table: pd.DataFrame) -> bool:
    """Whether results.parquet holds this very table."""
    path = workdir / TABLE
    return path.exists() and path.read_bytes() == table.to_parquet(index=False)


def read_curves(workdir: epath.Path) -> dict[str, pd.DataFrame]:
    """Every run's metrics over training, by run id."""
    runs = checkpoint.known_runs(workdir)
    return {run: pd.DataFrame(read_jsonl(workdir / "runs" / run / METRICS)) for run in runs}


def _rows_of(workdir: epath.Path, run: str, evaluation: EvalConfig) -> list[dict[str, Any]]:
    record = json.loads((workdir / "runs" / run / "config.json").read_text())
    config = from_config_dict(TrainConfig, record["config"])
    total, inner = parameter_count(config.model)
    metrics = {row["step"]: row for row in read_jsonl(workdir / "runs" / run / METRICS)}
    members = checkpoint.member_lists(checkpoint.directory(workdir, record["folder"]))
    settings = {
        f"config.{key}": list(value) if isinstance(value, tuple) else value
        for key, value in leaves(dataclasses.asdict(config)).items()
        if not config.imported or re.match(_KNOWN_OF_IMPORTED, key)
    }

    def trained(step: int) -> dict[str, Any]:
        if config.imported:  # what its publisher told, if that
            return {"tokens": metrics.get(step, {}).get("tokens")}
        return {"tokens": step * config.tokens_per_step, "weight_decay_dose": weight_decay_dose(config, step)}

    return [
        {
            "run_id": run,
            "cohort": record["cohort"],
            "configuration": configuration(config),
            "step": step,
            "final": step == config.total_steps,
            "diverged_at": read_status(workdir, run).get("diverged_at"),
            "parameters": total,
            "parameters_non_embedding": inner,
        }
        | trained(step)
        | settings
        | _measured(metrics.get(step, {}))
        | _losses(read_results(workdir, run, step, evaluation))
        for step, runs in members.items()
        if run in runs
    ]


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl: the probe's columns have a target in their names, the training step's get `train`."""
    return {k if "/" in k else f"train/{k}": v for k, v in row.items() if k not in ("step", "tokens")}


def _losses(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{e}/{name}": value for e, result in results.items() for name, value in result["metrics"].items()}
