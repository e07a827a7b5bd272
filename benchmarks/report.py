"""Measure the time and memory that a report of a sweep takes: `python -m benchmarks.report [runs] [checkpoints]`.

The sweep is made up: 6 sizes, 18 settings each, with as many geometry, loss and evaluation columns as a real one.
The report is to stay within 15 seconds and 0.4 GB for 108 runs of 100 checkpoints.
"""

import argparse
import resource
import tempfile
import time

import numpy as np
import pandas as pd

from sweeps.analysis.results import analyze
from sweeps.report import write_all
from sweeps.studies import registered_studies

LIMITS = {"seconds": 15.0, "gigabytes": 0.4}
TARGETS = ("unembedding", "unembedding_gauge_fixed", "final_states")
METRICS = ("effective_rank", "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy", "isoscore")
DOMAINS = ("in_domain", "out_of_domain", "macro", *(f"domain_{i}" for i in range(8)))
AFTER = (
    "round_to_nearest_3",
    "round_to_nearest_4",
    "gptq_3",
    "gptq_4",
    "finetune_code_lr0.0003",
    "finetune_code_lr0.003",
)
PLACES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def made_up(runs: int, checkpoints: int, steps: int = 2000) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Return a table with one row per run and checkpoint, and the curve of each run over `steps` steps."""
    rng = np.random.default_rng(0)
    sizes, batches, decays = (256, 384, 512, 640, 768, 1024), (32, 64, 128, 256, 512), (0.01, 0.1, 0.5)
    frames, curves = [], {}
    for i in range(runs):
        size, batch, decay = sizes[i % 6], batches[i // 6 % 5], decays[i // 30 % 3]
        run = f"made-up-{i:03d}"
        at = np.arange(1, steps + 1)
        loss = 3 + 7 * at**-0.3 - 0.3 * np.log(size / 256) + 0.1 * (np.log2(batch) - 7) ** 2
        rank = 60 - 20 * at / steps + 5 * np.log2(batch / 32) + 8 * np.log10(decay / 0.01)
        geometry = {
            f"{t}/{m}": rank * (1 + j / 10) + rng.normal(size=steps) for t in TARGETS for j, m in enumerate(METRICS)
        }
        spectrum = {f"unembedding_spectrum/{p}": 10 * p**-0.5 + 0 * at for p in PLACES if p <= size}
        probed = pd.DataFrame(geometry | spectrum)
        probed[at % 20 != 0] = np.nan
        curves[run] = pd.DataFrame({"step": at, "tokens": at * batch * 1024, "loss": loss}).join(probed)
        step = np.unique(np.linspace(steps / checkpoints, steps, checkpoints).round().astype(int))
        rows = pd.DataFrame({"run_id": run, "cohort": f"d{size}", "configuration": f"c{i}", "step": step})
        rows["final"], rows["diverged_at"] = step == steps, pd.array([pd.NA] * len(step), "Int64")
        rows["parameters"], rows["parameters_non_embedding"] = 20 * size**2, 16 * size**2 * 8
        rows["tokens"] = step * batch * 1024
        rows["training_flops"] = 6 * (rows["parameters"] + rows["parameters_non_embedding"]) * rows["tokens"]
        rows["config.model.d_model"], rows["config.data.batch_size"] = size, batch
        rows["config.optimizer.weight_decay"], rows["config.tokens"] = decay, steps * batch * 1024
        probed_values = curves[run][[*geometry]].ffill().iloc[step - 1].reset_index(drop=True)
        of = loss[step - 1]
        losses = {f"lm_loss/{d}": of + 0.1 * j + 0.01 * rng.normal(size=len(step)) for j, d in enumerate(DOMAINS)}
        last = np.where(step == steps, 1.0, np.nan)
        after = {
            f"{e}/{d}": last * (of + 0.5 * rng.random()) for e in AFTER for d in (*DOMAINS, "target", "forgetting")
        }
        frames.append(pd.concat([rows, probed_values, pd.DataFrame(losses | after)], axis=1))
    return pd.concat(frames, ignore_index=True), curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=int, nargs="?", default=108)
    parser.add_argument("checkpoints", type=int, nargs="?", default=100)
    asked = parser.parse_args()
    runs, checkpoints = asked.runs, asked.checkpoints
    table, curves = made_up(runs, checkpoints)
    start = time.perf_counter()
    results = analyze(table, curves, studies={study.name: study.analyze for study in registered_studies()})
    answered = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        page = write_all(folder, results, {"command": "python -m benchmarks.report"})
        size = page.stat().length / 1e6
    end = time.perf_counter()
    used = {"seconds": end - start, "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}
    print(f"{runs} runs x {checkpoints} checkpoints, {len(table.columns)} columns; a page of {size:.1f} MB")
    print(f"statistics {answered - start:.1f} s, page, figures and tables {end - answered:.1f} s")
    for name, limit in LIMITS.items():
        print(f"{name}: {used[name]:.2g}, {used[name] / limit:.2f} of the limit {limit:g}")


if __name__ == "__main__":
    main()
