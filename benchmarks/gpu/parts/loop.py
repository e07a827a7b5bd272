"""Measure the same models one after another: a Python loop over single models that share one compiled step."""

import functools
import json
import time
from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.part import Column
from benchmarks.gpu.parts import cohorts

NAME = "loop"
TITLE = "A Python loop over single models: `K1` takes one step per call, the others as many as the cohort."
VERSION = 1
NEEDS: tuple[str, ...] = ()
COLUMNS = (
    *training.RATES,
    Column("ms per step of all models", "step_ms", ".2f"),
    Column("s compiling", "compile_s", ".0f"),
)


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"d16_M2_K1": cohorts.tiny(members=2) | {"steps": 1}}
    full = {}
    for width, (_, steps) in cohorts.WIDTHS.items():
        for k in (1, steps):
            for members in cohorts.MEMBERS:
                full[f"d{width}_M{members}_K{k}"] = cohorts.of_width(width, members) | {"steps": k}
    return full


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Time one compiled program with a state per model; every model's call is sent before any is waited for."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    ours = _alone(json.dumps(case | {"members": 1}))
    states = [jax.tree.map(jnp.copy, ours.state) for _ in range(case["members"])]
    count, rounds = np.int32(case["steps"]), max(1, 32 // (case["steps"] * case["members"]))

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(rounds):
            for m in range(len(states)):
                states[m], metrics = ours.program.steps(states[m], ours.program.hyper, None, ours.fed, count)
        jax.block_until_ready((states, metrics))
        return time.perf_counter() - start

    taken, repeats = training.timed(seconds)
    return training.rates(case, taken / (rounds * case["steps"])) | {
        "compile_s": ours.compile_seconds,
        "repeats": repeats,
    }


@functools.lru_cache(maxsize=1)
def _alone(case: str) -> Any:
    """Return one model's compiled steps; cached, for cases that differ only in the number of models."""
    shape = json.loads(case)
    training.matmul_flops(shape["dtype"])  # while there is room beside the stack
    return training.stack(shape)
