"""Apply a function of one member to a stack: side by side, one after another, or some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh


def over_members(
    f: Callable[..., Any], mapping: str = "auto", mesh: Mesh | None = None, at_once: int | None = None
) -> Callable[..., Any]:
    """Return `f`, written for one member, as a function of stacks: arguments and results get a leading member axis.

    See TrainConfig.mapping. If the members lie on several devices, "map" takes one member per device at a time, since a
    map over the whole axis would gather it. `at_once` bounds how many members a device takes side by side under "vmap";
    it is rounded down to a divisor of the number on the device.
    """
    if mapping == "auto":
        mapping = "map" if jax.default_backend() == "cpu" else "vmap"
    side_by_side = jax.vmap(f, spmd_axis_name="member")
    devices = 1 if mesh is None else mesh.shape["member"]

    def group_size(size: int) -> int:
        most = 1 if mapping == "map" else size if at_once is None else max(1, min(at_once, size))
        return max(n for n in range(1, most + 1) if size % n == 0)

    def mapped(*stacks: Any) -> Any:
        members_per_device = len(jax.tree.leaves(stacks)[0]) // devices
        n = group_size(members_per_device)
        if mapping == "vmap" and n == members_per_device:
            return side_by_side(*stacks)
        if n == devices == 1:
            return jax.lax.map(lambda member: f(*member), stacks)

        def split(x: Array) -> Array:  # [M, ...] -> [M / (devices n), devices n, ...], neighbours on one device
            x = x.reshape(devices, members_per_device // n, n, *x.shape[1:])
            return jnp.moveaxis(x, 1, 0).reshape(members_per_device // n, devices * n, *x.shape[3:])

        def join(x: Array) -> Array:
            x = x.reshape(members_per_device // n, devices, n, *x.shape[2:])
            return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[3:])

        results = jax.lax.map(lambda members: side_by_side(*members), jax.tree.map(split, stacks))
        return jax.tree.map(join, results)

    return mapped
