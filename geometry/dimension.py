"""Estimate the intrinsic dimension of a point cloud from distances to nearest neighbours, globally and at each point.

Points that repeat an earlier one exactly are left out, and `duplicates` counts them. Undefined values are NaN, and all
values are NaN if a coordinate is NaN or infinite. All estimates are invariant to scaling, translation and rotation of
the points. All functions work under jit and vmap; memory grows with N, not with N^2.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from geometry.control import compute_if
from geometry.neighbors import first_copies, nearest, neighborhoods, over_tiles
from geometry.registry import Measured, metric, metric_of
from geometry.svd import as_matrix, matmul

ESTIMATORS = ("regression", "mle")
CONVENTIONS = ("standard", "skdim034")

# Upper bound on the array elements held at once while neighbourhoods are measured.
MAX_ELEMENTS = 1 << 24


class Distribution(NamedTuple):
    """Mean, standard deviation and quantiles (named by their percentage) of the pointwise dimensions."""

    mean: Array
    std: Array
    q10: Array
    median: Array
    q90: Array
    q5: Array
    q25: Array
    q75: Array
    q95: Array


@metric_of(
    "x_ND",
    "two_nn_mle",
    "TwoNN's intrinsic dimension, by maximum likelihood instead of the regression.",
    estimator="mle",
)
@metric_of("x_ND")
@functools.partial(jax.jit, static_argnames=("discard_fraction", "estimator", "convention"))
def two_nn(
    x_ND: ArrayLike, discard_fraction: float = 0.1, estimator: str = "regression", convention: str = "standard"
) -> Array:
    """TwoNN: the dimension d for which the ratio mu = r2/r1 of the two nearest distances follows F(mu) = 1 - mu^-d.

    Args:
      x_ND: points in rows.
      discard_fraction: share of the largest ratios that the regression leaves out (the paper's 10 %).
      estimator: "regression", the slope through 0 of -ln(1 - F_i) on ln mu_i, ascending; or "mle", the
        bias-corrected maximum-likelihood estimate, (N - 1) / sum ln mu_i over all points.
      convention: F_i = i/N, "standard", or (i - 1)/N, "skdim034", as in scikit-dimension 0.3.4 and therefore paper B.
        With i/N the last point, whose F is 1, is left out of the regression even if nothing is discarded.

    Returns:
      A scalar; NaN with fewer than 3 distinct points, inf where all ratios are 1 (a lattice).

    Raises:
      ValueError: not a matrix, an unknown estimator or convention, or a fraction outside [0, 1).

    Source: Facco et al. 2017; "mle": Denti et al. 2022, equation 5.
    """
    fit = _fit(discard_fraction, estimator, convention)
    x_ND, distinct_N, finite = _points(x_ND)
    if len(x_ND) < 3:
        return jnp.full((), jnp.nan, x_ND.dtype)
    distance_N2, _ = nearest(x_ND, distinct_N, 2)
    return jnp.where(finite, fit(*_log_ratio(distance_N2, distinct_N)), jnp.nan)


@functools.partial(jax.jit, static_argnames=("n_neighbors", "discard_fraction", "estimator", "convention"))
def local_two_nn(
    x_ND: ArrayLike,
    n_neighbors: int = 128,
    discard_fraction: float = 0.1,
    estimator: str = "regression",
    convention: str = "standard",
) -> Array:
    """Return the TwoNN dimension around each point, fitted to its `n_neighbors` nearest other points only.

    The point itself isn't part of this neighbourhood, and the two nearest neighbours of each of its points are searched
    within it. If there are fewer other points, all of them are used.

    Args:
      x_ND: points in rows. n_neighbors: paper B's L. For the other arguments see `two_nn`.

    Returns:
      [N]; NaN for a point that repeats an earlier one (`distribution` leaves these out), and for all points if fewer
      than 4 are distinct.

    Raises:
      ValueError: as `two_nn`, and for fewer than 3 neighbours.

    Source: paper B (arXiv 2506.01034), section 3; scikit-dimension's `TwoNN().fit_pw`.
    """
    fit = _fit(discard_fraction, estimator, convention)
    if n_neighbors < 3:
        raise ValueError(f"n_neighbors = {n_neighbors}: TwoNN needs at least 3 points")
    x_ND, distinct_N, finite = _points(x_ND)
    n, width = x_ND.shape
    size = min(n_neighbors, n - 1)
    if size < 3:
        return jnp.full(n, jnp.nan, x_ND.dtype)
    index_NL, valid_NL = neighborhoods(x_ND, distinct_N, size)

    def measure(batch: tuple[Array, Array, Array]) -> Array:
        x_BD, index_BL, valid_BL = batch
        # Relative to the centre of the neighbourhood the coordinates are small, and so are rounding errors.
        y_BLD = x_ND.at[index_BL].get(mode="promise_in_bounds") - x_BD[:, None]
        return jax.vmap(fit)(*jax.vmap(_log_ratio)(_two_nearest(y_BLD, valid_BL), valid_BL))

    # On a CPU the compiled program has a separate matrix product for each neighbourhood of a batch.
    at_once = 32 if _on_cpu() else max(1, MAX_ELEMENTS // (size * (size + width)))
    dimension_N = over_tiles(measure, (x_ND, index_NL, valid_NL), at_once)
    return jnp.where(finite & distinct_N, dimension_N, jnp.nan)


@functools.partial(jax.jit, static_argnames=("n_neighbors",))
def local_levina_bickel(x_ND: ArrayLike, n_neighbors: int = 20) -> Array:
    """Return the maximum-likelihood dimension around each point, (k - 1) / sum_{j<k} ln(T_k / T_j).

    T_j is the distance to the j-th nearest other point.

    Args:
      x_ND: points in rows. n_neighbors: k; if there are fewer other points, all of them are used.

    Returns:
      [N]; NaN for a point that repeats an earlier one, and for all points if fewer than 3 are distinct.

    Raises:
      ValueError: not a matrix, or fewer than 2 neighbours.

    Source: Levina & Bickel 2004, equation 8; scikit-dimension's `MLE().fit_pw`.
    """
    if n_neighbors < 2:
        raise ValueError(f"n_neighbors = {n_neighbors}: needs at least 2")
    x_ND, distinct_N, finite = _points(x_ND)
    size = min(n_neighbors, len(x_ND) - 1)
    if size < 2:
        return jnp.full(len(x_ND), jnp.nan, x_ND.dtype)
    distance_NK, _ = nearest(x_ND, distinct_N, size)
    valid_NK = jnp.isfinite(distance_NK)
    log_NK = jnp.log(jnp.where(valid_NK, distance_NK, 1.0))
    farthest_N1 = jnp.max(jnp.where(valid_NK, log_NK, -jnp.inf), axis=1, keepdims=True)
    total_N = jnp.sum(jnp.where(valid_NK, farthest_N1 - log_NK, 0.0), axis=1)
    k_N = jnp.sum(valid_NK, axis=1)
    defined_N = finite & distinct_N & (k_N >= 2)
    return jnp.where(defined_N, _slope(k_N - 1.0, total_N), jnp.nan)


@metric_of("x_ND")
def levina_bickel(x_ND: ArrayLike, n_neighbors: int = 20) -> Array:
    """Maximum-likelihood dimension of all points: the harmonic mean of `local_levina_bickel`.

    Source: MacKay & Ghahramani 2005, who show that Levina & Bickel's arithmetic mean of the local estimates is biased.
    """
    local_N = local_levina_bickel(x_ND, n_neighbors)
    return 1.0 / _mean(1.0 / local_N)


def first_distinct(x_TD: Array, count: int) -> tuple[Array, Array]:
    """Return the first `count` distinct rows, in order, and the total number of distinct rows.

    If there are fewer than `count` distinct rows, repeated rows follow them. Source: paper B's sampling, which draws
    tokens, drops duplicates and then truncates.
    """
    distinct_T = first_copies(x_TD)
    order_T = jnp.argsort(~distinct_T, stable=True)
    return x_TD[order_T[:count]], jnp.sum(distinct_T)


def duplicates(x_ND: ArrayLike) -> Array:
    """Return the number of rows that repeat an earlier one exactly."""
    return jnp.sum(~first_copies(as_matrix(x_ND)))


@jax.jit
def distribution(local_N: Array) -> Distribution:
    """Return mean, standard deviation and quantiles of pointwise dimensions, ignoring NaN; NaN if all are NaN."""
    quantiles = jnp.nanquantile(local_N, jnp.array([0.1, 0.5, 0.9, 0.05, 0.25, 0.75, 0.95]))
    mean = _mean(local_N)
    return Distribution(mean, jnp.sqrt(_mean(jnp.square(local_N - mean))), *quantiles)


_QUANTILE = "{} quantile over points of the local TwoNN dimension."


@metric(
    name="local_two_nn",
    values={
        "": "Paper B's metric: the mean over points of the local TwoNN dimension.",
        "_std": "Standard deviation over points of the local TwoNN dimension.",
        "_q10": _QUANTILE.format("10 %"),
        "_median": "Median over points of the local TwoNN dimension.",
        "_q90": _QUANTILE.format("90 %"),
        "_q5": _QUANTILE.format("5 %"),
        "_q25": _QUANTILE.format("25 %"),
        "_q75": _QUANTILE.format("75 %"),
        "_q95": _QUANTILE.format("95 %"),
    },
)
def _local_two_nn(measured: Measured) -> Distribution:
    """Return the distribution of local TwoNN dimensions in paper B's form: skdim's F, regression, 10 % cut."""
    return distribution(local_two_nn(measured.x_ND, measured.n_neighbors, convention="skdim034"))


def _mean(x_N: Array) -> Array:
    """Return the mean of the values that aren't NaN."""
    valid_N = ~jnp.isnan(x_N)
    count = jnp.sum(valid_N)
    mean = jnp.sum(jnp.where(valid_N, x_N, 0.0)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, jnp.nan)


def _points(x_ND: ArrayLike) -> tuple[Array, Array, Array]:
    """Return the points centred and scaled, a mask of those that repeat no earlier one, and whether all are finite."""
    x_ND = as_matrix(x_ND)
    finite = jnp.all(jnp.isfinite(x_ND))
    x_ND = jnp.where(finite, x_ND, 0.0)
    distinct_N = first_copies(x_ND)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x_ND), initial=0.0))
    x_ND = x_ND / jnp.where(largest == 0, 1.0, largest)
    # A large common offset would cost the digits in which nearby points differ.
    x_ND = x_ND - jax.lax.stop_gradient(jnp.mean(x_ND, axis=0, keepdims=True))
    return x_ND, distinct_N, finite


