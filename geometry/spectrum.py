"""Metrics of the distribution of one matrix's singular values.

A metric takes singular values, not a matrix, so that one decomposition serves all metrics. No metric depends on the
order of the values and, except for the three norms, none on the scale of the matrix. If an input holds NaN, the result
is NaN; no value of the input raises an exception. All functions work under jit, vmap and grad.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from geometry.registry import metric_of
from geometry.svd import METHODS as METHODS
from geometry.svd import singular_values as singular_values


@metric_of("singular_values_D")
def effective_rank(s_D: Array) -> Array:
    """Exponential of the entropy of the normalised singular values.

    Args:
      s_D: singular values of one matrix, non-negative, any order.

    Returns:
      A scalar in [1, D]; 0 for the zero matrix, NaN if s_D holds a NaN.

    Source: Roy & Vetterli 2007, Definition 1; paper A's R(W).
    """
    return jnp.where(jnp.sum(s_D) == 0, 0.0, jnp.exp(_entropy(s_D)))


@metric_of("singular_values_D")
def singular_entropy(s_D: Array) -> Array:
    """Divergence KL(p, uniform) = ln r - entropy of the normalised singular values, in nats.

    Args:
      s_D: the r singular values of one matrix, non-negative, any order.

    Returns:
      A scalar in [0, ln r], 0 for a flat spectrum, so that exp(-KL) = R/r; inf for the zero matrix, whose R is 0.

    Source: Godey et al. 2024. PER (Diehl Martinez et al. 2024) and RankMe are the same quantity as R/r.
    """
    return jnp.where(jnp.sum(s_D) == 0, jnp.inf, jnp.log(1.0 * s_D.shape[0]) - _entropy(s_D))


@metric_of("singular_values_D")
def per(s_D: Array) -> Array:
    """Proportion of effective rank R/r = exp(-KL(p, uniform)): in [1/r, 1]; 0 for the zero matrix.

    Source: Diehl Martinez et al. 2024.
    """
    return effective_rank(s_D) / s_D.shape[0]


@metric_of("singular_values_D")
def rankme(s_D: Array) -> Array:
    """Effective rank with 1e-7 added to each share, p = s / sum(s) + 1e-7, zeros included.

    Returns:
      A scalar of at least 1 and at most slightly above r; exp(-r 1e-7 ln 1e-7), about 1, for the zero matrix.

    Source: Garrido et al. 2023, equation 1.
    """
    t_D = _over_largest(s_D)
    total = jnp.sum(t_D)
    p_D = t_D / jnp.where(total == 0, 1.0, total) + 1e-7
    return jnp.exp(-jnp.sum(p_D * jnp.log(p_D)))


@metric_of("singular_values_D")
def stable_rank(s_D: Array) -> Array:
    """Squared Frobenius norm over squared spectral norm, sum s^2 / s_1^2: in [1, D]; 0 for the zero matrix."""
    t_D = _over_largest(s_D)
    return jnp.sum(t_D * t_D)


@metric_of("singular_values_D")
def participation_ratio(s_D: Array) -> Array:
    """(sum s^2)^2 / sum s^4: in [1, D]; 0 for the zero matrix.

    For centred data it is the participation ratio of the covariance's eigenvalues.
    """
    square_D = jnp.square(_over_largest(s_D))
    fourth = jnp.sum(square_D * square_D)
    return jnp.square(jnp.sum(square_D)) / jnp.where(fourth == 0, 1.0, fourth)


@metric_of("singular_values_D", "energy_top_10", "Share of the sum of squared singular values in the 10 largest.", k=10)
@metric_of("singular_values_D", "energy_top_1", "Share of the sum of squared singular values in the largest.", k=1)
def energy_top(s_D: Array, k: int) -> Array:
    """Return the share of sum s^2 in the k largest: in [0, 1], 1 for k >= r; NaN for the zero matrix."""
    square_D = jnp.square(jnp.sort(_over_largest(s_D))[::-1])
    total = jnp.sum(square_D)
    return jnp.where(total == 0, jnp.nan, jnp.sum(square_D[:k]) / jnp.where(total == 0, 1.0, total))


@metric_of("singular_values_D")
def spectral_norm(s_D: Array) -> Array:
    """The largest singular value."""
    return jnp.max(s_D)


@metric_of("singular_values_D")
def nuclear_norm(s_D: Array) -> Array:
    """The sum of the singular values."""
    return jnp.sum(s_D)


@metric_of("singular_values_D")
def frobenius_norm(s_D: Array) -> Array:
    """The root of the sum of squared singular values."""
    return jnp.max(s_D) * jnp.sqrt(jnp.sum(jnp.square(_over_largest(s_D))))


@metric_of("singular_values_D")
def condition_number(s_D: Array) -> Array:
    """Largest over smallest of the r singular values: in [1, inf]; inf for a singular matrix and the zero matrix.

    In float32, values up to about 1e5 are accurate to 1 % with "qr", "refined_gram" or "svd", and values above about
    1e6 come out as inf; with "gram" the limit is about 1e3.

    A matrix with a direction projected out (`gauge_fix` under "layer_norm") is singular by construction: leave out
    its last singular value, `condition_number(s_D[:-1])`.
    """
    largest, smallest = jnp.max(s_D), jnp.min(s_D)
    return jnp.where(smallest == 0, jnp.inf, largest / jnp.where(smallest == 0, 1.0, smallest))


@metric_of("singular_values_D")
@jax.jit
def power_law_alpha(s_D: Array) -> Array:
    """Exponent of the power law that best fits the tail of the eigenvalues lambda = s^2.

    Every eigenvalue but the largest is tried as xmin. Each gives alpha = 1 + n / sum(ln lambda_i - ln xmin) over the n
    eigenvalues from xmin up; the xmin with the smallest Kolmogorov-Smirnov distance between fit and data is used.

    Args:
      s_D: singular values of one matrix, non-negative, any order. Those below D eps s_1, zero to working precision,
        are left out.

    Returns:
      A scalar above 1; NaN if no tail has two distinct eigenvalues (as for the zero matrix), or s_D holds a NaN.

    Source: Clauset, Shalizi & Newman 2009, equation 3.1 and section 3.3, with the empirical distribution of
    WeightWatcher's WWFit, F_i = i/n for i = 0..n-1.
    """
    t_D = jnp.sort(_over_largest(s_D))
    kept_D = t_D > t_D.shape[0] * jnp.finfo(t_D.dtype).eps
    log_D = 2.0 * jnp.log(jnp.where(kept_D, t_D, 1.0))
    index_D = jnp.arange(t_D.shape[0])

    def fit(first: Array) -> tuple[Array, Array]:
        """Return exponent and distance for xmin = the eigenvalue at index `first`, in ascending order."""
        tail_D = kept_D & (index_D >= first)
        n = jnp.sum(tail_D)
        excess_D = jnp.where(tail_D, log_D - log_D[first], 0.0)
        total = jnp.sum(excess_D)
        possible = kept_D[first] & (total > 0)
        slope = n / jnp.where(possible, total, 1.0)
        fitted_D = -jnp.expm1(-slope * excess_D)
        distance_D = jnp.abs(fitted_D - (index_D - first) / n)
        return 1.0 + slope, jnp.where(possible, jnp.max(jnp.where(tail_D, distance_D, 0.0)), jnp.inf)

    alpha_D, distance_D = jax.lax.map(fit, index_D, batch_size=min(t_D.shape[0], 128))
    best = jnp.argmin(distance_D)
    fitted = jnp.isfinite(distance_D[best]) & ~jnp.any(jnp.isnan(s_D))
    return jnp.where(fitted, alpha_D[best], jnp.nan)


@functools.partial(jax.jit, static_argnames=("first", "last"))
def alpha_req(eigenvalues_D: Array, first: int = 11, last: int | None = None) -> Array:
    """Return minus the slope of ln(eigenvalue) on ln(index), by least squares: the decay of a covariance's spectrum.

    1 is the slowest decay with which a representation stays smooth as its dimension grows; larger means fewer
    directions that matter.

    Args:
      eigenvalues_D: eigenvalues of a covariance, non-negative, any order; those of states are the squared singular
        values of the centred states.
      first, last: the indices that are fitted, from 1 and both included; by default 11 to half of D.

    Returns:
      A scalar; NaN with fewer than two positive eigenvalues among those indices, and if an eigenvalue is NaN. Zeros are
      left out.

    Raises:
      ValueError: `first` or `last` outside the indices.

    Source: alpha-ReQ, Agrawal et al. 2022 (methods.md, section 8).
    """
    size = len(eigenvalues_D)
    last = size // 2 if last is None else last
    if first < 1 or last > size:
        raise ValueError(f"first = {first}, last = {last}: the eigenvalues have indices 1 to {size}")
    t_D = jnp.sort(_over_largest(jnp.asarray(eigenvalues_D)))[::-1]
    index_D = jnp.arange(1, size + 1)
    kept_D = (index_D >= first) & (index_D <= last) & (t_D > 0)
    n = jnp.sum(kept_D)

    def deviations(x_D: Array) -> Array:
        return jnp.where(kept_D, x_D - jnp.sum(jnp.where(kept_D, x_D, 0.0)) / jnp.maximum(n, 1), 0.0)

    x_D, y_D = deviations(jnp.log(index_D)), deviations(jnp.log(jnp.where(kept_D, t_D, 1.0)))
    spread = jnp.sum(jnp.square(x_D))
    slope = jnp.sum(x_D * y_D) / jnp.where(spread > 0, spread, 1.0)
    return jnp.where((n >= 2) & ~jnp.any(jnp.isnan(t_D)), -slope, jnp.nan)


def _entropy(s_D: Array) -> Array:
    """Return the entropy in nats of s / sum(s), without zeros; 0 for the zero matrix."""
    t_D = _over_largest(s_D)
    total = jnp.sum(t_D)
    p_D = t_D / jnp.where(total == 0, 1.0, total)
    return -jnp.sum(p_D * jnp.log(jnp.where(p_D == 0, 1.0, p_D)))


def _over_largest(s_D: Array) -> Array:
    largest = jnp.max(s_D)
    return s_D / jnp.where(largest == 0, 1.0, largest)
