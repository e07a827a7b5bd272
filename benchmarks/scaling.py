"""Measure how the cost of a step grows with size, members, batch, length and vocabulary: the tables of docs/scaling.md.

    make setup && .venv/bin/python -m benchmarks.scaling

It measures a grid around one shape, fits seconds = sum of c_i x (the work of kind i in a step) with c_i >= 0, and
prints the fit's error at each point when that point is left out. Then it prints the FLOPs of paper A's suite, and the
time that the fit predicts for it.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import nnls

sys.path.append(str(Path(__file__).parents[1]))  # where `benchmarks` is, if this file is run by its path

from benchmarks.train import Case, Ours, in_turn, olmo
from olmo_jax.config import ModelConfig
from olmo_jax.config.presets import STAND_INS
from olmo_jax.execution import flops
from olmo_jax.logs.timing import matmul_peak
from olmo_jax.model import parameter_count

BASE = Case(olmo(4096, 128), steps=4)
GRID = {
    "base": BASE,
    "width 64": dataclasses.replace(BASE, model=olmo(4096, 64)),
    "width 192": dataclasses.replace(BASE, model=olmo(4096, 192)),
    "width 256": dataclasses.replace(BASE, model=olmo(4096, 256)),
    "layers 2": dataclasses.replace(BASE, model=olmo(4096, 128, 2)),
    "layers 8": dataclasses.replace(BASE, model=olmo(4096, 128, 8)),
    "heads 8": dataclasses.replace(BASE, model=olmo(4096, 128, heads=8)),
    "vocabulary 1,024": dataclasses.replace(BASE, model=olmo(1024, 128)),
    "vocabulary 16,384": dataclasses.replace(BASE, model=olmo(16384, 128)),
    "vocabulary 50,304": dataclasses.replace(BASE, model=olmo(50304, 128)),
    "batch 2": dataclasses.replace(BASE, batch=2),
    "batch 32": dataclasses.replace(BASE, batch=32),
    "length 64": dataclasses.replace(BASE, length=64),
    "length 512": dataclasses.replace(BASE, length=512),
    "members 2": dataclasses.replace(BASE, members=2),
    "members 4": dataclasses.replace(BASE, members=4),
}
KINDS = ("matmuls", "attention scores", "element-wise", "logits", "parameters")


def work(model: ModelConfig, batch: int, length: int, members: int = 1) -> np.ndarray:
    """Return the work of a step by kind: FLOPs of matmuls, and for the other kinds the numbers that it goes through."""
    tokens = batch * length
    counts = (
        flops.train_step(model, batch, length),
        batch * model.n_layers * model.n_heads * length * (length + 1) / 2,
        tokens * model.n_layers * (model.d_model + model.d_ff),
        tokens * model.padded_vocab_size,
        parameter_count(model)[0],
    )
    return members * np.array(counts, float)


def fit(work_PK: np.ndarray, seconds_P: np.ndarray) -> np.ndarray:
    """Return the seconds per unit of each kind, by least squares of relative errors."""
    scaled = work_PK / seconds_P[:, None]
    size = scaled.max(axis=0)
    return nnls(scaled / size, np.ones(len(seconds_P)))[0] / size


def paper_suite() -> list[tuple[str, float, float]]:
    """Return name, FLOPs and tokens of the 18 runs of each size in paper A, in sequences of 1,024 tokens.

    9 runs take 8B, 32B or 128B tokens, 3 each, and 9 take 32B.
    """
    tokens = (3 * (8 + 32 + 128) + 9 * 32) * 1e9
    return [(size, flops.train_step(m, 1, 1024) / 1024 * tokens, tokens) for size, m in STAND_INS.items()]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    peak = matmul_peak("float32")
    work_PK = np.array([work(c.model, c.batch, c.length, c.members) for c in GRID.values()])
    seconds = [in_turn(5, ours=Ours(case).seconds)["ours"] / case.steps for case in GRID.values()]
    seconds_P = np.array(seconds)
    left_out = []
    for i in range(len(GRID)):
        others = np.arange(len(GRID)) != i
        left_out.append(fit(work_PK[others], seconds_P[others]) @ work_PK[i] / seconds_P[i] - 1)
    print("\n| case | ms per step | tokens/s | of peak | the fit without it |\n| --- | --- | --- | --- | --- |")
    for (name, case), taken, row, error in zip(GRID.items(), seconds, work_PK, left_out, strict=True):
        rate = case.tokens / taken
        print(f"| {name} | {1e3 * taken:.1f} | {rate:,.0f} | {row[0] / taken / peak:.0%} | {error:+.0%} |")
    units = fit(work_PK, seconds_P)
    shares = units * work_PK[0] / (units @ work_PK[0])
    print("\nOf the base: " + ", ".join(f"{kind} {share:.0%}" for kind, share in zip(KINDS, shares, strict=True)))
    print(f"Median error of a point left out: {np.median(np.abs(left_out)):.0%}, largest {np.abs(left_out).max():.0%}")
    print("\n| size | tokens of 18 runs | FLOPs of 18 runs | years on this machine |\n| --- | --- | --- | --- |")
    for size, work_done, tokens in paper_suite():
        step = units @ work(STAND_INS[size], 128, 1024)
        years = step * tokens / (128 * 1024) / (365 * 24 * 3600)
        print(f"| {size} | {tokens:.3g} | {work_done:.3g} | {years:,.0f} |")
    print(f"\nThe suite: {sum(row[1] for row in paper_suite()):.3g} FLOPs in matmuls; peak here {peak:.3g} FLOP/s")


if __name__ == "__main__":
    main()
