"""An adapter for Orbax: options, layout of arrays, and errors that say what to do.

Orbax has no option for file systems without locks, fails on damaged metadata that isn't needed, and raises many kinds
of exceptions for missing or damaged files; all of that is handled in this file.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath, epy
from jax.sharding import Mesh

from olmo_jax.console import say
from olmo_jax.errors import CheckpointError
from olmo_jax.execution import sharding
from olmo_jax.files import DamagedFileError, read_json

with epy.lazy_imports():  # saves commands that only list checkpoints a third of a second
    import orbax.checkpoint as ocp

_METADATA = "_CHECKPOINT_METADATA"

# Errors that may be temporary: disk errors other than a missing file, and a full device.
_TEMPORARY = (OSError, MemoryError, jax.errors.JaxRuntimeError)


def open_manager(path: epath.Path) -> "ocp.CheckpointManager":
    """Open Orbax's manager of the checkpoints in an existing folder.

    Raises CheckpointError for damaged checkpoint metadata, on which Orbax would fail.
    """
    for file in _metadata_files(path):
        _check_metadata(file)
    handlers = {
        "params": ocp.PyTreeCheckpointHandler(),
        "moments": ocp.PyTreeCheckpointHandler(),
        "members": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(path, item_handlers=handlers, options=ocp.CheckpointManagerOptions(create=False))


def lock_by_files() -> None:
    """Make tensorstore use lock files for the rest of this process.

    Without them it can't write an OCDBT manifest if the file system has no locks ("Function not implemented"). Orbax
    has no option for this: all of its contexts are derived from the one that is changed here.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils  # private, so imported only if needed

    tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT["file_io_locking"] = {"mode": "lockfile"}


def _metadata_files(path: epath.Path) -> list[epath.Path]:
    return [step / _METADATA for step in path.iterdir() if step.name.isdigit()]


def _check_metadata(path: epath.Path) -> None:
    """Raise CheckpointError if Orbax's own metadata of a checkpoint, which aren't needed, are damaged."""
    remedy = "delete that file; the checkpoint can be read without it"
    try:
        metadata = read_json(path, remedy)
    except FileNotFoundError:
        return
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    sections = ("item_handlers", "metrics", "performance_metrics", "custom_metadata")
    stamps = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
    valid = (
        all(isinstance(metadata.get(key, {}), dict) for key in sections)
        and all(isinstance(handler, str) for handler in metadata.get("item_handlers", {}).values())
        and all(metadata.get(key) is None or type(metadata[key]) is int for key in stamps)
        and not metadata.get("performance_metrics")
    )
    if not valid:
        raise CheckpointError(f"{path}: isn't metadata that Orbax writes; {remedy}")


def drop_damaged_metadata(path: epath.Path) -> None:
    """Delete damaged Orbax metadata of the checkpoints in a folder, and print a line for each."""
    for file in _metadata_files(path):
        try:
            _check_metadata(file)
        except CheckpointError as error:
            file.unlink()
            say(f"{error}; it has been deleted")


def one_chunk_per_member(tree: Any) -> Any:
    """Return Orbax's options for saving stacked arrays `[M, ...]` so that one member can be read without the others."""

    def save_args(x: jax.Array) -> "ocp.SaveArgs":
        member_bytes = x.nbytes // x.shape[0]
        # Below 1 MiB Orbax warns that small chunks are read slowly, and reading all members costs little.
        return ocp.SaveArgs(chunk_byte_size=member_bytes, shard_axes=(0,)) if member_bytes >= 2**20 else ocp.SaveArgs()

    return jax.tree.map(save_args, tree)


def restore_args_onto(mesh: Mesh, tree: Any, fsdp: bool) -> "ocp.args.PyTreeRestore":
    """Return Orbax's options for restoring stacked arrays, with the shapes in `tree`, sharded over `mesh`."""
    shardings = sharding.stack_shardings(mesh, tree, fsdp)
    structs = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
    return ocp.args.PyTreeRestore(structs, restore_args=ocp.checkpoint_utils.construct_restore_args(structs))


@contextlib.contextmanager
def reading_errors(checkpoint: epath.Path) -> Iterator[None]:
    """Raise CheckpointError for any exception that Orbax raises for a missing or damaged checkpoint.

    Errors that may be temporary, such as a full device, are raised unchanged.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # for missing or damaged files Orbax raises anything, even a bare Exception
        if isinstance(error, _TEMPORARY) and not isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(
            f"{checkpoint}: can't be read: {first_line(error)}; put it back from a copy, or choose another step"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 300 characters, or the name of its class."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
