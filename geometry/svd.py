"""Compute singular values and right singular vectors of one matrix, by methods that differ in cost and accuracy.

In float32, with s_1 the largest singular value and |W|_F the Frobenius norm:

  qr            QR, then the SVD of the square factor. Every value is accurate to about 3e-6 s_1, and the smallest ones
                are more accurate still: condition numbers up to 1e5 are accurate to 1e-3.
  refined_gram  Eigenvectors V of the Gram matrix W^T W. If it can't resolve the small values, a second step takes the
                Gram matrix of W V with columns scaled to length 1, which can. As accurate as qr, and uses only matrix
                products and D x D decompositions. Meant for the training loop, and for a matrix whose rows are sharded
                over devices, which then exchange only D x D arrays.
  gram          The first of these two steps only: the fastest, but values below about 3e-4 s_1 are noise, since they
                come from the roots of tiny squares. Unsuitable for condition numbers, and for the effective rank of a
                nearly low-rank matrix.
  svd           SVD of the whole matrix: as accurate as qr, and slower on tall matrices.

Except with gram, a value of at most 2 eps |W|_F counts as the rounding error of a zero, and is returned as 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry.control import compute_if

METHODS = ("qr", "refined_gram", "gram", "svd")

# A Gram matrix gives s with an error of about eps s_1^2 / (2 s): 1e-3 of the smallest value at this condition number.
_RESOLVED_CONDITION = 100.0

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def as_matrix(x: ArrayLike) -> Array:
    """Return `x` as one matrix in float32 or wider. Raises ValueError unless it has two axes."""
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"expected one matrix [rows, columns], got shape {x.shape}; use jax.vmap for a stack")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnames="method")
def singular_values(w_VD: ArrayLike, method: str = "qr") -> Array:
    """Return the r = min(V, D) singular values in descending order.

    Args:
      w_VD: one matrix, tall or wide; narrower types are measured in float32.
      method: "qr", "refined_gram", "gram" or "svd"; see the module docstring.

    Returns:
      s_D; all NaN if the matrix holds a NaN or an infinity.

    Differentiable with every method, for rank-deficient matrices too: a singular value of zero has no derivative, and a
    subgradient is returned.

    Raises:
      ValueError: an unknown method, or not a matrix.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: needs one of {', '.join(METHODS)}")
    x_ND = as_matrix(w_VD)
    if x_ND.shape[0] < x_ND.shape[1]:
        x_ND = x_ND.T
    s_D = _tall_singular_values(x_ND, method)
    return jnp.where(jnp.isfinite(_largest(x_ND)), s_D, jnp.nan)


@jax.jit
def right_singular(w_VD: ArrayLike) -> tuple[Array, Array]:
    """Return singular values and right singular vectors (eigenvectors of W^T W), by "refined_gram".

    Returns:
      s_D descending, padded with zeros to D values if V < D, and v_DD with the vectors as columns, a full basis. All
      NaN if the matrix holds a NaN or an infinity. The signs of eigenvectors, and the basis of a repeated eigenvalue's
      eigenspace, are arbitrary.

    The derivative of v_DD ignores rotations between vectors whose eigenvalues are equal to working precision.
    """
    w_VD = as_matrix(w_VD)
    finite = jnp.isfinite(_largest(w_VD))
    s_D, v_DD = _right_singular(w_VD)
    return jnp.where(finite, s_D, jnp.nan), jnp.where(finite, v_DD, jnp.nan)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _tall_singular_values(x_ND: Array, method: str) -> Array:
    """Return the singular values of a matrix with V >= D; arbitrary values, without delay, if it isn't finite."""
    if method == "refined_gram":
        return _right_singular(x_ND)[0]
    if method == "gram":
        gram_DD, unit = _gram(x_ND)
        return unit * jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram_DD)[::-1], 0.0))
    x_ND = jnp.where(jnp.isfinite(_largest(x_ND)), x_ND, 0.0)
    factor = x_ND if method == "svd" else jnp.linalg.qr(x_ND, mode="r")
    return _without_rounding(jnp.linalg.svd(factor, compute_uv=False))


