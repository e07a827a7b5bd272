"""What checkpoints need of Orbax beyond its defaults: options, layout, and errors that say what to do.

Orbax has no option for some file systems, fails on damaged metadata that nothing here needs, and raises anything for
files that are gone or damaged; all of that is handled in this file.
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

with epy.lazy_imports():  # a third of a second, for commands that only list checkpoints
    import orbax.checkpoint as ocp

_METADATA = "_CHECKPOINT_METADATA"

# Troubles with a disk, other than a file that isn't there, and a device that is full may pass.
_PASSING = (OSError, MemoryError, jax.errors.JaxRuntimeError)


def open_manager(path: epath.Path) -> "ocp.CheckpointManager":
    """Open Orbax's manager of the checkpoints in a folder, which must be there.

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
    """Make tensorstore use lock files, in this process from now on.

    Without them it can't write an OCDBT manifest where the file system has no locks ("Function not implemented").
    Orbax has no option for it: all of its contexts are made from the one that is changed here.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils  # no public name, so only where it is needed

    tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT["file_io_locking"] = {"mode": "lockfile"}


def _metadata_files(path: epath.Path) -> list[epath.Path]:
    return [step / _METADATA for step in path.iterdir() if step.name.isdigit()]


def _check_metadata(path: epath.Path) -> None:
    """Raise CheckpointError if Orbax's own metadata of a checkpoint are damaged; nothing in them is needed here."""
    remedy = "delete that file, the checkpoint is read without it"
    try:
        metadata = read_json(path, remedy)
    except FileNotFoundError:
        return
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    sections = ("item_handlers", "metrics", "performance_metrics", "custom_metadata")
    stamps = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
    whole = (
        all(isinstance(metadata.get(key, {}), dict) for key in sections)
        and all(isinstance(of, str) for of in metadata.get("item_handlers", {}).values())
        and all(metadata.get(key) is None or type(metadata[key]) is int for key in stamps)
        and not metadata.get("performance_metrics")
    )
    if not whole:
        raise CheckpointError(f"{path}: isn't what Orbax wrote; {remedy}")


def drop_damaged_metadata(path: epath.Path) -> None:
    """Delete Orbax's own metadata of the checkpoints in a folder where they are damaged, with a line about each."""
    for file in _metadata_files(path):
        try:
            _check_metadata(file)
        except CheckpointError as error:
            file.unlink()
            say(f"{error}; done")


def one_chunk_per_member(tree: Any) -> Any:
    """Return Orbax's options for saving stacked arrays `[M, ...]` so that one member is read without the others."""

    def of(x: jax.Array) -> "ocp.SaveArgs":
        share = x.nbytes // x.shape[0]
        # Below 1 MiB Orbax warns that small chunks are read slowly, and reading all members costs little.
        return ocp.SaveArgs(chunk_byte_size=share, shard_axes=(0,)) if share >= 2**20 else ocp.SaveArgs()

    return jax.tree.map(of, tree)


def restore_args_onto(mesh: Mesh, tree: Any, fsdp: bool) -> "ocp.args.PyTreeRestore":
    """Return Orbax's options for restoring stacked arrays, of the shapes in `tree`, laid over `mesh`."""
    shardings = sharding.stack_shardings(mesh, tree, fsdp)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
    return ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))


@contextlib.contextmanager
def reading_errors(checkpoint: epath.Path) -> Iterator[None]:
    """Raise CheckpointError for whatever Orbax raises of a checkpoint that is gone or damaged.

    Errors that may pass, such as a full device, are raised as they are.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # of files that are gone or garbled Orbax raises anything, bare Exceptions too
        if isinstance(error, _PASSING) and not isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(
            f"{checkpoint}: can't be read: {first_line(error)}; put it back from a copy, or choose another step"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 300 characters, or the name of its class."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
