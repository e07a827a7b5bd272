"""Measure GPTQ: single matrices, those of a cohort side by side, and whole models calibrated block by block."""

from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.part import Column
from benchmarks.gpu.parts import cohorts

NAME = "gptq"
TITLE = "GPTQ at 4 bits: matrices `inputs x outputs`, and whole models on 16,384 tokens of calibration."
VERSION = 1
NEEDS: tuple[str, ...] = ()
COLUMNS = (Column("s", "seconds", ".3f"), Column("s for the first call", "first_s", ".1f"))


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"d16_M2": cohorts.tiny(members=2) | {"of": "models", "sequences": 2}}
    calibrated = {"of": "models", "sequences": 16, "length": 1024}
    return {
        "512x512": _matrices(512, 512),
        "2048x2048": _matrices(2048, 2048),
        "2048x2048_g128": _matrices(2048, 2048, group_size=128),
        "64x256_M128": _matrices(64, 256, members=128),
        "d64_M32": cohorts.of_width(64, 32) | calibrated,
        "d768_M1": cohorts.of_width(768, 1) | calibrated | {"layers": 8, "vocabulary": 50280},
    }


def _matrices(inputs: int, outputs: int, members: int = 1, group_size: int = 0) -> dict[str, Any]:
    return {"of": "matrices", "inputs": inputs, "outputs": outputs, "members": members, "group_size": group_size}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    call = _of_matrices(case) if case["of"] == "matrices" else _of_models(case)
    first = training.finished(call)
    seconds, repeats = training.timed(lambda: training.finished(call))
    return {"seconds": seconds, "first_s": first, "repeats": repeats}


def _of_matrices(case: dict[str, Any]) -> Any:
    import functools

    import jax

    from benchmarks.gptq import problem
    from eval.gptq import gptq_with_damping

    w_MIO, hessian_MII = problem(case["inputs"], case["outputs"], members=case["members"])
    groups = {"granularity": "group", "group_size": case["group_size"]} if case["group_size"] else {}
    quantize = jax.jit(jax.vmap(functools.partial(gptq_with_damping, bits=4, **groups)))
    return lambda: quantize(w_MIO, hessian_MII)


def _of_models(case: dict[str, Any]) -> Any:
    import numpy as np

    from eval.evaluators.calibrate import Method, gptq_params
    from eval.evaluators.quantization import SCOPES

    model, params_M = training.models(case)
    size = (case["sequences"], case["length"])
    tokens_NL = np.random.default_rng(0).integers(0, case["vocabulary"], size).astype(np.int32)
    return lambda: gptq_params(model, params_M, tokens_NL, SCOPES["blocks"], Method(4), batch_size=8)
