"""Singular values of one matrix, and metrics of how they are spread.

A metric takes singular values, not a matrix, so that one decomposition serves them all. None of them depends on the
scale of the matrix or on the order in which the values come. NaN in gives NaN out; nothing raises for what an array
holds. All of it works under jit, vmap and grad; the heavy functions are one compiled program when called alone.

The methods differ in what they cost and in what they make of small values, in float32 and with s_1 the largest:

  qr    QR, then the SVD of the square factor. Right to about 3e-6 s_1 in every value and nearer in the smallest:
        condition numbers up to 1e5 hold to 1e-3.
  gram  Eigenvalues of the Gram matrix: the fastest, but values below about 3e-4 s_1 are noise, since they were squared.
        Not for condition numbers, nor for the effective rank of a nearly low-rank matrix.
  svd   SVD of the whole matrix: as right as qr, and slower on tall matrices.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

METHODS = ("qr", "gram", "svd")

_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def as_matrix(x: ArrayLike) -> Array:
    """One matrix of at least float32. Raises ValueError unless `x` has two axes."""
    x = jnp.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"expected one matrix [rows, columns], got shape {x.shape}; jax.vmap measures a stack")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.jit, static_argnames="method")
def singular_values(w_VD: ArrayLike, method: str = "qr") -> Array:
    """Singular values in descending order, r = min(V, D) of them.

    Args:
      w_VD: one matrix, tall or wide; narrower types are measured in float32.
      method: "qr", "gram" or "svd"; see the module.

    Returns:
      s_D; all NaN where the matrix holds a NaN or an infinity.

    Differentiable whatever the method, rank-deficient matrices included: where a singular value is zero it has no
    derivative, and the one given is a subgradient.

    Raises:
      ValueError: an unknown method, or not a matrix.
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: needs one of {', '.join(METHODS)}")
    x_ND = _tall(as_matrix(w_VD))
    finite = jnp.all(jnp.isfinite(x_ND))
    s_D = _tall_singular_values(jnp.where(finite, x_ND, 0.0), method)
    return jnp.where(finite, s_D, jnp.nan)


@jax.jit
def right_singular_vectors(w_VD: ArrayLike) -> Array:
    """Eigenvectors of W^T W in the columns of v_DD, by descending eigenvalue; a full basis even if V < D.

    Taken from the QR factor, never from W^T W, which would blur those of small eigenvalues. All NaN where the matrix
    holds a NaN or an infinity.
    """
    w_VD = as_matrix(w_VD)
    finite = jnp.all(jnp.isfinite(w_VD))
    factor = jnp.linalg.qr(jnp.where(finite, w_VD, 0.0), mode="r")
    _, _, v_transposed_DD = jnp.linalg.svd(factor, full_matrices=True)
    return jnp.where(finite, v_transposed_DD.T, jnp.nan)


def effective_rank(s_D: Array) -> Array:
    """Exponential of the entropy of the normalised singular values.

    Args:
      s_D: singular values of one matrix, non-negative, any order.

    Returns:
      A scalar in [1, D]; 0 for the zero matrix, NaN where s_D has one.

    Source: Roy & Vetterli 2007, Definition 1; paper A's R(W).
    """
    return jnp.where(jnp.sum(s_D) == 0, 0.0, jnp.exp(_entropy(s_D)))


def singular_entropy(s_D: Array) -> Array:
    """Divergence KL(p, uniform) = ln r - entropy of the normalised singular values, in nats.

    Args:
      s_D: the r singular values of one matrix, non-negative, any order.

    Returns:
      A scalar in [0, ln r], 0 for a flat spectrum, so that exp(-KL) = R/r; inf for the zero matrix, whose R is 0.

    Source: Godey et al. 2024. PER (Diehl Martinez et al. 2024) and RankMe are the same quantity as R/r.
    """
    return jnp.where(jnp.sum(s_D) == 0, jnp.inf, jnp.log(1.0 * s_D.shape[0]) - _entropy(s_D))


def stable_rank(s_D: Array) -> Array:
    """Squared Frobenius norm over squared spectral norm, sum s^2 / s_1^2: in [1, D]; 0 for the zero matrix."""
    t_D = _over_largest(s_D)
    return jnp.sum(t_D * t_D)


def participation_ratio(s_D: Array) -> Array:
    """(sum s^2)^2 / sum s^4: in [1, D]; 0 for the zero matrix. Of centred data: of the covariance's eigenvalues."""
    square_D = jnp.square(_over_largest(s_D))
    fourth = jnp.sum(square_D * square_D)
    return jnp.square(jnp.sum(square_D)) / jnp.where(fourth == 0, 1.0, fourth)


