"""Several processes that train one cohort together (jax.distributed): who writes, and what all have to agree on.

Every process runs the same program over its own devices of one mesh; the first one writes files. With a single process
everything here does nothing.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from olmo_jax.config.validation import ConfigError


def initialize(hosts: str) -> None:
    """Joins the processes of one training, before anything touches a device.

    Args:
      hosts: "auto" where Slurm, a TPU VM or another cluster tells, else "HOST:PORT,COUNT,PLACE": where the first
        process listens, how many there are, and which of them this one is, counted from 0.

    Raises ConfigError for anything else, and where the others can't be reached.
    """
    found = re.fullmatch(r"([\w.-]+:\d+),(\d+),(\d+)", hosts)
    if hosts != "auto" and (not found or int(found[3]) >= int(found[2])):
        raise ConfigError(f"--hosts = {hosts!r}: needs 'auto' or HOST:PORT,COUNT,PLACE with places from 0")
    try:
        if found:
            jax.distributed.initialize(found[1], num_processes=int(found[2]), process_id=int(found[3]))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"--hosts = {hosts!r}: {why}; name them as HOST:PORT,COUNT,PLACE") from error


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def fetch(tree: Any) -> Any:
    """Arrays on the host, whole, whichever processes' devices they lie on. All processes have to call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def any_process(flag: bool) -> bool:
    """Whether any process says so. All processes have to call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def broadcast(flag: bool) -> bool:
    """What the first process says. All processes have to call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def _whole(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return jax.device_get(x)
