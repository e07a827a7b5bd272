"""A function of one member over a stack of them: side by side, one after another, or some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh


def over_members(
    f: Callable[..., Any], mapping: str = "auto", mesh: Mesh | None = None, at_once: int | None = None
) -> Callable[..., Any]:
    """`f`, written for one member, over stacks of them; every argument and result has a leading member axis.

    See TrainConfig.mapping. Members that lie on several devices are mapped over side by side, one a device at a time: a
    map over the whole axis would gather it. `at_once` bounds how many a device takes side by side under "vmap", by the
    largest divisor of those it has.
    """
    if mapping == "auto":
        mapping = "map" if jax.default_backend() == "cpu" else "vmap"
    side_by_side = jax.vmap(f, spmd_axis_name="member")
    devices = 1 if mesh is None else mesh.shape["member"]

    def together(here: int) -> int:
        most = 1 if mapping == "map" else here if at_once is None else max(1, min(at_once, here))
        return max(n for n in range(1, most + 1) if here % n == 0)

    def mapped(*stacks: Any) -> Any:
        here = len(jax.tree.leaves(stacks)[0]) // devices
        n = together(here)
        if mapping == "vmap" and n == here:
            return side_by_side(*stacks)
        if n == devices == 1:
            return jax.lax.map(lambda member: f(*member), stacks)

        def split(x: Array) -> Array:  # [M, ...] -> [M / (devices n), devices n, ...]; a device's are neighbours
            x = x.reshape(devices, here // n, n, *x.shape[1:])
            return jnp.moveaxis(x, 1, 0).reshape(here // n, devices * n, *x.shape[3:])

        def join(x: Array) -> Array:
            x = x.reshape(here // n, devices, n, *x.shape[2:])
            return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[3:])

        results = jax.lax.map(lambda members: side_by_side(*members), jax.tree.map(split, stacks))
        return jax.tree.map(join, results)

    return mapped
