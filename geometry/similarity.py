"""Measure the similarity of two representations, and how far an unembedding's column space has rotated."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry.gauge import centred
from geometry.svd import as_matrix, matmul, right_singular


@functools.partial(jax.jit, static_argnames="debiased")
def linear_cka(x_ND: ArrayLike, y_NE: ArrayLike, debiased: bool = False) -> Array:
    """Return linear centred kernel alignment, |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F) with centred columns.

    Invariant to rotation, translation and isotropic scaling; 1 if X and Y differ only by these.

    Args:
      x_ND, y_NE: two representations of the same N points, row by row.
      debiased: replace each squared norm by the unbiased estimator of HSIC. If N isn't much larger than D, the plain
        form is near 1 for unrelated X and Y, and this one is near 0. Needs N >= 4.

    Returns:
      A scalar in [0, 1] (debiased: at most 1 up to noise, and may be negative); NaN if X or Y has no variance, with too
      few points, and if an input holds a NaN or an infinity.

    Raises:
      ValueError: not matrices, or different numbers of rows.

    Source: Kornblith et al. 2019, equation 3; debiased: Nguyen et al. 2021, equation 5 (Song et al. 2012).
    """
    x_ND, y_NE = _over_largest(centred(x_ND)), _over_largest(centred(y_NE))
    if len(x_ND) != len(y_NE):
        raise ValueError(f"{len(x_ND)} and {len(y_NE)} rows: both must be representations of the same points")
    if debiased and len(x_ND) < 4:
        return jnp.full((), jnp.nan, x_ND.dtype)
    hsic = _hsic if debiased else lambda a, b: jnp.sum(jnp.square(matmul(a.T, b)))
    between, within = hsic(x_ND, y_NE), hsic(x_ND, x_ND) * hsic(y_NE, y_NE)
    defined = within > 0
    return jnp.where(defined, between / jnp.sqrt(jnp.where(defined, within, 1.0)), jnp.nan) + 0 * between


def cka_between(states: Sequence[ArrayLike], debiased: bool = False) -> Array:
    """Return the symmetric matrix [K, K] of linear CKA between K representations of the same points, such as layers."""
    one = functools.partial(linear_cka, debiased=debiased)
    rows = [[one(x, y) for y in states[: i + 1]] for i, x in enumerate(states)]
    return jnp.stack([jnp.stack([rows[max(i, j)][min(i, j)] for j in range(len(rows))]) for i in range(len(rows))])


@functools.partial(jax.jit, static_argnames="rank")
def mean_squared_angle(w_VD: ArrayLike, z_VE: ArrayLike, rank: int | None = None) -> Array:
    """Return the mean squared principal angle, in radians squared, between the column spaces of two unembeddings.

    It says how far the space of possible logits has rotated. It is the same for W A with any invertible A, and so
    independent of the basis of the states. Sine and cosine are both used, so that small angles are accurate too.

    Args:
      w_VD, z_VE: two matrices over the same V rows; gauge-fix both first to leave out directions that don't affect the
        predictions.
      rank: use only the `rank` directions with the largest singular values of each matrix, instead of all.

    Returns:
      A scalar in [0, (pi/2)^2], the mean over min(dim W, dim Z) angles; NaN if there are none, and if an input
      holds a NaN or an infinity.

    Raises:
      ValueError: not matrices, or different numbers of rows.

    Source: Bjorck & Golub 1973, section 3.
    """
    w_VD, z_VE = as_matrix(w_VD), as_matrix(z_VE)
    if len(w_VD) != len(z_VE):
        raise ValueError(f"{len(w_VD)} and {len(z_VE)} rows: both must be over the same vocabulary")
    (u_VK, m), (v_VL, n) = _orthonormal(w_VD, rank), _orthonormal(z_VE, rank)
    overlap_KL = matmul(u_VK.T, v_VL)
    _, cosine_R, right_RL = jnp.linalg.svd(overlap_KL, full_matrices=False)
    outside_VR = matmul(v_VL - matmul(u_VK, overlap_KL), right_RL.T)
    sine_R = jnp.sqrt(jnp.sum(jnp.square(outside_VR), axis=0))
    angles = jnp.minimum(m, n)
    counted_R = jnp.arange(len(cosine_R)) < angles
    total = jnp.sum(jnp.where(counted_R, jnp.square(jnp.arctan2(sine_R, cosine_R)), 0.0))
    bad = jnp.isnan(jnp.sum(overlap_KL)) | (angles == 0)
    return jnp.where(bad, jnp.nan, total / jnp.maximum(angles, 1))


def _orthonormal(w_VD: Array, rank: int | None) -> tuple[Array, Array]:
    """Return an orthonormal basis of the column space, padded with zero columns, and the dimension of the space."""
    s_D, v_DD = right_singular(w_VD)
    s_K, v_DK = s_D[:rank], v_DD[:, :rank]
    nonzero_K = s_K > 0
    image_VK = matmul(w_VD, v_DK)
    length_1K = jnp.sqrt(jnp.sum(image_VK * image_VK, axis=0, keepdims=True))
    u_VK = jnp.where(nonzero_K[None], image_VK / jnp.where(length_1K > 0, length_1K, 1.0), 0.0)
    return u_VK + 0 * jnp.sum(s_K), jnp.sum(nonzero_K)


def _hsic(x_ND: Array, y_NE: Array) -> Array:
    """Return N (N - 3) times the unbiased HSIC of linear kernels of centred points, without forming N x N arrays.

    With K = X X^T and L = Y Y^T without their diagonals: tr(K L) + (1.K 1)(1.L 1)/((N-1)(N-2)) - 2 (1.K L 1)/(N-2).
    """
    n = len(x_ND)
    x_square_N, y_square_N = jnp.sum(x_ND * x_ND, axis=1), jnp.sum(y_NE * y_NE, axis=1)
    # The columns are centred, so that a row of K sums to minus its diagonal.
    trace = jnp.sum(jnp.square(matmul(x_ND.T, y_NE))) - jnp.sum(x_square_N * y_square_N)
    sums = jnp.sum(x_square_N) * jnp.sum(y_square_N) / ((n - 1.0) * (n - 2.0))
    return trace + sums - 2.0 * jnp.sum(x_square_N * y_square_N) / (n - 2.0)


def _over_largest(x_ND: Array) -> Array:
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x_ND), initial=0.0))
    return x_ND / jnp.where(largest == 0, 1.0, largest)
