"""What a call of several steps is fed: a batch a step and member, as tokens or, better, as numbers of windows.

Training tokens that fit lie on the device once, as a table; a batch is then its windows' numbers, `[K, M, B]` for K
steps and M members. Else its tokens come along, `[K, M, B, L + 1]`.
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

# Of a table: little beside an accelerator's memory, and its places fit into int32.
_MOST_BYTES = 2**30


class BatchLoader:
    """The batches of a cohort; each stream that members share is read once.

    Args:
      configs: of the members. most_bytes: of a table on the device; more stays on the host.

    Attributes:
      table: training tokens on every device of the mesh, or None.
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
        """The batches of `count` steps after step number `step` for the members at `places`, filled up to K steps."""
        keys = [self._keys[i] for i in sharding.pad(places, self._mesh)]
        read = {key: [self._streams[key][step + i] for i in range(count)] for key in set(keys)}
        batches = np.stack([np.stack([read[key][i] for key in keys]) for i in range(count)])
        filled = np.concatenate([batches, np.repeat(batches[-1:], self._steps - count, axis=0)]).astype(np.int32)
        return sharding.put(self._mesh, _spec(self.table is not None), filled)


def _stream(index: TokenIndex, config: TrainConfig, numbers: bool) -> Any:
    """A member's batches by step: numbers of windows, or their tokens."""
    data, seed = config.data, config.data_seed
    if data.is_arithmetic:
        return arithmetic.Batches(data.arithmetic, data.batch_size, seed)
    stream = window_order if numbers else train_windows
    return stream(index, data.train_domains, data.sequence_length, data.batch_size, seed)


def struct(mesh: Mesh, steps: int, members: int, batch_size: int, length: int, windows: bool) -> jax.ShapeDtypeStruct:
    """Shape and place of what a call is fed."""
    shape = (steps, members, batch_size) if windows else (steps, members, batch_size, length + 1)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, _spec(windows)))


def tokens(table: Array | None, batch: Array, length: int, stride: int) -> Array:
    """The `[B, L + 1]` tokens of one member's batch, whichever form it has; windows begin every `stride` tokens."""
    if table is None:
        return batch
    place_BL = batch[:, None] * stride + jnp.arange(length + 1)[None]
    return table[place_BL].astype(jnp.int32)


def _spec(windows: bool) -> PartitionSpec:
    return PartitionSpec(None, "member", "data", *([] if windows else [None]))
