"""Time training steps on random tokens, and large matmuls for comparison."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.gpu.machine import nominal_flops
from benchmarks.gpu.part import Column

# What `rates` returns, as columns of a part's table.
RATES = (
    Column("tokens/s", "tokens_per_s", ",.0f"),
    Column("of nominal", "of_nominal", ".1%"),
    Column("of matmuls", "of_matmuls", ".1%"),
)


def case_of(
    width: int,
    members: int = 1,
    layers: int = 4,
    heads: int = 4,
    vocabulary: int = 4096,
    batch: int = 8,
    length: int = 256,
    steps: int = 32,
    dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Return a case of training; `steps` are taken in one call. The rest is as in ModelConfig and DataConfig."""
    return {
        "width": width,
        "members": members,
        "layers": layers,
        "heads": heads,
        "vocabulary": vocabulary,
        "batch": batch,
        "length": length,
        "steps": steps,
        "dtype": dtype,
    }


def stack(case: dict[str, Any], members: int | None = None) -> Any:
    """Return benchmarks.train's compiled stack for a case, with another number of members if it is given.

    Raises ConfigError if the device has too little memory for it.
    """
    from benchmarks.train import Ours

    return Ours(_train_case(case, case["members"] if members is None else members))


def work(case: dict[str, Any], members: int | None = None) -> int:
    """Return the FLOPs in matmuls of a step of the whole stack; see flops.train_step."""
    from olmo_jax.execution import flops

    whole = _train_case(case, case["members"] if members is None else members)
    return flops.train_step(whole.model, whole.batch, whole.length) * whole.members


def tokens(case: dict[str, Any]) -> int:
    """Return the tokens of a step of one member."""
    return case["batch"] * case["length"]


def model_of(case: dict[str, Any]) -> Any:
    """Return the ModelConfig of a case."""
    from olmo_jax.config import ModelConfig

    return ModelConfig(
        vocab_size=case["vocabulary"],
        d_model=case["width"],
        n_layers=case["layers"],
        n_heads=case["heads"],
        d_ff=4 * case["width"],
        compute_dtype=case["dtype"],
    )


def models(case: dict[str, Any]) -> tuple[Any, Any]:
    """Return the ModelConfig of a case and its members' parameters, untrained and stacked."""
    import jax
    import numpy as np

    from olmo_jax import model

    config = model_of(case)
    seeds_M = np.arange(case["members"], dtype=np.uint32)
    return config, jax.vmap(lambda seed: model.init(config, jax.random.key(seed)))(seeds_M)


def _train_case(case: dict[str, Any], members: int) -> Any:
    from benchmarks.train import Case

    return Case(model_of(case), case["batch"], case["length"], members, case["steps"])


def rates(case: dict[str, Any], step_seconds: float, members: int | None = None) -> dict[str, Any]:
    """Return the tokens per second of all members, and the FLOPs of their matmuls as shares of the device's.

    of_nominal: relative to the data sheet's bfloat16 (None if it isn't known). of_matmuls: relative to the rate of a
    large square matmul of random numbers, measured in this process.
    """
    import jax

    count = case["members"] if members is None else members
    rate, nominal = work(case, count) / step_seconds, nominal_flops(jax.devices()[0].device_kind)
    return {
        "tokens_per_s": count * tokens(case) / step_seconds,
        "of_nominal": rate / nominal if nominal else None,
        "of_matmuls": rate / matmul_flops(case["dtype"]),
        "step_ms": 1e3 * step_seconds,
        "matmul_flops": matmul_flops(case["dtype"]),
    }


def timed(call: Callable[[], float], seconds: float = 2.0, least: int = 3) -> tuple[float, int]:
    """Return the median of the seconds that `call` returns, and the number of calls.

    After one call that doesn't count, it is called until `seconds` have passed, and at least `least` times unless that
    takes more than three times `seconds`; on a CPU once.
    """
    import jax

    if jax.default_backend() == "cpu":
        seconds, least = 0.0, 0
    call()
    taken: list[float] = []
    while not taken or sum(taken) < seconds or (len(taken) < least and sum(taken) < 3 * seconds):
        taken.append(call())
    return statistics.median(taken), len(taken)


def finished(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes, until its results are computed."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


@functools.cache
def matmul_flops(dtype: str) -> float:
    """Return the FLOP/s of a large square matmul of normal random numbers, the median of several."""
    import jax
    import jax.numpy as jnp

    size = 256 if jax.default_backend() == "cpu" else 8192
    a_NN, b_NN = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in (0, 1))
    multiply = jax.jit(lambda a_NN, b_NN: jnp.matmul(a_NN, b_NN))
    seconds, _ = timed(lambda: finished(lambda: multiply(a_NN, b_NN)), seconds=0.2, least=10)
    return 2.0 * math.pow(size, 3) / seconds
