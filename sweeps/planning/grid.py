"""Build grids in plain Python: a point is a dict of overrides by dotted key, and a grid is a list of points.

    grid = product({"data.batch_size": [8, 32], "optimizer.weight_decay": [0.1, 1.0], "init_seed": [0, 1]})
    grid = seeds(one_at_a_time({"tokens": 10**6}, {"optimizer.weight_decay": [0.01, 0.5], "tokens": [10**7]}), 3)

Any field of a run can be a factor; each value of `data.corpus` needs a `data.name` of its own.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from olmo_jax.config import ConfigError

Point = dict[str, Any]
Grid = list[Point]


def product(axes: Mapping[str, Sequence[Any]]) -> Grid:
    """Return every combination of the axes' values; the last axis varies fastest."""
    _check(axes)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def together(axes: Mapping[str, Sequence[Any]]) -> Grid:
    """Return one point with the first value of each axis, one with the second, and so on.

    Raises ConfigError for axes of different lengths.
    """
    _check(axes)
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"axes taken together need equal lengths, but have {lengths}; add or drop values")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def cross(*grids: Grid) -> Grid:
    """Return every point of one grid combined with every point of the others.

    Raises ConfigError if two grids set the same key.
    """
    points: Grid = [{}]
    for grid in grids:
        for a, b in itertools.product(points[:1], grid[:1]):
            if both := sorted(a.keys() & b.keys()):
                raise ConfigError(f"two crossed grids both set {', '.join(both)}; set it in only one of them")
        points = [a | b for a, b in itertools.product(points, grid)]
    return points


def chain(*grids: Grid) -> Grid:
    """Return the points of the grids, one grid after another; `plan.resolve` refuses duplicate runs."""
    return [point for grid in grids for point in grid]


def one_at_a_time(default: Point, factors: Mapping[str, Sequence[Any]]) -> Grid:
    """Return the default, then each factor's values in turn, with all other factors at their defaults.

    Raises ConfigError for a value equal to the default, which would repeat the default's run.
    """
    _check(factors)
    for key, values in factors.items():
        if key in default and default[key] in values:
            raise ConfigError(f"grid axis '{key}' lists {default[key]!r}, which is the default; leave it out")
    return [dict(default), *(default | {key: value} for key, values in factors.items() for value in values)]


def subsample(grid: Grid, count: int, seed: int = 0) -> Grid:
    """Return `count` distinct points drawn at random, in the grid's order; the same seed draws the same points."""
    if not 0 < count <= len(grid):
        raise ConfigError(f"subsample of {count} points: the grid has {len(grid)}; choose from 1 to {len(grid)}")
    chosen = random.Random(seed).sample(range(len(grid)), count)
    return [grid[i] for i in sorted(chosen)]


def seeds(grid: Grid, count: int, keys: Sequence[str] = ("init_seed",), first: int = 0) -> Grid:
    """Return every point with seeds `first` to `first + count - 1`; the seeds of a point are adjacent.

    Args:
      keys: the seeds that are set, "init_seed", "data_seed" or both (set together, not crossed).
    """
    if count < 1:
        raise ConfigError(f"count = {count} seeds per point: needs at least 1")
    return cross(grid, together({key: range(first, first + count) for key in keys}))


def _check(axes: Mapping[str, Sequence[Any]]) -> None:
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"grid axis '{key}' = {values!r} needs a list of values, such as [{values!r}]")
        if not values:
            raise ConfigError(f"grid axis '{key}' has no values, so the grid is empty; give it at least one")
