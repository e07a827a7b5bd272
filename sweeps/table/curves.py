"""Read fine-tuning curves: what was measured of each model before, during and after fine-tuning, as one table."""

from typing import Any

import pandas as pd
from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.evaluate import read_results, settings_by_name
from olmo_jax.storage.run_files import known_runs
from sweeps.table.catalog import describe

COLUMNS = ("run_id", "step", "evaluation", "target", "learning_rate", "seed", "at")


def read_finetuning_curves(workdir: epath.Path, config: EvalConfig) -> pd.DataFrame:
    """Return one row per run, checkpoint, fine-tuning, seed and time: COLUMNS, then what was measured.

    `at` is the step of fine-tuning; 0 is before it. Losses are in nats per token; the probe's columns are
    `<target>/<metric>`. Empty, but with COLUMNS, if nothing was fine-tuned.
    """
    rows: list[dict[str, Any]] = []
    settings = settings_by_name(config)
    for run in known_runs(workdir):
        for step in results.steps(workdir, run):
            for name, result in read_results(workdir, run, step, settings).items():
                of = describe(f"{name}/target").of
                is_tuning = of.get("after") == "finetune" and of.get("rate") != "best"
                if not is_tuning or not {"along", "before"} <= result.keys():
                    continue
                key = {"run_id": run, "step": step, "evaluation": name, "target": of["target"]}
                key |= {"learning_rate": float(of["rate"])}
                for seed in sorted({row["seed"] for row in result["along"]}):
                    rows.append(key | {"seed": seed, "at": 0.0} | _plain(result["before"]))
                rows += [key | {"seed": row["seed"], "at": row["step"]} | _plain(row) for row in result["along"]]
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.DataFrame(rows).sort_values(["run_id", "step", "evaluation", "seed", "at"], ignore_index=True)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key.removeprefix("geometry/"): value for key, value in row.items() if key not in ("seed", "step", "tokens")}
    # The loss on the fine-tuning's target is named like a loss on a text.
    return {("target/loss" if key == "target" else key): value for key, value in kept.items()}
