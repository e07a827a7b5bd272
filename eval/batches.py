"""Run batches through a compiled function; on a CPU, as many concurrently as it has cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from olmo_jax.config import ModelConfig
from olmo_jax.console import progress
from olmo_jax.execution.cores import cores

# Upper bound on the elements of the widest activations over all concurrent batches: half a GiB in float32.
_MOST_ACTIVATIONS = 2**27


def over_batches(config: ModelConfig, call: Callable[..., Any], batches: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Return the results of a compiled function of arrays for each batch, in order, as numpy arrays.

    XLA runs the loop over members on about one core, so on a CPU several batches run concurrently; the first batch of
    a new shape compiles the program while others of that shape wait. The first array of a batch holds its tokens,
    `[B, L]`.
    """
    at_once = _at_once(config, max(batch[0].size for batch in batches))
    if at_once == 1 and jax.default_backend() != "cpu":  # an accelerator computes one batch while the next is sent
        return jax.device_get([call(*batch) for batch in batches])
    with progress("  batches of text", len(batches), within=True) as show, ThreadPoolExecutor(at_once) as pool:
        results = []
        for result in pool.map(lambda batch: jax.device_get(call(*batch)), batches):
            results.append(result)
            show(len(results), "")
        return results


def _at_once(config: ModelConfig, tokens: int) -> int:
    """Return how many batches of `tokens` tokens run concurrently."""
    if jax.default_backend() != "cpu":
        return 1
    return max(1, min(cores(), _MOST_ACTIVATIONS // (tokens * config.d_ff)))
