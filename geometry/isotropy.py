"""How evenly the rows of a matrix point in all directions."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry.gauge import centred
from geometry.spectrum import as_matrix, participation_ratio, right_singular_vectors, singular_values


@jax.jit
def mean_cosine(x_ND: ArrayLike) -> Array:
    """Mean cosine between two different rows, in O(ND): (|sum u|^2 - N) / (N (N - 1)) with u the rows at length 1.

    Args:
      x_ND: one matrix.

    Returns:
      A scalar in [-1/(N - 1), 1]. Rows of zeros have no direction and are left out, of N too; NaN where fewer than
      two rows are left, since there is no pair to average, and where x_ND holds a NaN or an infinity.
    """
    x_ND = as_matrix(x_ND)
    # Rows are scaled first, so that their squares neither overflow nor vanish; the cosine's gradient doesn't see it.
    largest_N1 = jax.lax.stop_gradient(jnp.max(jnp.abs(x_ND), axis=1, keepdims=True))
    x_ND = x_ND / jnp.where(largest_N1 == 0, 1.0, largest_N1)
    square_N1 = jnp.sum(x_ND * x_ND, axis=1, keepdims=True)
    directed_N1 = square_N1 != 0  # true of NaN
    u_ND = x_ND / jnp.sqrt(jnp.where(directed_N1, square_N1, 1.0))
    n = jnp.sum(directed_N1, dtype=x_ND.dtype)  # n (n - 1) would overflow an int32
    pairs = n * (n - 1)
    between = jnp.sum(jnp.square(jnp.sum(u_ND, axis=0))) - jnp.sum(u_ND * u_ND)
    return jnp.where(pairs > 0, between / jnp.where(pairs > 0, pairs, 1.0), jnp.nan)


@functools.partial(jax.jit, static_argnames="max_elements")
def partition_isotropy(w_VD: ArrayLike, *, max_elements: int = 1 << 20) -> Array:
    """Least over greatest partition function, min Z(c) / max Z(c) with Z(c) = sum_i exp(w_i . c).

    c runs over the unit eigenvectors of W^T W and, since an eigenvector's sign is arbitrary and Z(c) differs from
    Z(-c), over their negatives: I(W) is the same for W and -W, and under rotation of the columns. It depends on the
    scale of W: small rows look isotropic. Where a nonzero eigenvalue repeats, its eigenvectors and so I(W) are not
    unique.

    Args:
      w_VD: one matrix.
      max_elements: W times both signs of the eigenvectors is formed in blocks of rows of at most this many numbers
        (at least one row), never as a whole.

    Returns:
      A scalar in [0, 1], 1 for the zero matrix; NaN where w_VD holds a NaN or an infinity.

    Source: Arora et al. 2016; Mu & Viswanath 2018, equation 1.
    """
    w_VD = as_matrix(w_VD)
    rows, width = w_VD.shape
    block = min(max(max_elements // (2 * width), 1), rows)
    c_DD = right_singular_vectors(w_VD)

    def add_block(carry: tuple[Array, Array], first: Array) -> tuple[tuple[Array, Array], None]:
        """Takes rows first..first + block into the running logsumexp; the last block reaches back over seen rows."""
        highest_2D, total_2D = carry
        start = jnp.minimum(first, rows - block)
        y_ND = jnp.matmul(jax.lax.dynamic_slice_in_dim(w_VD, start, block), c_DD, precision=jax.lax.Precision.HIGHEST)
        unseen_N11 = (start + jnp.arange(block) >= first)[:, None, None]
        y_N2D = jnp.where(unseen_N11, jnp.stack([y_ND, -y_ND], axis=1), -jnp.inf)
        new_2D = jax.lax.stop_gradient(jnp.maximum(highest_2D, jnp.max(y_N2D, axis=0)))
        total_2D = total_2D * jnp.exp(highest_2D - new_2D) + jnp.sum(jnp.exp(y_N2D - new_2D[None]), axis=0)
        return (new_2D, total_2D), None

    start_2D = jnp.full((2, width), -jnp.inf, w_VD.dtype), jnp.zeros((2, width), w_VD.dtype)
    (highest_2D, total_2D), _ = jax.lax.scan(add_block, start_2D, jnp.arange(0, rows, block))
    log_z_2D = highest_2D + jnp.log(total_2D)
    return jnp.exp(jnp.min(log_z_2D) - jnp.max(log_z_2D))


@jax.jit
def isoscore(x_ND: ArrayLike) -> Array:
    """How uniformly the variance is spread over the D dimensions: 0 in one direction only, 1 in all alike.

    With v^ the eigenvalues of the covariance scaled to length sqrt(D), delta = |v^ - 1| / sqrt(2 (D - sqrt D)) and
    phi = (D - delta^2 (D - sqrt D))^2 / D^2, IsoScore is (D phi - 1) / (D - 1). Written out, that is
    (PR - 1) / (D - 1) with PR the participation ratio of the centred rows, which is what is computed.

    Args:
      x_ND: one matrix, centred here. With N <= D the score is at most (N - 2) / (D - 1).

    Returns:
      A scalar in [0, 1]; NaN where it is undefined (one column, one row, all rows alike) and where x_ND holds a NaN
      or an infinity.

    Source: Rudman et al. 2022, Algorithm 1.
    """
    x_ND = centred(x_ND)
    width = x_ND.shape[1]
    ratio = participation_ratio(singular_values(x_ND))
    defined = (ratio != 0) & (width > 1)
    return jnp.where(defined, (ratio - 1.0) / max(width - 1.0, 1.0), jnp.nan)
