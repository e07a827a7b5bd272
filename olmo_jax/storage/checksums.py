"""Checksums of a stack's arrays, by path and member, since a damaged checkpoint may be read without an error."""

from typing import Any

import jax
import numpy as np
from etils import epath

from olmo_jax.errors import CheckpointError
from olmo_jax.execution import processes, sharding


def checksums(stack: Any) -> dict[str, list[int]]:
    """Return one checksum per array and member, independent of the devices that hold the stack.

    Any change of a single bit changes it.
    """
    sums = processes.fetch(_checksum_each(stack))
    return {sharding.path_name(path): x_M.tolist() for path, x_M in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _checksum_each(stack: Any) -> Any:
    def per_member(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").reshape(len(x), -1).astype("uint32")
        # Odd factors detect any change of a single word, and words that are swapped.
        return jax.numpy.sum(words * (2 * jax.lax.iota("uint32", words.shape[1]) + 1)[None], axis=1, dtype="uint32")

    return jax.tree.map(per_member, stack)


def check_member(checkpoint: epath.Path, item: str, arrays: Any, saved: dict[str, list[int]], place: int) -> None:
    """Raise CheckpointError if the checksums of one member's arrays of an item differ from those saved."""
    # Checksums are keyed by path in the state; the item "moments" holds all of it but the parameters.
    for path, x in jax.tree_util.tree_leaves_with_path({"params": arrays} if item == "params" else arrays):
        words = np.ascontiguousarray(x).view(f"uint{8 * x.dtype.itemsize}").reshape(-1).astype(np.uint32)
        total = np.sum(words * (2 * np.arange(words.size, dtype=np.uint32) + 1), dtype=np.uint32)
        if saved.get(sharding.path_name(path), [])[place : place + 1] != [total]:
            raise CheckpointError(
                f"{checkpoint}: the checksum of {sharding.path_name(path)} doesn't match the one saved; put the "
                "checkpoint back from a copy, or move it away and delete status.json of its runs to train them again"
            )