def condition_number(s_D: Array) -> Array:
    """Largest over smallest of the r singular values: in [1, inf]; inf for a singular matrix and the zero matrix.

    In float32 no more than about 1e6 can be told from inf, by "qr" or "svd"; by "gram" about 1e3.

    A matrix with a direction projected out (`gauge_fix` under "layer_norm") is singular by construction: leave its
    last value out, `condition_number(s_D[:-1])`.
    """
    largest, smallest = jnp.max(s_D), jnp.min(s_D)
    return jnp.where(smallest == 0, jnp.inf, largest / jnp.where(smallest == 0, 1.0, smallest))


@jax.jit
def power_law_alpha(s_D: Array) -> Array:
    """Exponent of the power law that fits the tail of the eigenvalues lambda = s^2 best.

    Every eigenvalue but the largest is tried as xmin. Each gives alpha = 1 + n / sum(ln lambda_i - ln xmin) over the n
    eigenvalues from xmin up; the one taken has the least Kolmogorov-Smirnov distance between fit and data.

    Args:
      s_D: singular values of one matrix, non-negative, any order. Those below D eps s_1, zero to working precision,
        are left out.

    Returns:
      A scalar above 1; NaN where no tail has two distinct eigenvalues (so for the zero matrix), or s_D has a NaN.

    Source: Clauset, Shalizi & Newman 2009, equation 3.1 and section 3.3, with the empirical distribution that
    WeightWatcher's WWFit takes, F_i = i/n for i = 0..n-1.
    """
    t_D = jnp.sort(_over_largest(s_D))
    kept_D = t_D > t_D.shape[0] * jnp.finfo(t_D.dtype).eps
    log_D = 2.0 * jnp.log(jnp.where(kept_D, t_D, 1.0))
    place_D = jnp.arange(t_D.shape[0])

    def fit(first: Array) -> tuple[Array, Array]:
        """Exponent and distance with the eigenvalue at `first`, in ascending order, as xmin."""
        tail_D = kept_D & (place_D >= first)
        n = jnp.sum(tail_D)
        excess_D = jnp.where(tail_D, log_D - log_D[first], 0.0)
        total = jnp.sum(excess_D)
        possible = kept_D[first] & (total > 0)
        slope = n / jnp.where(possible, total, 1.0)
        fitted_D = -jnp.expm1(-slope * excess_D)
        distance_D = jnp.abs(fitted_D - (place_D - first) / n)
        return 1.0 + slope, jnp.where(possible, jnp.max(jnp.where(tail_D, distance_D, 0.0)), jnp.inf)

    alpha_D, distance_D = jax.lax.map(fit, place_D, batch_size=min(t_D.shape[0], 128))
    best = jnp.argmin(distance_D)
    fitted = jnp.isfinite(distance_D[best]) & ~jnp.any(jnp.isnan(s_D))
    return jnp.where(fitted, alpha_D[best], jnp.nan)


def _tall(x: Array) -> Array:
    return x if x.shape[0] >= x.shape[1] else x.T


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _tall_singular_values(x_ND: Array, method: str) -> Array:
    if method == "gram":
        largest = jnp.max(jnp.abs(x_ND), initial=0.0)  # squares of what is left neither overflow nor vanish
        x_ND = x_ND / jnp.where(largest == 0, 1.0, largest)
        square_D = jnp.linalg.eigvalsh(_matmul(x_ND.T, x_ND))[::-1]
        return largest * jnp.sqrt(jnp.maximum(square_D, 0.0))
    factor = x_ND if method == "svd" else jnp.linalg.qr(x_ND, mode="r")
    return jnp.linalg.svd(factor, compute_uv=False)


@_tall_singular_values.defjvp
def _tall_singular_values_jvp(method: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """ds_i = u_i . dX v_i with u_i = X v_i / |X v_i|, which unlike QR's own derivative never divides by zero."""
    (x_ND,), (dx_ND,) = primals, tangents
    v_DD = right_singular_vectors(x_ND)
    image_ND = _matmul(x_ND, v_DD)
    length_1D = jnp.linalg.norm(image_ND, axis=0, keepdims=True)
    u_ND = image_ND / jnp.where(length_1D == 0, 1.0, length_1D)
    return _tall_singular_values(x_ND, method), jnp.sum(u_ND * _matmul(dx_ND, v_DD), axis=0)


def _entropy(s_D: Array) -> Array:
    """Entropy in nats of s / sum(s), zeros left out; 0 for the zero matrix."""
    t_D = _over_largest(s_D)
    total = jnp.sum(t_D)
    p_D = t_D / jnp.where(total == 0, 1.0, total)
    return -jnp.sum(p_D * jnp.log(jnp.where(p_D == 0, 1.0, p_D)))


def _over_largest(s_D: Array) -> Array:
    largest = jnp.max(s_D)
    return s_D / jnp.where(largest == 0, 1.0, largest)
