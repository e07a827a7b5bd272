"""Measure how well the states that a matrix reads are aligned with it."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry.gauge import centred
from geometry.svd import as_matrix, matmul, right_singular


@jax.jit
def log_alignment_ratio(w_OI: ArrayLike, x_NI: ArrayLike) -> Array:
    """Return log_n(rms(W X) / (rms(W) rms(X))), n the input width I, rms over entries.

    1 if every input lies along the one direction that W reads, the most that is possible; about 1/2 for inputs that are
    independent of W; -inf for inputs that W maps to zero.

    Args:
      w_OI: a matrix as [out, in]. x_NI: its inputs, row by row.

    Returns:
      A scalar of at most 1; NaN for a width of 1, where W or X is zero, and if an input holds a NaN or an infinity.

    Raises:
      ValueError: not matrices, or of different widths.

    Source: arXiv 2605.28975 (methods.md, section 8).
    """
    w_OI, x_NI = as_matrix(w_OI), as_matrix(x_NI)
    width = w_OI.shape[1]
    if x_NI.shape[1] != width:
        raise ValueError(f"widths of {width} and {x_NI.shape[1]}: W has to read the inputs")
    if width == 1:
        return jnp.full((), jnp.nan, w_OI.dtype)
    w_OI, x_NI = _over_largest(w_OI), _over_largest(x_NI)
    ratio = _rms(matmul(x_NI, w_OI.T)) / (_rms(w_OI) * _rms(x_NI))
    return jnp.log(ratio) / math.log(width)


def alignment_dimension(ratio: ArrayLike, width: int) -> Array:
    """Return the effective dimension of inputs with a log-alignment ratio, n^(2 (1 - ratio)), n the width.

    1 for inputs along one direction that W reads, n for inputs that are independent of W. Source: as the ratio's.
    """
    return jnp.asarray(width, jnp.float32) ** (2.0 * (1.0 - jnp.asarray(ratio)))


@functools.partial(jax.jit, static_argnames="k")
def principal_alignment(x_ND: ArrayLike, w_VD: ArrayLike, k: int) -> tuple[Array, Array]:
    """Return the overlap of the states' top-k principal subspace with the unembedding's, and its z-score.

    The overlap is |V_k^T U_k|_F^2 / k, with U_k the top-k principal directions of the centred states, and V_k the top-k
    right singular vectors of W. The z-score compares it with a uniformly random k-dimensional subspace: for projections
    P and Q of rank k, tr(P Q) / k has the mean k / D and the variance 2 (D - k)^2 / (D^2 (D - 1) (D + 2)), exactly.

    Args:
      x_ND: states, row by row. w_VD: the unembedding. k: below D, and at most N - 1 and V.

    Returns:
      Two scalars, the overlap in [0, 1] and the z-score; NaN if an input holds a NaN or an infinity.

    Raises:
      ValueError: not matrices, of different widths, or an impossible k.

    Source: principal-geometry alignment, arXiv 2605.17084 (methods.md, section 8); the variance is that of the Haar
    measure, in closed form [ours].
    """
    x_ND, w_VD = as_matrix(x_ND), as_matrix(w_VD)
    width = w_VD.shape[1]
    if x_ND.shape[1] != width:
        raise ValueError(f"widths of {width} and {x_ND.shape[1]}: the unembedding has to read the states")
    if not 1 <= k < width or k > min(x_ND.shape[0] - 1, w_VD.shape[0]):
        raise ValueError(f"k = {k}: needs 1 to {min(width - 1, x_ND.shape[0] - 1, w_VD.shape[0])}")
    (_, u_DD), (_, v_DD) = right_singular(centred(x_ND)), right_singular(w_VD)
    overlap = jnp.sum(jnp.square(matmul(v_DD[:, :k].T, u_DD[:, :k]))) / k
    spread = math.sqrt(2.0 * (width - k) ** 2 / (width**2 * (width - 1) * (width + 2)))
    return overlap, (overlap - k / width) / spread


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _over_largest(x: Array) -> Array:
    """Return the matrix scaled so that squares of its entries don't overflow."""
    largest = jnp.max(jnp.abs(x))
    return x / jnp.where(largest == 0, 1.0, largest)
