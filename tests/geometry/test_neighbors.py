import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry import neighbors


def oracle(x, k, valid_N=None):
    """Return the distances [N, k] in float64 from all pairs."""
    distance = np.sqrt(np.square(x[:, None] - x[None]).sum(-1))
    np.fill_diagonal(distance, np.inf)
    if valid_N is not None:
        distance[:, ~valid_N] = np.inf
    return np.sort(distance, axis=1)[:, :k], distance


def clouds():
    rng = np.random.default_rng(0)
    tight = np.repeat(rng.standard_normal((8, 20)) * 100, 40, axis=0) + 1e-4 * rng.standard_normal((320, 20))
    return {
        "gaussian": rng.standard_normal((333, 20)),
        "clusters a millionth of their distance wide": tight,
        "one dimension": rng.standard_normal((100, 1)),
        "lattice": np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3),
    }


CLOUDS = {name: x.astype(np.float32).astype(np.float64) for name, x in clouds().items()}


@pytest.mark.parametrize("tile_rows", [7, 64, 1000])
@pytest.mark.parametrize("kind", CLOUDS)
def test_neighbour_distances_are_exact(kind, tile_rows):
    x_ND = CLOUDS[kind]
    k = min(40, len(x_ND) - 1)
    distance_NK, index_NK = neighbors.nearest(jnp.float32(x_ND), np.ones(len(x_ND), bool), k, tile_rows)
    truth_NK, all_NN = oracle(x_ND, k)
    np.testing.assert_allclose(distance_NK, truth_NK, rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(all_NN, np.asarray(index_NK), 1), truth_NK, rtol=1e-5)


def test_invalid_rows_are_nobodys_neighbours():
    x_ND = CLOUDS["gaussian"][:50]
    valid_N = np.arange(50) % 3 > 0
    k = 45  # of 33 valid rows
    distance_NK, index_NK = neighbors.nearest(jnp.float32(x_ND), valid_N, k)
    truth_NK, _ = oracle(x_ND, k, valid_N)
    np.testing.assert_allclose(distance_NK, truth_NK, rtol=1e-5)
    assert valid_N[np.asarray(index_NK)[np.isfinite(truth_NK)]].all()


def test_many_points_use_the_two_step_shortlist():
    """More points than a group times twice k, so that the shortlist is made in two steps."""
    x_ND = np.random.default_rng(1).standard_normal((3000, 8)).astype(np.float32)
    distance_NK, _ = neighbors.nearest(x_ND, np.ones(3000, bool), 10)
    truth_NK, _ = oracle(x_ND[:, :].astype(np.float64), 10)
    np.testing.assert_allclose(distance_NK, truth_NK, rtol=1e-5)


def test_under_vmap_a_hard_cloud_does_not_change_an_easy_one():
    easy, hard = CLOUDS["gaussian"][:300], CLOUDS["clusters a millionth of their distance wide"][:300]
    stack = jnp.float32(np.stack([easy, hard]))
    valid = jnp.ones((2, 300), bool)
    together, _ = jax.vmap(lambda x, valid: neighbors.nearest(x, valid, 10))(stack, valid)
    for i, x_ND in enumerate((easy, hard)):
        np.testing.assert_allclose(together[i], oracle(x_ND, 10)[0], rtol=1e-5)


def test_no_array_has_the_size_of_all_pairs():
    points, rows = 4096, 64
    program = jax.jit(lambda x, valid: neighbors.nearest(x, valid, 8, rows)).lower(
        jax.ShapeDtypeStruct((points, 16), jnp.float32), jax.ShapeDtypeStruct((points,), bool)
    )
    largest = program.compile().memory_analysis().temp_size_in_bytes
    assert largest < points * points * 4 / 8


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 1e-30, 2.5]), min_size=40, max_size=40))
@settings(max_examples=60, deadline=None)
def test_first_occurrences_match_a_set(values):
    x_ND = np.array(values, np.float32).reshape(-1, 2)
    seen, expected = set(), []
    for row in x_ND:
        key = tuple(float(v) + 0.0 for v in row)
        expected.append(key not in seen)
        seen.add(key)
    assert np.asarray(neighbors.first_copies(jnp.asarray(x_ND))).tolist() == expected
