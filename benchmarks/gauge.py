"""Compare raw and gauge-fixed metrics of an unembedding: the tables of docs/gauge.md.

    make demo && .venv/bin/python -m benchmarks.gauge demo

It prints Markdown, from the working directory of any finished sweep.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from geometry.gauge import gauge_fix
from geometry.probe import UNEMBEDDING_METRICS, summarize
from olmo_jax import model
from olmo_jax.checkpoint import load_run
from sweeps.analysis import final_rows

LOSS = "lm_loss/in_domain"


def markdown(rows: pd.DataFrame) -> str:
    """Return a Markdown table with four significant digits."""
    shown = rows.map(lambda v: f"{v:.4g}" if isinstance(v, float) else str(v))
    lines = [" | ".join(rows.columns), " | ".join("---" for _ in rows.columns), *map(" | ".join, shown.values.tolist())]
    return "\n".join(f"| {line} |" for line in lines)


def over_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Return for each metric its raw and fixed range, and three rank correlations over the finished runs."""
    rows = final_rows(table).rows
    summaries = []
    for metric in UNEMBEDDING_METRICS:
        raw, fixed = rows[f"unembedding/{metric}"], rows[f"unembedding_gauge_fixed/{metric}"]
        summaries.append(
            {
                "metric": metric,
                "raw": f"{raw.min():.3g} to {raw.max():.3g}",
                "gauge-fixed": f"{fixed.min():.3g} to {fixed.max():.3g}",
                "rho(raw, fixed)": raw.corr(fixed, method="spearman"),
                "rho(raw, loss)": raw.corr(rows[LOSS], method="spearman"),
                "rho(fixed, loss)": fixed.corr(rows[LOSS], method="spearman"),
            }
        )
    return pd.DataFrame(summaries)


def over_training(workdir: str, run: str) -> pd.DataFrame:
    """Return one run's effective rank and mean cosine at some of its probes."""
    with open(f"{workdir}/runs/{run}/metrics.jsonl") as file:
        rows = [json.loads(line) for line in file]
    probed = [row for row in rows if "unembedding/effective_rank_percent" in row]
    some = [probed[i] for i in np.unique(np.linspace(0, len(probed) - 1, 8).astype(int))]
    names = [(f"{t}/{m}", f"{label} {m}") for m in ("effective_rank_percent", "mean_cosine")
             for t, label in (("unembedding", "raw"), ("unembedding_gauge_fixed", "fixed"))]  # fmt: skip
    return pd.DataFrame([{"step": row["step"]} | {label: row[name] for name, label in names} for row in some])


def after_invisible_changes(workdir: str, run: str) -> pd.DataFrame:
    """Return metrics of a trained W and of W + 1 c^T and W + a 1^T, whose predictions are the same.

    The entries of c and a have the root mean square of those of W.
    """
    config, params = load_run(workdir, run)
    rng = np.random.default_rng(0)
    w_VD = np.asarray(model.unembedding(params))[: config.vocab_size]
    size = np.sqrt(np.mean(w_VD**2))
    c_D, a_V = size * rng.standard_normal(w_VD.shape[1]), size * rng.standard_normal((len(w_VD), 1))
    h_LD = model.hidden(config, params, rng.integers(0, config.vocab_size, (1, 64))).final_BLD[0]

    def log_probabilities(w: np.ndarray) -> jax.Array:
        return jax.nn.log_softmax(jnp.matmul(h_LD, jnp.float32(w).T, precision="highest"))

    summaries = []
    for name, w in (("W", w_VD), ("W + 1 c^T", w_VD + c_D), ("W + a 1^T", w_VD + a_V), ("W + both", w_VD + c_D + a_V)):
        raw, fixed = summarize(w), summarize(gauge_fix(w, "layer_norm"))
        summaries.append(
            {
                "unembedding": name,
                "R/D, % raw": float(raw["effective_rank_percent"]),
                "R/D, % fixed": float(fixed["effective_rank_percent"]),
                "mean cosine raw": float(raw["mean_cosine"]),
                "mean cosine fixed": float(fixed["mean_cosine"]),
                "I(W) raw": float(raw["partition_isotropy"]),
                "I(W) fixed": float(fixed["partition_isotropy"]),
                "largest change of a log-probability": float(
                    jnp.max(jnp.abs(log_probabilities(w) - log_probabilities(w_VD)))
                ),
            }
        )
    return pd.DataFrame(summaries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir")
    workdir = parser.parse_args().workdir
    table = pd.read_parquet(f"{workdir}/results.parquet")
    rows = final_rows(table).rows
    run = rows.sort_values(LOSS)["run_id"].iloc[0]
    print(f"Over the {len(rows)} finished runs:\n\n{markdown(over_runs(table))}\n")
    print(f"Over the training of {run}, the run with the lowest loss:\n\n{markdown(over_training(workdir, run))}\n")
    print(
        "Its unembedding after changes that leave its predictions unchanged:\n\n"
        f"{markdown(after_invisible_changes(workdir, run))}"
    )


if __name__ == "__main__":
    main()
