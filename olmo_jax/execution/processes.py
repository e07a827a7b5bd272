"""Coordination of several processes that train one cohort together (jax.distributed).

Every process runs the same program over its own devices of one mesh; only the first one writes files. With a single
process these functions do nothing.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from olmo_jax.config.validation import ConfigError


def initialize(hosts: str) -> None:
    """Connect this process to the others of its training; must be called before any device is used.

    Args:
      hosts: "auto" if the cluster (Slurm, a TPU VM or another) provides the addresses, else "HOST:PORT,COUNT,PLACE":
        where the first process listens, the number of processes, and the index of this one, counted from 0.

    Raises ConfigError for anything else, and if the other processes can't be reached.
    """
    match = re.fullmatch(r"([\w.-]+:\d+),(\d+),(\d+)", hosts)
    if hosts != "auto" and (not match or int(match[3]) >= int(match[2])):
        raise ConfigError(f"--hosts = {hosts!r}: needs 'auto' or HOST:PORT,COUNT,PLACE with places from 0")
    try:
        if match:
            jax.distributed.initialize(match[1], num_processes=int(match[2]), process_id=int(match[3]))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--hosts = {hosts!r}: {reason}; give HOST:PORT,COUNT,PLACE") from error


def is_first() -> bool:
    """Return whether this process is the first, the one that writes files."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Return arrays as numpy arrays, gathered from the devices of all processes. All processes have to call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process. All processes have to call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def broadcast(flag: bool) -> bool:
    """Return the `flag` of the first process. All processes have to call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def barrier(name: str) -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def leave_together() -> None:
    """Wait until every process has called this, and disconnect; for the end of a command.

    A process that ends earlier closes its connections, and one that still receives the last values over them fails
    with "Connection reset by peer". JAX's own waiting at the exit comes after they are closed.
    """
    jax.distributed.shutdown()


def _whole(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return jax.device_get(x)
