"""The local learning coefficient against the values that singular learning theory gives, and its flags."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.llc import local_learning_coefficient, search

N = 1000


def regular(w, key):
    return 0.5 * jnp.sum(jnp.square(w["a"])) + 2 * jnp.sum(jnp.square(w["b"]))


def quartic(w, key):
    return jnp.sum(w**4)


def mixed(w, key):
    return w[0] ** 4 + w[1] ** 2


@pytest.mark.parametrize(
    ("loss", "params", "expected"),
    [
        (regular, {"a": jnp.zeros(6), "b": jnp.zeros((2, 2))}, 5.0),  # half the number of parameters
        (quartic, jnp.zeros(1), 0.25),
        (mixed, jnp.zeros(2), 0.75),
    ],
)
def test_coefficients_are_those_of_theory(loss, params, expected):
    found, error, flags = local_learning_coefficient(
        loss, params, jax.random.key(0), N, chains=64, steps=5000, epsilon=3e-4, gamma=0.01
    )
    assert float(found) == pytest.approx(expected, rel=0.1)
    assert float(error) < 0.05 * expected
    assert float(found) == pytest.approx(expected, abs=4 * float(error) + 0.03 * expected)
    assert bool(flags.is_sound), flags


def test_the_noise_of_batches_cancels():
    """A regression on batches of a tenth of the data has half its number of parameters, too."""
    rng = np.random.default_rng(0)
    x_ND = jnp.asarray(rng.standard_normal((N, 4)), jnp.float32)
    y_N = x_ND @ jnp.ones(4) + jnp.asarray(rng.standard_normal(N), jnp.float32)
    best = jnp.linalg.lstsq(x_ND, y_N)[0]

    def loss(w, key):
        batch = jax.random.randint(key, (N // 10,), 0, N)
        return 0.5 * jnp.mean(jnp.square(x_ND[batch] @ w - y_N[batch]))

    found, error, flags = local_learning_coefficient(
        loss, best, jax.random.key(1), N, chains=16, steps=2000, epsilon=3e-4, gamma=0.01
    )
    assert float(found) == pytest.approx(2, rel=0.15)
    assert int(flags.diverged) == 0


def test_a_point_that_is_no_minimum_is_flagged():
    found, _, flags = local_learning_coefficient(
        regular, {"a": 3 * jnp.ones(6), "b": jnp.zeros((2, 2))}, jax.random.key(0), N
    )
    assert bool(flags.negative)
    assert float(found) < 0
    assert not bool(flags.is_sound)


def test_chains_that_diverge_are_counted_and_left_out():
    everything = local_learning_coefficient(quartic, jnp.zeros(3), jax.random.key(0), N, epsilon=10.0)
    assert np.isnan(float(everything[0]))
    assert int(everything[2].diverged) == 4

    def some(w, key):  # escapes where few chains come
        return jnp.where(jnp.abs(w[0]) > 0.15, jnp.nan, jnp.sum(w**2))

    found, error, flags = local_learning_coefficient(some, jnp.zeros(1), jax.random.key(2), N, chains=64, steps=400)
    assert 0 < int(flags.diverged) < 64
    assert np.isfinite(float(found))
    assert np.isfinite(float(error))
    assert not bool(flags.is_sound)


def test_chains_that_still_drift_are_flagged():
    _, _, flags = local_learning_coefficient(
        regular, {"a": jnp.zeros(6), "b": jnp.zeros((2, 2))}, jax.random.key(0), N, chains=64, steps=64, epsilon=1e-5
    )
    assert bool(flags.drift)


@pytest.mark.slow
def test_two_chains_that_have_arrived_seldom_seem_to_drift():
    def estimate(key):
        flags = local_learning_coefficient(
            lambda w, key: jnp.sum(jnp.square(w)), jnp.zeros(1000), key, 8, 2, 100, 0.3 / 1e3, 1e3
        )[2]
        return flags.drift | flags.short

    assert float(jax.vmap(estimate)(jax.random.split(jax.random.key(0), 300)).mean()) <= 0.02


def test_chains_that_leave_the_surroundings_are_flagged():
    """A hole of unit width and depth in a plain: weakly held chains end on the plain, firmly held ones stay in it."""

    def hole(w, key):
        return 1 - jnp.exp(-jnp.sum(jnp.square(w)) / 2)

    def estimate(gamma, **limit):
        return local_learning_coefficient(
            hole, jnp.zeros(20), jax.random.key(0), 8, 16, 400, 0.1 / gamma, gamma, **limit
        )

    found, _, flags = estimate(0.1, most_rise=0.5)
    assert float(found) * np.log(8) / 8 == pytest.approx(1, abs=0.05)  # the depth
    assert bool(flags.left) and not bool(flags.is_sound)
    assert not bool(estimate(0.1)[2].left)  # without a limit there are no surroundings
    found, _, flags = estimate(1000.0, most_rise=0.5)
    assert float(found) * np.log(8) / 8 == pytest.approx(20 / 1000 / 2, rel=0.1)
    assert not bool(flags.left) and bool(flags.is_sound)


def test_a_step_too_large_for_gamma_spreads_chains_by_the_closed_form():
    def flat(w, key):
        return 0.0 * jnp.sum(w)

    for product, coarse in ((0.1, False), (1.0, True)):
        _, _, flags = local_learning_coefficient(
            flat, jnp.zeros(200), jax.random.key(0), N, 8, 400, product / 100, 100.0
        )
        assert float(flags.pull) == pytest.approx(100 / (1 - product / 4), rel=0.03)
        assert bool(flags.coarse) == coarse


def test_models_and_step_sizes_run_side_by_side():
    def estimate(w, epsilon):
        return local_learning_coefficient(quartic, w, jax.random.key(0), N, steps=200, epsilon=epsilon)[0]

    stack, sizes = jnp.asarray([[0.0], [0.01]]), jnp.asarray([1e-4, 1e-3])
    found = jax.vmap(jax.vmap(estimate, (None, 0)), (0, None))(stack, sizes)
    expected = [[float(estimate(w, e)) for e in sizes] for w in stack]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match="needs at least 2, 1 and 8"):
        local_learning_coefficient(quartic, jnp.zeros(1), jax.random.key(0), N, steps=4)


def test_the_search_takes_the_weakest_pull_and_the_largest_step_that_are_sound():
    """Steps of 3 diverge, and gamma of 1e4 holds the chains so firmly that they find too little."""
    epsilons, gammas = jnp.asarray([3.0, 1e-4, 3e-4]), jnp.asarray([1e4, 0.01])
    found = search(
        regular, {"a": jnp.zeros(6), "b": jnp.zeros((2, 2))}, jax.random.key(0), N, epsilons, gammas, 64, 5000
    )
    assert (int(found.epsilon), int(found.gamma)) == (2, 1)
    assert float(found.coefficient_EG[2, 1]) == pytest.approx(5, rel=0.1)
    assert float(found.coefficient_EG[2, 0]) < 1
    assert int(found.flags_EG.diverged[0, 1]) == 64
    alone = local_learning_coefficient(
        regular, {"a": jnp.zeros(6), "b": jnp.zeros((2, 2))}, jax.random.key(0), N, 64, 5000, 3e-4, 0.01
    )
    assert float(found.coefficient_EG[2, 1]) == pytest.approx(float(alone[0]), rel=1e-4)


def test_chains_that_have_not_arrived_are_flagged():
    """With so small a step, a hundred steps leave the chains at the start."""
    found, _, flags = local_learning_coefficient(
        regular, {"a": jnp.zeros(6), "b": jnp.zeros((2, 2))}, jax.random.key(0), N, 16, 100, 1e-6, 0.01
    )
    assert float(found) < 1
    assert bool(flags.short)
    assert not bool(flags.is_sound)


def test_the_pull_is_what_a_regular_minimum_lacks():
    """Half a unit for each parameter is divided between loss and pull."""
    found, error, flags = local_learning_coefficient(
        regular, {"a": jnp.zeros(6), "b": jnp.zeros((2, 2))}, jax.random.key(0), N, 64, 5000, 3e-4, 100.0
    )
    assert float(found + flags.pull) == pytest.approx(5, rel=0.05)
    assert float(flags.pull) > 1


def test_a_search_without_a_sound_pair_still_says_what_is_wrong():
    found = search(quartic, jnp.zeros(3), jax.random.key(0), N, jnp.asarray([10.0, 20.0]), jnp.asarray([1.0]), 4, 100)
    assert not found.flags_EG.is_sound.any()
    assert 0 <= int(found.epsilon) < 2
