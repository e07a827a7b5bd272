"""Estimate the local learning coefficient of a loss: how much of the loss's landscape is as low as a minimum."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

# A function of parameters, any tree of arrays, and a key that chooses a batch; returns the mean loss of the batch.
BatchLoss = Callable[[Any, Array], Array]

_PARTS = 4  # of the draws that count, compared with each other
_LARGEST_R_HAT = 1.1
# A change from one quarter of the draws that count to another: how large it has to be, relative to the value itself and
# in standard errors over chains. These alone would be exceeded by chance in one of six estimates from two chains.
_GROWTH = 0.1
_STANDARD_ERRORS = 4.0
_COARSE = 0.4  # of epsilon gamma; the variance in a flat direction is 1 / (1 - epsilon gamma / 4) times 1 / gamma


class Flags(NamedTuple):
    """What speaks against an estimate.

    Attributes:
      negative: the chains found lower losses than at the start, which then isn't a minimum.
      drift: the mean still changes between the last two quarters of the draws, by more than a tenth of the estimate:
        more steps are needed.
      diverged: number of chains whose loss stopped being finite; they are left out.
      short: the chains were still moving away from where they started at the end: more steps are needed.
      r_hat: of Gelman and Rubin, between and within chains; far above 1 if these disagree.
      pull: (gamma / 2) E|w - w*|^2, what gamma holds back, in units of the coefficient. It includes half a unit for
        each direction in which the loss is flat; for a regular minimum, the coefficient is too low by it.
      left: the mean loss rose by more than `most_rise`, so that the chains aren't near the weights any more.
      coarse: epsilon gamma is so large that chains spread by more than 5 % too far in flat directions.
    """

    negative: Array
    drift: Array
    diverged: Array
    short: Array
    r_hat: Array
    pull: Array
    left: Array
    coarse: Array

    @property
    def is_sound(self) -> Array:
        """Return whether none speaks against the estimate; the pull, to which flat directions add, isn't counted."""
        quiet = ~self.negative & ~self.drift & ~self.short & ~self.left & ~self.coarse
        return quiet & (self.diverged == 0) & (self.r_hat <= _LARGEST_R_HAT)


@functools.partial(jax.jit, static_argnames=("loss", "n", "chains", "steps"))
def local_learning_coefficient(
    loss: BatchLoss,
    params: Any,
    key: Array,
    n: int,
    chains: int = 4,
    steps: int = 1000,
    epsilon: float | Array = 1e-4,
    gamma: float | Array = 1.0,
    most_rise: float | Array = math.inf,
) -> tuple[Array, Array, Flags]:
    """Return the local learning coefficient at a minimum, its standard error over chains, and flags.

    It is n beta (E[L(w)] - L(w*)), with n beta = n / ln n and the mean over chains of stochastic gradient Langevin
    dynamics that start at w*: w += (epsilon / 2) (-n beta grad - gamma (w - w*)) + N(0, epsilon). The first half of the
    steps is left out. L(w*) is taken on the same batches as L(w), so that the noise of batches cancels [ours]. For a
    regular minimum it is half the number of parameters, for a degenerate one less.

    All chains run side by side in one program; `jax.vmap` over params, epsilon or gamma adds models and a search.

    Args:
      loss: the mean loss of the batch that the key chooses. params: w*, a tree of arrays. key: of chains and batches.
      n: number of examples that the loss stands for.
      chains, steps: how many chains, and of how many steps each; at least 1 and 8.
      epsilon: step size; stable below 4 / (n beta times the largest curvature + gamma), and biased upwards near it.
      gamma: how strongly the chains are held at w*; biases downwards where it isn't small against n beta times the
        curvature. In a flat direction they arrive after some 2 / (epsilon gamma) steps, and a parameter then varies
        with a standard deviation of 1 / sqrt(gamma).
      most_rise: the largest mean rise of the loss at which chains count as near w*.

    Returns:
      The coefficient, its standard error (NaN with one chain), and Flags. NaN if every chain diverged.

    Raises:
      ValueError: n, chains or steps that are too small.

    Source: Lau et al. 2023 (methods.md, section 8).
    """
    if n < 2 or chains < 1 or steps < 2 * _PARTS:
        raise ValueError(f"n = {n}, chains = {chains}, steps = {steps}: needs at least 2, 1 and {2 * _PARTS}")
    n_beta = n / math.log(n)
    leaves, structure = jax.tree.flatten(params)

    def chain(key: Array) -> tuple[Array, Array]:
        """Return L(w) - L(w*) and |w - w*|^2 at each step [T]."""

        def step(moved: list[Array], key: Array) -> tuple[list[Array], tuple[Array, Array]]:
            batch, *noises = jax.random.split(key, 1 + len(leaves))
            value, gradient = jax.value_and_grad(loss)(jax.tree.unflatten(structure, moved), batch)
            pulls = [
                -n_beta * g - gamma * (w - start)
                for g, w, start in zip(jax.tree.leaves(gradient), moved, leaves, strict=True)
            ]
            new = [
                w + epsilon / 2 * pull + jnp.sqrt(epsilon) * jax.random.normal(noise, w.shape, w.dtype)
                for w, pull, noise in zip(moved, pulls, noises, strict=True)
            ]
            distance = sum(
                (jnp.sum(jnp.square(w - start)) for w, start in zip(moved, leaves, strict=True)), jnp.zeros(())
            )
            return new, (value - loss(params, batch), distance)

        return jax.lax.scan(step, leaves, jax.random.split(key, steps))[1]

    first = steps - steps // 2 // _PARTS * _PARTS
    excess_CT, distance_CT = (x_CT[:, first:] for x_CT in jax.vmap(chain)(jax.random.split(key, chains)))
    finite_C = jnp.all(jnp.isfinite(excess_CT), axis=1)
    values_CT = n_beta * jnp.where(finite_C[:, None], excess_CT, 0.0)
    count = jnp.sum(finite_C)
    parts_CP = values_CT.reshape(chains, _PARTS, -1).mean(axis=2)
    mean_C = parts_CP.mean(axis=1)
    coefficient, error = _mean(mean_C, finite_C)
    drift, drift_error = _mean(parts_CP[:, -1] - parts_CP[:, -2], finite_C)
    # Draws follow each other, so that the variance within a chain is that of its parts.
    between = jnp.square(error) * count
    within = _mean(jnp.var(values_CT, axis=1, ddof=1), finite_C)[0]
    length = values_CT.shape[1]
    r_hat = jnp.sqrt((length - 1) / length + between / jnp.where(within > 0, within, 1.0))
    distance_CP = distance_CT.reshape(chains, _PARTS, -1).mean(axis=2)
    reached, _ = _mean(distance_CP[:, -1], finite_C)
    further, further_error = _mean(distance_CP[:, -1] - distance_CP[:, 0], finite_C)
    short = (further > _GROWTH * reached) & (further > _STANDARD_ERRORS * further_error)
    pull = gamma / 2 * _mean(distance_CP.mean(axis=1), finite_C)[0]
    left, coarse = coefficient / n_beta > most_rise, jnp.asarray(epsilon * gamma > _COARSE)
    drifts = (jnp.abs(drift) > _GROWTH * jnp.abs(coefficient)) & (jnp.abs(drift) > _STANDARD_ERRORS * drift_error)
    flags = Flags(coefficient < 0, drifts, chains - count, short, r_hat, pull, left, coarse)
    return coefficient, error, flags


