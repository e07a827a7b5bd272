import pytest

from olmo_jax.config import ConfigError
from sweeps.planning.grid import chain, cross, one_at_a_time, product, seeds, subsample, together


def test_product_varies_the_last_axis_fastest():
    grid = product({"a": [1, 2], "b.c": [3, 4]})
    assert grid == [{"a": 1, "b.c": 3}, {"a": 1, "b.c": 4}, {"a": 2, "b.c": 3}, {"a": 2, "b.c": 4}]


def test_together_pairs_axes_and_cross_multiplies_them():
    pairs = together({"a": [1, 2], "b": [3, 4]})
    assert pairs == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert cross(pairs, product({"s": [0, 1]})) == [p | {"s": s} for p in pairs for s in (0, 1)]


def test_axes_of_different_length_are_refused_with_their_lengths():
    with pytest.raises(ConfigError, match=r"'optimizer.learning_rate': 3, 'data.batch_size': 2"):
        together({"optimizer.learning_rate": [1, 2, 3], "data.batch_size": [8, 32]})


def test_bad_axes_are_refused_by_name():
    with pytest.raises(ConfigError, match="axis 'a' has no values.*empty"):
        product({"a": [], "b": [1]})
    with pytest.raises(ConfigError, match="axis 'a' = 'xy' needs a list"):
        product({"a": "xy"})
    with pytest.raises(ConfigError, match="two crossed grids both set a;"):
        cross([{"a": 1}], [{"a": 2}])


def test_one_factor_at_a_time_leaves_the_others_at_the_default():
    grid = one_at_a_time({"a": 1, "b": 2}, {"a": [0], "c": [7, 8]})
    assert grid == [{"a": 1, "b": 2}, {"a": 0, "b": 2}, {"a": 1, "b": 2, "c": 7}, {"a": 1, "b": 2, "c": 8}]
    with pytest.raises(ConfigError, match="'a' lists 1, which is the default"):
        one_at_a_time({"a": 1}, {"a": [0, 1]})


def test_chain_concatenates_grids():
    assert chain([{"a": 1}], [], [{"b": 2}]) == [{"a": 1}, {"b": 2}]


def test_a_subsample_is_ordered_distinct_and_reproducible():
    grid = product({"a": list(range(50))})
    drawn = subsample(grid, 20, seed=3)
    assert drawn == subsample(grid, 20, seed=3) != subsample(grid, 20, seed=4)
    values = [point["a"] for point in drawn]
    assert values == sorted(set(values))
    assert subsample(grid, 50) == grid
    for count in (0, 51):
        with pytest.raises(ConfigError, match=f"subsample of {count} points: the grid has 50"):
            subsample(grid, count)


def test_seeds_are_paired_and_not_crossed():
    grid = seeds([{"a": 1}, {"a": 2}], 2, keys=("init_seed", "data_seed"), first=5)
    assert [(p["a"], p["init_seed"], p["data_seed"]) for p in grid] == [(1, 5, 5), (1, 6, 6), (2, 5, 5), (2, 6, 6)]
    with pytest.raises(ConfigError, match="count = 0 seeds per point"):
        seeds([{}], 0)
