"""Metrics of isotropy: how uniformly the rows of a matrix are distributed over directions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from geometry.gauge import centred
from geometry.registry import Measured, metric, metric_of
from geometry.svd import as_matrix, matmul, right_singular


@metric_of("x_ND")
@jax.jit
def mean_cosine(x_ND: ArrayLike) -> Array:
    """Mean cosine between two different rows, in O(ND): (|sum u|^2 - N) / (N (N - 1)) with u the normalised rows.

    Args:
      x_ND: one matrix.

    Returns:
      A scalar in [-1/(N - 1), 1]. Rows of zeros have no direction and are left out, also of the count N; NaN where
      fewer than two rows are left, since there is no pair to average, and where x_ND holds a NaN or an infinity.
    """
    x_ND = as_matrix(x_ND)
    # Rows are scaled first, so that their squares neither overflow nor underflow. The scale doesn't change
    # a cosine, so no gradient has to flow through it.
    largest_N = jax.lax.stop_gradient(jnp.max(jnp.abs(x_ND), axis=1))
    scale_N = 1.0 / jnp.where(largest_N == 0, 1.0, largest_N)
    square_N = jnp.sum(jnp.square(x_ND * scale_N[:, None]), axis=1)
    nonzero_N = square_N != 0  # also true for NaN
    weight_N = scale_N / jnp.sqrt(jnp.where(nonzero_N, square_N, 1.0))
    # The unit rows are never formed: their sum is a matrix product, and their squared lengths are 1 up to rounding.
    u_D = matmul(weight_N, x_ND)
    n = jnp.sum(nonzero_N, dtype=x_ND.dtype)  # n (n - 1) would overflow an int32
    pairs = n * (n - 1)
    between = jnp.sum(u_D * u_D) - n
    return _over(between, jnp.maximum(pairs, 0.0))


@functools.partial(jax.jit, static_argnames="max_elements")
def partition_isotropy(w_VD: ArrayLike, *, max_elements: int = 1 << 20) -> Array:
    """Return the smallest over the largest partition function, min Z(c) / max Z(c) with Z(c) = sum_i exp(w_i . c).

    c runs over the unit eigenvectors of W^T W and, since an eigenvector's sign is arbitrary and Z(c) differs from
    Z(-c), over their negatives: I(W) is the same for W and -W, and under rotation of the columns. It depends on the
    scale of W: small rows look isotropic. Where a nonzero eigenvalue repeats, its eigenvectors and so I(W) are not
    unique.

    Args:
      w_VD: one matrix.
      max_elements: W times the eigenvectors is formed in blocks of rows of at most this many numbers (at least one
        row), never as a whole.

    Returns:
      A scalar in [0, 1], 1 for the zero matrix; NaN where w_VD holds a NaN or an infinity.

    Source: Arora et al. 2016; Mu & Viswanath 2018, equation 1.
    """
    return isotropy_along(w_VD, right_singular(w_VD)[1], max_elements=max_elements)


@metric(name="partition_isotropy")
def _partition_isotropy(measured: Measured) -> Array:
    """Smallest over largest partition function, min Z(c) / max Z(c) with Z(c) = sum_i exp(w_i . c)."""
    return isotropy_along(measured.x_ND, measured.right_singular[1])


def isotropy_along(w_VD: ArrayLike, c_DK: ArrayLike, *, max_elements: int = 1 << 20) -> Array:
    """Return `partition_isotropy` with the columns of c_DK and their negatives as c; for known eigenvectors."""
    w_VD, c_DK = as_matrix(w_VD), as_matrix(c_DK)
    x_NCD, valid_NC = _row_blocks(w_VD, max_elements)

    def add_block(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        """Add a block of rows to the running sums of exp(y - highest) and exp(-y - highest)."""
        highest_K, total_2K = carry
        y_NK = matmul(jax.lax.dynamic_index_in_dim(x_NCD, i, axis=1, keepdims=False), c_DK)
        valid_N1 = jax.lax.dynamic_slice_in_dim(jnp.asarray(valid_NC), i, 1, axis=1)
        # One shift serves both signs: if exp underflows because of it, I(W) is below the smallest float32 anyway.
        new_K = jax.lax.stop_gradient(jnp.maximum(highest_K, jnp.max(jnp.abs(y_NK), axis=0)))
        above_K = jnp.sum(jnp.where(valid_N1, jnp.exp(y_NK - new_K[None]), 0.0), axis=0)
        below_K = jnp.sum(jnp.where(valid_N1, jnp.exp(-y_NK - new_K[None]), 0.0), axis=0)
        return (new_K, total_2K * jnp.exp(highest_K - new_K)[None] + jnp.stack([above_K, below_K])), None

    start = jnp.zeros(c_DK.shape[1], w_VD.dtype), jnp.zeros((2, c_DK.shape[1]), w_VD.dtype)
    (highest_K, total_2K), _ = jax.lax.scan(add_block, start, jnp.arange(x_NCD.shape[1]))
    log_z_2K = highest_K[None] + jnp.log(total_2K)
    return jnp.exp(jnp.min(log_z_2K) - jnp.max(log_z_2K))


@metric_of("x_ND")
@jax.jit
def isoscore(x_ND: ArrayLike) -> Array:
    """How evenly the variance is spread over the D dimensions: 0 if it lies in one direction, 1 if it is equal in all.

    With v^ the eigenvalues of the covariance scaled to length sqrt(D), delta = |v^ - 1| / sqrt(2 (D - sqrt D)) and
    phi = (D - delta^2 (D - sqrt D))^2 / D^2, IsoScore is (D phi - 1) / (D - 1). Written out, that is
    (PR - 1) / (D - 1) with PR the participation ratio of the centred rows, which is what is computed.

    Args:
      x_ND: one matrix; it is centred first. With N <= D the score is at most (N - 2) / (D - 1).

    Returns:
      A scalar in [0, 1]; NaN where it is undefined (one column, one row, all rows equal) and where x_ND holds a NaN
      or an infinity.

    Source: Rudman et al. 2022, Algorithm 1.
    """
    x_ND = centred(x_ND)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x_ND), initial=0.0))
    x_ND = x_ND / jnp.where(largest == 0, 1.0, largest)
    # sum s^2 and sum s^4 are the trace and the squared norm of the Gram matrix: no decomposition is needed.
    gram_DD = matmul(x_ND.T, x_ND)
    fourth, width = jnp.sum(gram_DD * gram_DD), x_ND.shape[1]
    ratio = _over(jnp.square(jnp.trace(gram_DD)), fourth)
    return (ratio - 1.0) / (width - 1.0) if width > 1 else jnp.nan * ratio


@metric_of("x_ND")
@jax.jit
def mean_norm_ratio(x_ND: ArrayLike) -> Array:
    """Norm of the mean row over the mean norm of the rows: 0 for a cloud around the origin, 1 for equal rows.

    Args:
      x_ND: one matrix.

    Returns:
      A scalar in [0, 1]; NaN for the zero matrix and where x_ND holds a NaN or an infinity.
    """
    x_ND, norm_N = _rows_over_largest(x_ND)
    return _over(_norm(jnp.mean(x_ND, axis=0)), jnp.mean(norm_N))


@metric_of("x_ND")
@jax.jit
def row_norm_spread(x_ND: ArrayLike) -> Array:
    """Standard deviation of the norms of the rows over their mean (the coefficient of variation).

    Args:
      x_ND: one matrix.

    Returns:
      A scalar of at least 0, 0 where all rows have the same length; NaN for the zero matrix and where x_ND holds a NaN
      or an infinity.
    """
    _, norm_N = _rows_over_largest(x_ND)
    return _over(_norm(norm_N - jnp.mean(norm_N)) / math.sqrt(len(norm_N)), jnp.mean(norm_N))


def _rows_over_largest(x_ND: ArrayLike) -> tuple[Array, Array]:
    """Return the matrix divided by its largest absolute entry, and the row norms of the result."""
    x_ND = as_matrix(x_ND)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x_ND)))
    x_ND = x_ND / jnp.where(largest == 0, 1.0, largest)
    return x_ND, jax.vmap(_norm)(x_ND)


def _over(x: Array, y: Array) -> Array:
    """Return x / y, NaN where y is 0, with derivatives that are finite elsewhere."""
    return jnp.where(y == 0, jnp.nan, x / jnp.where(y == 0, 1.0, y))


def _norm(x_D: Array) -> Array:
    """Return the Euclidean norm, with derivative 0 instead of NaN at 0."""
    square = jnp.sum(x_D * x_D)
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))


def _row_blocks(w_VD: Array, max_elements: int) -> tuple[Array, np.ndarray]:
    """Return the matrix as [rows, count, D], one block of rows per index of the middle axis, and a mask of real rows.

    A block takes every count-th row, so that with rows sharded over several devices, every device holds its share of
    every block. A block of consecutive rows would have to be fetched from the one device that holds it.
    """
    height, width = w_VD.shape
    least = -(-height // min(max(max_elements // width, 1), height))
    # A count that divides the height avoids a copy for padding; of these, prefer one that gives devices equal shares.
    exact = [n for n in range(least, min(2 * least, height) + 1) if height % n == 0]
    count = max(exact, key=lambda n: math.gcd(height // n, 64)) if exact else least
    rows = -(-height // count)
    valid_NC = np.arange(rows * count).reshape(rows, count) < height
    x_ND = jnp.pad(w_VD, ((0, rows * count - height), (0, 0))) if rows * count > height else w_VD
    return x_ND.reshape(rows, count, width), valid_NC