class Search(NamedTuple):
    """Estimates at each of E step sizes and G strengths, and the indices of the chosen one.

    coefficient_EG, error_EG: as returned by `local_learning_coefficient`. flags_EG: Flags of arrays.
    """

    coefficient_EG: Array
    error_EG: Array
    flags_EG: Flags
    epsilon: Array
    gamma: Array


def search(
    loss: BatchLoss,
    params: Any,
    key: Array,
    n: int,
    epsilons: Array,
    gammas: Array,
    chains: int = 4,
    steps: int = 1000,
    most_rise: float | Array = math.inf,
) -> Search:
    """Estimate the coefficient at all pairs of step sizes and strengths side by side, and choose one.

    Chosen is, among those whose flags are sound, the smallest gamma, which biases least, and then the largest epsilon,
    which explores most. If none is sound it is the pair with the fewest diverged chains and the smallest R-hat, still
    flagged.

    Args:
      epsilons, gammas: those that are tried, each at least one. Others as in `local_learning_coefficient`.
    """
    epsilons_E, gammas_G = jnp.asarray(epsilons), jnp.asarray(gammas)

    def at(epsilon: Array, gamma: Array) -> tuple[Array, Array, Flags]:
        return local_learning_coefficient(loss, params, key, n, chains, steps, epsilon, gamma, most_rise)

    of_gammas = jax.vmap(at, in_axes=(None, 0))
    coefficient_EG, error_EG, flags_EG = jax.vmap(of_gammas, in_axes=(0, None))(epsilons_E, gammas_G)
    gamma_EG, epsilon_EG = (x_EG.ravel() for x_EG in jnp.meshgrid(gammas_G, epsilons_E))
    sound, diverged = flags_EG.is_sound.ravel(), flags_EG.diverged.ravel()
    r_hat = jnp.nan_to_num(flags_EG.r_hat.ravel(), nan=jnp.inf)
    # The last key counts first; among sound pairs, the first two are made equal.
    keys = (-epsilon_EG, gamma_EG, jnp.where(sound, 0.0, r_hat), jnp.where(sound, 0, diverged), ~sound)
    place = jnp.lexsort(keys)[0]
    return Search(coefficient_EG, error_EG, flags_EG, place // len(gammas_G), place % len(gammas_G))


def _mean(x_C: Array, kept_C: Array) -> tuple[Array, Array]:
    """Return the mean of the kept values and its standard error; NaN without any, or with one."""
    count = jnp.sum(kept_C)
    mean = jnp.sum(jnp.where(kept_C, x_C, 0.0)) / jnp.where(count > 0, count, jnp.nan)
    squares = jnp.sum(jnp.where(kept_C, jnp.square(x_C - mean), 0.0))
    return mean, jnp.sqrt(squares / jnp.where(count > 1, count * (count - 1.0), jnp.nan))
