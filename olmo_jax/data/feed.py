"""What a call of several steps is fed: a batch a step and member, as tokens or, better, as numbers of windows.

Training tokens that fit lie on the device once, as a table; a batch is then its windows' numbers, `[K, M, B]` for K
steps and M members. Else its tokens come along, `[K, M, B, L + 1]`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from olmo_jax import sharding
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.windows import train_windows, training_tokens, window_order

# Of a table: little beside an accelerator's memory, and its places fit into int32.
_MOST_BYTES = 2**30


class Feed:
    """The batches of a cohort; each data seed's stream is read once.

    Args:
      seeds: the members' data seeds. most_bytes: of a table on the device; more stays on the host.

    Attributes:
      table: training tokens on every device of the mesh, or None.
    """

    def __init__(
        self,
        index: TokenIndex,
        domains: Sequence[str],
        sequence_length: int,
        batch_size: int,
        seeds: Sequence[int],
        mesh: Mesh,
        steps_per_call: int,
        most_bytes: int = _MOST_BYTES,
    ):
        self._mesh, self._seeds, self._steps = mesh, seeds, steps_per_call
        tokens = training_tokens(index, domains)
        fits = sum(a.nbytes for a in tokens) <= most_bytes
        self.table = sharding.put(mesh, PartitionSpec(), np.concatenate(tokens)) if fits else None
        stream = window_order if fits else train_windows
        self._streams = {seed: stream(index, domains, sequence_length, batch_size, seed) for seed in set(seeds)}

    def __call__(self, step: int, count: int, places: Sequence[int]) -> Array:
        """The batches of `count` steps after step number `step` for the members at `places`, filled up to K steps."""
        seeds = sharding.pad([self._seeds[i] for i in places], self._mesh)
        read = {seed: [self._streams[seed][step + i] for i in range(count)] for seed in set(seeds)}
        batches = np.stack([np.stack([read[seed][i] for seed in seeds]) for i in range(count)])
        filled = np.concatenate([batches, np.repeat(batches[-1:], self._steps - count, axis=0)]).astype(np.int32)
        return sharding.put(self._mesh, _spec(self.table is not None), filled)


def struct(mesh: Mesh, steps: int, members: int, batch_size: int, length: int, windows: bool) -> jax.ShapeDtypeStruct:
    """Shape and place of what a call is fed."""
    shape = (steps, members, batch_size) if windows else (steps, members, batch_size, length + 1)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, _spec(windows)))


def tokens(table: Array | None, batch: Array, length: int) -> Array:
    """The `[B, L + 1]` tokens of one member's batch, whichever form it has."""
    if table is None:
        return batch
    place_BL = batch[:, None] * length + jnp.arange(length + 1)[None]
    return table[place_BL].astype(jnp.int32)


def _spec(windows: bool) -> PartitionSpec:
    return PartitionSpec(None, "member", "data", *([] if windows else [None]))
