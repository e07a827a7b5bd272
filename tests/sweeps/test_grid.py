import pytest

from olmo_jax.config import ConfigError
from sweeps.grid import cross, product, together


def test_product_runs_the_last_axis_fastest():
    grid = product({"a": [1, 2], "b.c": [3, 4]})
    assert grid == [{"a": 1, "b.c": 3}, {"a": 1, "b.c": 4}, {"a": 2, "b.c": 3}, {"a": 2, "b.c": 4}]


def test_together_pairs_and_cross_multiplies():
    pairs = together({"a": [1, 2], "b": [3, 4]})
    assert pairs == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert cross(pairs, product({"s": [0, 1]})) == [p | {"s": s} for p in pairs for s in (0, 1)]


def test_lists_of_different_length_are_refused_with_their_lengths():
    with pytest.raises(ConfigError, match=r"'optimizer.learning_rate': 3, 'data.batch_size': 2"):
        together({"optimizer.learning_rate": [1, 2, 3], "data.batch_size": [8, 32]})


def test_bad_axes_are_refused_by_name():
    with pytest.raises(ConfigError, match="axis 'a' has no values.*empty"):
        product({"a": [], "b": [1]})
    with pytest.raises(ConfigError, match="axis 'a' = 'xy' needs a list"):
        product({"a": "xy"})
    with pytest.raises(ConfigError, match="a set by two crossed grids"):
        cross([{"a": 1}], [{"a": 2}])