@_tall_singular_values.defjvp
def _tall_singular_values_jvp(method: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Use the derivative of `_right_singular`: that of QR divides by zero on a rank-deficient matrix."""
    _, (ds_D, _) = jax.jvp(_right_singular, primals, tangents)
    return _tall_singular_values(primals[0], method), ds_D


@jax.custom_jvp
def _right_singular(x_ND: Array) -> tuple[Array, Array]:
    """Take one step of one-sided block Jacobi: eigenvectors V of the Gram matrix, then the correction from X V."""
    gram_DD, unit = _gram(x_ND)
    square_D, v_DD = jnp.linalg.eigh(gram_DD)
    square_D, v_DD = jnp.maximum(square_D[::-1], 0.0), v_DD[:, ::-1]
    unresolved = square_D[-1] * _RESOLVED_CONDITION**2 < square_D[0]
    s_D, v_DD = compute_if(unresolved, lambda: _refine(x_ND, unit, v_DD), (jnp.sqrt(square_D), v_DD))
    return unit * _without_rounding(s_D), v_DD


def _gram(x_ND: Array) -> tuple[Array, Array]:
    """Return X^T X / unit^2 and the unit: 1, or the largest entry if squares would overflow or underflow.

    The matrix isn't copied unless it is rescaled. If it isn't finite, the result is zeros, because eigenvalue routines
    need finite input.
    """
    largest = _largest(x_ND)
    finite = jnp.isfinite(largest)
    extreme = finite & ((largest > 1e15) | (largest < 1e-12))
    unit = jnp.where(extreme & (largest > 0), largest, 1.0)

    def scaled() -> Array:
        return matmul(x_ND.T / unit, x_ND / unit)

    return jnp.where(finite, compute_if(extreme, scaled, matmul(x_ND.T, x_ND)), 0.0), unit


def _largest(x: Array) -> Array:
    """Return the largest absolute entry; NaN if there is a NaN."""
    return jnp.max(jnp.abs(x), initial=0.0)


def _refine(x_ND: Array, unit: Array, v_DD: Array) -> tuple[Array, Array]:
    """Return singular values and vectors of X, by the Gram matrix of the normalised columns of X V."""
    y_ND = matmul(x_ND, v_DD) / unit
    length_1D = jnp.sqrt(jnp.sum(y_ND * y_ND, axis=0, keepdims=True))
    unit_ND = y_ND / jnp.where(length_1D == 0, 1.0, length_1D)
    # Q L Q^T instead of a Cholesky factor, which fails if columns of rounding errors happen to be parallel.
    value_D, q_DD = jnp.linalg.eigh(matmul(unit_ND.T, unit_ND))
    # R^T, with the long rows first: from R, LAPACK computes the small singular values fifty times less accurately.
    factor_DD = length_1D.T * q_DD * jnp.sqrt(jnp.maximum(value_D, 0.0))[None]
    rotation_DD, s_D, _ = jnp.linalg.svd(factor_DD)
    return s_D, matmul(v_DD, rotation_DD)


@_right_singular.defjvp
def _right_singular_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Return ds_i = u_i . dX v_i with u_i = X v_i / |X v_i|,
    and dv_i = sum_j v_j (V^T d(X^T X) V)_ji / (s_i^2 - s_j^2).
    """
    (x_ND,), (dx_ND,) = primals, tangents
    s_D, v_DD = _right_singular(x_ND)
    unit = jnp.where(s_D[0] > 0, s_D[0], 1.0)
    image_ND, change_ND = matmul(x_ND, v_DD) / unit, matmul(dx_ND, v_DD) / unit
    length_D = jnp.sqrt(jnp.sum(image_ND * image_ND, axis=0))
    # If s_i = 0 the image consists of rounding errors and has no direction; 0 is a subgradient.
    ds_D = unit * jnp.sum(image_ND * change_ND, axis=0) / jnp.where(s_D == 0, 1.0, length_D) * (s_D > 0)

    half_DD, t_D = matmul(image_ND.T, change_ND), s_D / unit
    gap_DD = (t_D[None] - t_D[:, None]) * (t_D[None] + t_D[:, None])
    distinct_DD = jnp.abs(gap_DD) > 4 * jnp.finfo(s_D.dtype).eps
    rotation_DD = jnp.where(distinct_DD, (half_DD + half_DD.T) / jnp.where(distinct_DD, gap_DD, 1.0), 0.0)
    return (s_D, v_DD), (ds_D, matmul(v_DD, rotation_DD))


def _without_rounding(s_D: Array) -> Array:
    """Return the singular values with rounding errors of zeros set to zero; NaN stays."""
    largest = jnp.max(s_D)
    t_D = s_D / jnp.where(largest > 0, largest, 1.0)
    floor = 2 * jnp.finfo(s_D.dtype).eps * jnp.sqrt(jnp.sum(t_D * t_D))
    return jnp.where(t_D <= floor, 0.0, s_D)
