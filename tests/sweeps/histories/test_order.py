"""Misplaced checkpoints are found in made histories of several kinds, and none in clean ones."""

import numpy as np
import pytest

from sweeps.histories.order import distances, fitting, places

COUNT, SIZE = 30, 1024


def history(kind, rng):
    noise_TN = rng.normal(size=(COUNT, SIZE))
    if kind == "drift":
        return np.arange(COUNT)[:, None] * rng.normal(size=SIZE) + 0.1 * noise_TN
    if kind == "diffusion":
        return noise_TN.cumsum(0)
    if kind == "annealed":
        return (np.linspace(1, 0.02, COUNT)[:, None] * noise_TN).cumsum(0)
    if kind == "doubling steps":
        return (2.0 ** (np.arange(COUNT) / 6)[:, None] * noise_TN).cumsum(0)
    return 5 + noise_TN  # fluctuation


@pytest.mark.parametrize("kind", ["drift", "diffusion", "annealed", "doubling steps", "fluctuation"])
def test_nothing_is_out_of_place_in_a_clean_history(kind):
    for seed in range(20):
        assert not [p.index for p in places(distances(list(history(kind, np.random.default_rng(seed))))) if p.is_out]


@pytest.mark.parametrize("kind", ["drift", "diffusion", "annealed", "doubling steps"])
@pytest.mark.parametrize(("first", "second"), [(0, 1), (10, 11), (5, 20), (20, 21), (0, 29)])
def test_two_swapped_checkpoints_are_found_and_no_other(kind, first, second):
    samples = list(history(kind, np.random.default_rng(1)))
    samples[first], samples[second] = samples[second], samples[first]
    found = places(distances(samples))
    assert {p.index for p in found if p.is_out} == {first, second}
    # Each fits where the other one is.
    if second > first + 1:
        assert found[first].after in (second - 1, second)
        assert found[second].after in (first - 1, first)


def test_weights_of_another_model_are_found():
    samples = list(history("diffusion", np.random.default_rng(0)))
    samples[12] = 20 * np.random.default_rng(1).normal(size=SIZE)
    assert [p.index for p in places(distances(samples)) if p.is_out] == [12]
    assert places(distances(samples))[12].is_astray


def test_too_few_checkpoints_are_never_out_of_place():
    for count in (1, 2, 3):
        found = places(distances(list(np.random.default_rng(0).normal(size=(count, SIZE)))))
        assert [p.is_out for p in found] == [False] * count


def test_distances_are_euclidean():
    x_TN = np.random.default_rng(0).normal(size=(4, SIZE)).astype(np.float32)
    expected = [[np.linalg.norm(a - b) for b in x_TN.astype(float)] for a in x_TN.astype(float)]
    np.testing.assert_allclose(distances(list(x_TN)), expected, atol=1e-5)


def test_equal_weights_fit_only_where_they_came_from():
    samples = list(history("diffusion", np.random.default_rng(0)))
    samples[3] = samples[29]
    assert fitting(distances(samples), [3, 29]) == [29]
    samples = list(history("diffusion", np.random.default_rng(0)))
    samples[13] = samples[12]  # of two neighbours it can't be told
    assert fitting(distances(samples), [12, 13]) == [12, 13]
