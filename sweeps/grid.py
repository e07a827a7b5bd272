"""Grids in plain Python: a point is a dict of overrides by dotted key, a grid a list of points.

grid = product({"data.batch_size": [8, 32], "optimizer.weight_decay": [0.1, 1.0], "init_seed": [0, 1]})
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from olmo_jax.config import ConfigError

Point = dict[str, Any]
Grid = list[Point]


def product(axes: Mapping[str, Sequence[Any]]) -> Grid:
    """Every combination of the axes' values, the last axis running fastest."""
    _check(axes)
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def together(axes: Mapping[str, Sequence[Any]]) -> Grid:
    """The first value of each axis, then the second of each; axes of different length are an error."""
    _check(axes)
    lengths = {key: len(values) for key, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"values taken together need one length each, and have {lengths}; add or drop some")
    return [dict(zip(axes, values, strict=True)) for values in zip(*axes.values(), strict=True)]


def cross(*grids: Grid) -> Grid:
    """Every point of one grid with every point of the others; a key that two of them set is an error."""
    points: Grid = [{}]
    for grid in grids:
        for a, b in itertools.product(points[:1], grid[:1]):
            if both := sorted(a.keys() & b.keys()):
                raise ConfigError(f"{', '.join(both)} set by two crossed grids; set it in one of them")
        points = [a | b for a, b in itertools.product(points, grid)]
    return points


def _check(axes: Mapping[str, Sequence[Any]]) -> None:
    for key, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"grid axis '{key}' = {values!r} needs a list of values, such as [{values!r}]")
        if not values:
            raise ConfigError(f"grid axis '{key}' has no values, so the grid is empty; give it at least one")
