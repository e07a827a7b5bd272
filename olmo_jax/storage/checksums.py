"""Checksums of a stack's arrays, by path and member: a checkpoint that reads without error may still be damaged."""

from typing import Any

import jax
import numpy as np
from etils import epath

from olmo_jax.errors import CheckpointError
from olmo_jax.execution import processes, sharding


def checksums(stack: Any) -> dict[str, list[int]]:
    """A number of each array and member that a changed bit changes, whatever devices the stack lies on."""
    found = processes.fetch(_checksum_each(stack))
    return {sharding.path_name(path): x_M.tolist() for path, x_M in jax.tree_util.tree_leaves_with_path(found)}


@jax.jit
def _checksum_each(stack: Any) -> Any:
    def of_members(x: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").reshape(len(x), -1).astype("uint32")
        # Odd factors: no change of a single word is lost, and words that changed places are told.
        return jax.numpy.sum(words * (2 * jax.lax.iota("uint32", words.shape[1]) + 1)[None], axis=1, dtype="uint32")

    return jax.tree.map(of_members, stack)


def check_member(checkpoint: epath.Path, item: str, arrays: Any, saved: dict[str, list[int]], place: int) -> None:
    """Raises CheckpointError if one member's arrays of an item aren't those that were saved."""
    # Checksums are by path in the state, of which the item "moments" is all but the parameters.
    for path, x in jax.tree_util.tree_leaves_with_path({"params": arrays} if item == "params" else arrays):
        words = np.ascontiguousarray(x).view(f"uint{8 * x.dtype.itemsize}").reshape(-1).astype(np.uint32)
        total = np.sum(words * (2 * np.arange(words.size, dtype=np.uint32) + 1), dtype=np.uint32)
        if saved.get(sharding.path_name(path), [])[place : place + 1] != [total]:
            raise CheckpointError(
                f"{checkpoint}: {sharding.path_name(path)} isn't what was saved; put it back from a copy, or move it "
                "away and delete status.json of its runs to have it trained again"
            )
