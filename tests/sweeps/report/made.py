"""Synthetic analysis results of any size, from which figures and tables of papers are drawn without an analysis."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from sweeps.analysis import estimate
from sweeps.table.columns import controls_of, final_rows

_UNKNOWN = {"lead": estimate.nothing(0), "association": estimate.nothing(0)}
EVIL = "a_$b$^{\\x}<b>&\"'%#~"
METRICS = ["unembedding/effective_rank_percent", "unembedding/mean_cosine", "final_states/effective_rank"]
LOSSES = ["lm_loss/in_domain", "gptq_3/in_domain"]
METHODS = ("raw", "partial rank", "partial factor", "incremental R2", "mixed effects")
ESTIMATE = ["estimate", "low", "high"]
COLUMNS = {
    "associations": ["metric", "target", "method", *ESTIMATE, "p_value", "q_value", "n", "seed_sds",
                     "variance_inflation", "with_diverged", "left_out", "note"],
    "variance": ["column", "setting", "share", "low", "high", "n", "note"],
    "prediction": ["target", "model", "features", "r2", "low", "high", "n", "note"],
    "importance": ["target", "model", "feature", "importance", "low", "high"],
    "early": ["target", "share", "features", "r2", "low", "high", "n", "note"],
}  # fmt: skip
RUNS = ["run_id", "configuration", "best_step", "rise", "standard_error", "degraded", "collapse_step", "rank_percent",
        "low_rank", "lead"]  # fmt: skip
QUADRANTS = ["rank", "degraded", "runs", "configurations", "examples"]


def sweep(runs=24, checkpoints=3, seeds=2):
    """Two sizes x batch x decay; the loss is lowest at the middle batch, and the last run's name needs escaping."""
    rng = np.random.default_rng(0)
    names = [f"run{i}" for i in range(runs - 1)] + [EVIL]
    rows = []
    for i, name in enumerate(names):
        j = i // seeds
        size, batch, decay = (1_000_000, 64_000_000)[j % 2], (8, 32, 128)[j // 2 % 3], (0.1, 1.0)[j // 6 % 2]
        for checkpoint in range(1, checkpoints + 1):
            rank = 60 - 10 * decay + batch / 64 + rng.normal()
            loss = 5 + abs(np.log2(batch / 32)) / 10 - (size > 2e6) + 0.01 * rng.normal()
            rows.append(
                {
                    "run_id": name,
                    "configuration": f"c{j}",
                    "step": 100 * checkpoint,
                    "final": checkpoint == checkpoints,
                    "diverged_at": None,
                    "parameters_non_embedding": size,
                    "config.data.batch_size": batch,
                    "config.optimizer.weight_decay": decay,
                    "config.optimizer.schedule": ("cosine", "linear")[j // 3 % 2],
                    "unembedding/effective_rank_percent": rank,
                    "unembedding/mean_cosine": rng.random(),
                    "final_states/effective_rank": rng.random(),
                    "lm_loss/in_domain": loss,
                    "round_to_nearest_8/in_domain": loss,
                    "round_to_nearest_3/in_domain": loss + 0.5,
                    "gptq_3/in_domain": loss + 0.25,
                    "finetune_code_lr0.001/target": loss - 1,
                    "finetune_code_lr0.001/forgetting": 0.5,
                    "finetune_code_lr0.0001/target": loss - 0.5,
                    "finetune_code_lr0.0001/forgetting": 0.1,
                }
            )
    table = pd.DataFrame(rows)
    return table.assign(diverged_at=table["diverged_at"].astype("Int64"))


def curves_of(table, steps=200, places=(1, 2, 4, 8, 16)):
    """Metrics of every run; geometry is there at each 20th step."""
    at = np.arange(steps)
    curves = {}
    for i, run in enumerate(table["run_id"].unique()):
        curve = pd.DataFrame({"step": at, "tokens": at * 1024, "loss": 8.0 - 3 * at / steps + 0.01 * i})
        probed = {m: np.where(at % 20 == 0, 50 - at / steps + i, np.nan) for m in METRICS}
        probed |= {f"unembedding_spectrum/{k}": np.where(at % 20 == 0, 10.0 / k, np.nan) for k in places}
        curves[run] = pd.concat([curve, pd.DataFrame(probed)], axis=1)
        curves[run].loc[0, "loss"] = np.nan
    return curves


def answers(table=None, curves=None, **changes):
    """Return results with every part present; `changes` replaces some."""
    table = sweep() if table is None else table
    final = final_rows(table)
    parts = {
        "table": table,
        "curves": curves_of(table) if curves is None else curves,
        "final": final,
        "settings": controls_of(final.rows),
        "associations": associations(),
        "variance": variance(),
        "prediction": prediction(),
        "importance": importance(),
        "early": early(),
        "studies": {},
        "joined": {},
        "courses": pd.DataFrame(),
    }
    saturated = {} if "saturation" in changes else {"saturation": saturation(final.rows)}
    return SimpleNamespace(**(parts | saturated | changes))


def empty_answers(table=None, curves=None):
    """Return results without any value: every table has its columns and no row."""
    table = (
        pd.DataFrame(columns=["run_id", "configuration", "step", "final", "diverged_at"]) if table is None else table
    )
    nothing = {name: pd.DataFrame(columns=columns) for name, columns in COLUMNS.items()}
    none = SimpleNamespace(
        runs=pd.DataFrame(columns=RUNS),
        quadrants=pd.DataFrame(columns=QUADRANTS),
        median_rank=np.nan,
        **_UNKNOWN,
        note="no run has finished",
    )
    return answers(table, curves or {}, settings=[], saturation=none, **nothing)


def associations(metrics=METRICS, losses=LOSSES):
    """The estimates rise from -.9 in order of the rows; those of the factor form are missing."""
    rows = []
    for i, (metric, loss) in enumerate((m, t) for t in losses for m in metrics):
        for j, method in enumerate(METHODS):
            known = method != "partial factor"
            value = -0.9 + 0.1 * i + 0.01 * j if known else np.nan
            why = "" if known else "3 configurations are too few for 5 folds"
            numbers = [value, value - 0.1, value + 0.1, 0.01, 0.02]
            rows.append([metric, loss, method, *numbers, 24, 1.5, 2.0, value, 1, why])
    return pd.DataFrame(rows, columns=COLUMNS["associations"])


def variance():
    shares = {"config.data.batch_size": 0.5, "config.optimizer.weight_decay": 0.3, "seed": 0.15, "rest": 0.05}
    rows = [[c, s, x, x - 0.04, x + 0.04, 24, ""] for c in (METRICS[0], LOSSES[0]) for s, x in shares.items()]
    return pd.DataFrame(rows, columns=COLUMNS["variance"])


def prediction():
    rows = [
        [loss, model, features, 0.1 if "gain" in features else 0.5 + 0.1 * (features != "settings"), 0.3, 0.8, 24, ""]
        for loss in LOSSES
        for model in ("gradient boosting", "Gaussian process", "linear")
        for features in ("settings", "settings and geometry", "geometry's gain")
    ]
    return pd.DataFrame(rows, columns=COLUMNS["prediction"])


def importance():
    rows = [
        [LOSSES[0], "linear", feature, value, value - 0.05, value + 0.05]
        for feature, value in [(METRICS[0], 0.1), ("config.data.batch_size", 0.4), ("parameters", 0.2)]
    ]
    return pd.DataFrame(rows, columns=COLUMNS["importance"])


def early():
    rows = [
        [LOSSES[0], share, features, share + 0.1, share, share + 0.2, 24, ""]
        for features in ("settings", "settings and loss", "settings and geometry", "all", "geometry's gain")
        for share in (0.1, 0.25, 0.5)
    ]
    return pd.DataFrame(rows, columns=COLUMNS["early"])


def saturation(rows):
    degraded = np.arange(len(rows)) % 3 == 0
    rank = rows["unembedding/effective_rank_percent"].to_numpy(dtype=float)
    low = rank <= np.median(rank)
    runs = pd.DataFrame(
        {
            "run_id": rows["run_id"],
            "configuration": rows["configuration"],
            "best_step": 200,
            "rise": np.where(degraded, 0.3, 0.0),
            "standard_error": 0.01,
            "degraded": degraded,
            "collapse_step": np.nan,
            "rank_percent": rank,
            "low_rank": low,
            "lead": np.nan,
        }
    )
    quadrants = pd.DataFrame(
        [
            [name, bad, int(these.sum()), int(these.sum()), list(runs["run_id"][these][:2])]
            for name, is_low in (("low", True), ("high", False))
            for bad in (True, False)
            for these in [(low == is_low) & (degraded == bad)]
        ],
        columns=QUADRANTS,
    )
    return SimpleNamespace(
        runs=runs,
        quadrants=quadrants,
        median_rank=float(np.median(rank)),
        **_UNKNOWN,
        note="",
    )
