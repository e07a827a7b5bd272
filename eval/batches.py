"""Batches through compiled programs: on a CPU as many at a time as it has cores."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from olmo_jax.config import ModelConfig

# Of the widest activations of the batches that run at a time, in numbers: half a GiB in float32.
_MOST_ACTIVATIONS = 2**27


def over_batches(config: ModelConfig, call: Callable[..., Any], batches: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What a compiled function gives for each batch, in order, as numpy arrays.

    XLA runs the loop over members on about one core, so a CPU takes several batches at a time. The first batch of each
    shape runs on its own, so that nothing is compiled twice. The first array of a batch has its rows, `[B, L]`.
    """
    at_once = _at_once(config, max(batch[0].size for batch in batches))
    if at_once == 1:
        return jax.device_get([call(*batch) for batch in batches])
    results: list[Future[Any]] = []
    compiled: set[Any] = set()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for batch in batches:
                shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
                results.append(pool.submit(lambda batch: jax.device_get(call(*batch)), batch))
                if shapes not in compiled:
                    results[-1].result()
                    compiled.add(shapes)
            return [result.result() for result in results]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _at_once(config: ModelConfig, tokens: int) -> int:
    """How many batches of so many tokens run at a time."""
    if jax.default_backend() != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _MOST_ACTIVATIONS // (tokens * config.d_ff)))
