"""The courses of fine-tuning: what was measured of each model before, on the way and at the end, as one table."""

import re
from typing import Any

import pandas as pd
from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.evaluate import read_results
from olmo_jax.storage.run_files import known_runs

_COURSE = re.compile(r"finetune_(?P<target>.+)_lr(?P<rate>[^_]+)$")
COLUMNS = ("run_id", "step", "evaluation", "target", "learning_rate", "seed", "at")


def read_courses(workdir: epath.Path, config: EvalConfig) -> pd.DataFrame:
    """A row a (run, checkpoint, fine-tuning, seed, time): COLUMNS, then what was measured there.

    `at` counts steps of fine-tuning, 0 being before it. Losses are in nats per token; the probe's columns are
    `<target>/<metric>`. Empty, but with COLUMNS, where nothing was fine-tuned.
    """
    rows: list[dict[str, Any]] = []
    for run in known_runs(workdir):
        for step in results.steps(workdir, run):
            for name, result in read_results(workdir, run, step, config).items():
                found = _COURSE.match(name)
                if found is None or not {"along", "before"} <= result.keys():
                    continue
                of = {"run_id": run, "step": step, "evaluation": name, "target": found["target"]}
                of |= {"learning_rate": float(found["rate"])}
                for seed in sorted({row["seed"] for row in result["along"]}):
                    rows.append(of | {"seed": seed, "at": 0.0} | _plain(result["before"]))
                rows += [of | {"seed": row["seed"], "at": row["step"]} | _plain(row) for row in result["along"]]
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.DataFrame(rows).sort_values(["run_id", "step", "evaluation", "seed", "at"], ignore_index=True)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key.removeprefix("geometry/"): value for key, value in row.items() if key not in ("seed", "step", "tokens")}
    # What the fine-tuning was told to reach has the name of a column that says on what.
    return {("target/loss" if key == "target" else key): value for key, value in kept.items()}
