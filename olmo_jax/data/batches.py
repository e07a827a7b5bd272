"""Batches for a call of several steps: one batch per step and member, as window numbers or as tokens.

If the training tokens fit, each device holds them once, as a table, and batches are the numbers of their windows,
`[K, M, B]` for K steps and M members. Otherwise batches are the tokens themselves, `[K, M, B, L + 1]`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from olmo_jax.config import TrainConfig
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import arithmetic
from olmo_jax.data.windows import train_windows, training_tokens, window_order
from olmo_jax.execution import sharding

# The largest table: small compared to an accelerator's memory, and its positions fit into int32.
_MOST_BYTES = 2**30


class BatchLoader:
    """Loads the batches of a cohort; a stream that several members share is read once.

    Args:
      configs: the members' configurations.
      steps_per_call: K, the steps of one call.
      most_bytes: size of the largest table; more training tokens than that stay on the host.

    Attributes:
      table: the training tokens on every device of the mesh; None if batches contain tokens.
    """

    def __init__(
        self,
        index: TokenIndex,
        configs: Sequence[TrainConfig],
        mesh: Mesh,
        steps_per_call: int,
        most_bytes: int = _MOST_BYTES,
    ):
        self._mesh, self._steps = mesh, steps_per_call
        tokens = training_tokens(index, configs[0].data.train_domains)
        fits = configs[0].data.is_arithmetic or sum(a.nbytes for a in tokens) <= most_bytes
        self.table = sharding.put(mesh, PartitionSpec(), np.concatenate(tokens)) if fits else None
        self._keys = [(config.data_seed, config.data.arithmetic.train_fraction) for config in configs]
        self._streams = {key: _stream(index, config, fits) for key, config in zip(self._keys, configs, strict=True)}

    def __call__(self, step: int, count: int, places: Sequence[int]) -> Array:
        """Return the batches of `count` steps for the members at `places`, int32; the last one is repeated up to K.

        Args:
          step: the number of steps taken so far.
        """
        keys = [self._keys[i] for i in sharding.pad(places, self._mesh)]
        read = {key: [self._streams[key][step + i] for i in range(count)] for key in set(keys)}
        batches = np.stack([np.stack([read[key][i] for key in keys]) for i in range(count)])
        filled = np.concatenate([batches, np.repeat(batches[-1:], self._steps - count, axis=0)]).astype(np.int32)
        return sharding.put(self._mesh, _spec(self.table is not None), filled)


def _stream(index: TokenIndex, config: TrainConfig, window_numbers: bool) -> Any:
    """Return a member's batches, indexed by step: the numbers of windows, or their tokens."""
    data, seed = config.data, config.data_seed
    if data.is_arithmetic:
        return arithmetic.Batches(data.arithmetic, data.batch_size, seed)
    stream = window_order if window_numbers else train_windows
    return stream(index, data.train_domains, data.sequence_length, data.batch_size, seed)


def struct(mesh: Mesh, steps: int, members: int, batch_size: int, length: int, windows: bool) -> jax.ShapeDtypeStruct:
    """Return the shape, dtype and sharding of a call's batches: of window numbers if `windows`, else of tokens."""
    shape = (steps, members, batch_size) if windows else (steps, members, batch_size, length + 1)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, _spec(windows)))


def tokens(table: Array | None, batch: Array, length: int, stride: int) -> Array:
    """Return the `[B, L + 1]` tokens of one member's batch.

    Args:
      table: the tokens in which `batch` names windows; None if `batch` contains the tokens.
      length: L. stride: tokens from the start of one window to the start of the next.
    """
    if table is None:
        return batch
    position_BL = batch[:, None] * stride + jnp.arange(length + 1)[None]
    return table[position_BL].astype(jnp.int32)


def _spec(windows: bool) -> PartitionSpec:
    return PartitionSpec(None, "member", "data", *([] if windows else [None]))