def _log_ratio(distance_N2: Array, valid_N: Array) -> tuple[Array, Array]:
    """Return ln(r2/r1) and where it is defined: for valid points with two neighbours at a positive distance."""
    valid_N = valid_N & jnp.isfinite(distance_N2[:, 1]) & (distance_N2[:, 0] > 0)
    log_N2 = jnp.log(jnp.where(valid_N[:, None], distance_N2, 1.0))
    return log_N2[:, 1] - log_N2[:, 0], valid_N


def _fit(discard_fraction: float, estimator: str, convention: str) -> Callable[[Array, Array], Array]:
    """Return `fit(log_mu_N, valid_N)`, which estimates the dimension from the valid points."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator = {estimator!r}: needs one of {', '.join(ESTIMATORS)}")
    if convention not in CONVENTIONS:
        raise ValueError(f"convention = {convention!r}: needs one of {', '.join(CONVENTIONS)}")
    if not 0 <= discard_fraction < 1:
        raise ValueError(f"discard_fraction = {discard_fraction}: needs a number in [0, 1)")

    def mle(log_mu_N: Array, valid_N: Array) -> Array:
        n = jnp.sum(valid_N)
        return jnp.where(n >= 3, _slope(n - 1.0, jnp.sum(jnp.where(valid_N, log_mu_N, 0.0))), jnp.nan)

    def regression(log_mu_N: Array, valid_N: Array) -> Array:
        n = jnp.sum(valid_N)
        # How many of n points are kept; computed in float64, because the product is rounded down.
        kept = jnp.asarray(np.floor(np.arange(len(log_mu_N) + 1) * (1 - discard_fraction)).astype(np.int32))[n]
        x_N = jnp.sort(jnp.where(valid_N, log_mu_N, jnp.inf))
        rank_N = jnp.arange(1, len(x_N) + 1)
        below_N = rank_N if convention == "standard" else rank_N - 1
        used_N = (rank_N <= kept) & (below_N < n)
        x_N = jnp.where(used_N, x_N, 0.0)
        y_N = -jnp.log1p(-jnp.where(used_N, below_N / jnp.maximum(n, 1), 0.0))
        # Points whose F is 0 don't determine a slope.
        determined = (n >= 3) & jnp.any(used_N & (below_N > 0))
        return jnp.where(determined, _slope(jnp.sum(x_N * y_N), jnp.sum(x_N * x_N)), jnp.nan)

    return mle if estimator == "mle" else regression


def _slope(rise: Array, run: Array) -> Array:
    return jnp.where(run > 0, rise / jnp.where(run > 0, run, 1.0), jnp.inf)


def _two_nearest(y_BLD: Array, valid_BL: Array) -> Array:
    """Return the distances [B, L, 2] of each point to the two nearest other valid points of its neighbourhood."""
    size = y_BLD.shape[1]
    near_BLL = _squared_distances(jax.lax.stop_gradient(jnp.where(valid_BL[:, :, None], y_BLD, 0.0)))
    # The index is stored in the lowest bits of the distance; positive floats keep their order when read as integers.
    # So one plain minimum gives both value and index; unlike argmin, it is vectorized on a CPU.
    index_mask = 2 ** int(size - 1).bit_length() - 1
    bits_BLL = jax.lax.bitcast_convert_type(jnp.maximum(near_BLL.astype(jnp.float32), 0.0), jnp.int32)
    key_BLL = (bits_BLL & ~index_mask) | jnp.arange(size, dtype=jnp.int32)[None, :, None]
    highest = jnp.iinfo(jnp.int32).max
    key_BLL = jnp.where(np.eye(size, dtype=bool)[None] | ~valid_BL[:, :, None], highest, key_BLL)
    first_B1L = jnp.min(key_BLL, axis=1, keepdims=True)
    second_BL = jnp.min(jnp.where(key_BLL == first_B1L, highest, key_BLL), axis=1)
    index_BL2 = jnp.minimum(jnp.stack([first_B1L[:, 0], second_BL], axis=-1) & index_mask, size - 1)
    others_BL2D = jax.vmap(lambda y_LD, index_L2: y_LD.at[index_L2].get(mode="promise_in_bounds"))(y_BLD, index_BL2)
    square_BL2 = jnp.sum(jnp.square(others_BL2D - y_BLD[:, :, None]), axis=-1)
    distance_BL2 = jnp.where(square_BL2 > 0, jnp.sqrt(jnp.where(square_BL2 > 0, square_BL2, 1.0)), 0.0)
    enough_BL = valid_BL & (jnp.sum(valid_BL, axis=1, keepdims=True) > 2)
    ascending_BL2 = jnp.stack([jnp.min(distance_BL2, axis=-1), jnp.max(distance_BL2, axis=-1)], axis=-1)
    return jnp.where(enough_BL[:, :, None], ascending_BL2, jnp.inf)


def _squared_distances(y_BLD: Array) -> Array:
    """Return squared distances [B, L, L], accurate enough to rank.

    They come from a matrix product or, if that loses too much precision, from differences.
    """
    square_BL = jnp.sum(y_BLD * y_BLD, axis=-1)

    def product(y_LD: Array) -> Array:
        return matmul(y_LD, y_LD.T)

    # On a CPU separate small products are fastest; on an accelerator one batched product is.
    product_BLL = jnp.stack([product(y_LD) for y_LD in y_BLD]) if _on_cpu() else jax.vmap(product)(y_BLD)
    near_BLL = square_BL[:, :, None] + square_BL[:, None, :] - 2 * product_BLL

    # The rounding error is about 4 u sqrt(D) times the largest square norm; it must be less than 1 % of the smallest
    # squared distance.
    width = y_BLD.shape[2]
    floor_B = 200 * jnp.finfo(y_BLD.dtype).eps * np.sqrt(width) * jnp.max(square_BL, axis=1)
    identity_LL = np.eye(y_BLD.shape[1], dtype=bool)
    doubtful = jnp.any((near_BLL < floor_B[:, None, None]) & ~identity_LL[None])

    def differences() -> Array:
        return jax.lax.map(lambda y_LD: jnp.sum(jnp.square(y_LD[:, None] - y_LD[None]), axis=-1), y_BLD)

    return compute_if(doubtful, differences, near_BLL)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
