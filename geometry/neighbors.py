"""Exact nearest neighbours of points in float32, by tiles of rows: never an N x N array at once.

Squared distances by |x|^2 + |y|^2 - 2 x.y are one product of matrices and lose what the subtraction cancels. So they
only shortlist: with the error that they can have taken off they are lower bounds, the points with the lowest bounds are
measured from differences, and where the nearest of those are not all below the first bound left out, the row's
distances are all taken from differences.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from geometry.control import compute_if
from geometry.svd import matmul

_TILE_ROWS = 256
_GROUP = 16


def first_copies(x_ND: Array) -> Array:
    """[N] booleans, False for a row that repeats an earlier one exactly (0 and -0 are alike)."""
    bits_ND = jax.lax.bitcast_convert_type(x_ND.astype(jnp.float32) + 0.0, jnp.uint32)
    odd_2D = np.random.default_rng(0).integers(0, 2**31, (2, x_ND.shape[1]), np.uint32) * 2 + 1
    # Rows are brought in order of two 32-bit hashes; what is compared is the rows themselves.
    mixed_ND = bits_ND ^ (bits_ND >> 15)
    hash_2N = [jnp.sum(mixed_ND * odd_D[None], axis=1, dtype=jnp.uint32) for odd_D in odd_2D]
    order_N = jnp.lexsort(hash_2N)
    sorted_ND = x_ND[order_N]
    repeats_N = jnp.all(sorted_ND[1:] == sorted_ND[:-1], axis=1)
    return jnp.ones(len(x_ND), bool).at[order_N[1:]].set(~repeats_N)


@functools.partial(jax.jit, static_argnames=("k", "tile_rows"))
def nearest(x_ND: Array, there_N: Array, k: int, tile_rows: int = _TILE_ROWS) -> tuple[Array, Array]:
    """The k nearest others of each row, ascending.

    Args:
      x_ND: finite points of moderate size (squares must not overflow).
      there_N: [N] booleans; rows that are False are nobody's neighbours.
      k: at most N - 1.
      tile_rows: rows whose distances to all N points are held at once.

    Returns:
      distance_NK, inf where fewer than k others are there, differentiable; and index_NK, N - 1 at most.
    """
    index_NK, found_NK = neighborhoods(x_ND, there_N, k, tile_rows)

    def measure(tile: tuple[Array, Array]) -> Array:
        x_TD, index_TK = tile
        return jnp.sum(jnp.square(_rows(x_ND, index_TK) - x_TD[:, None]), axis=-1)

    square_NK = over_tiles(measure, (x_ND, index_NK), tile_rows)
    # The derivative of the root at 0 is kept away from; a distance of 0 stays 0.
    positive_NK = square_NK > 0
    distance_NK = jnp.where(positive_NK, jnp.sqrt(jnp.where(positive_NK, square_NK, 1.0)), 0.0)
    return jnp.where(found_NK, distance_NK, jnp.inf), index_NK


@functools.partial(jax.jit, static_argnames=("k", "tile_rows"))
def neighborhoods(x_ND: Array, there_N: Array, k: int, tile_rows: int = _TILE_ROWS) -> tuple[Array, Array]:
    """As `nearest` without the distances: index_NK, ascending, and found_NK, False where there is no such neighbour."""
    x_ND = jax.lax.stop_gradient(x_ND)
    n, width = x_ND.shape
    shortlisted = min(k + 1 + max(4, k // 8), n)  # the row itself is among them
    # |fl(x.y) - x.y| <= D u |x||y|, and likewise for the norms: in all D u (|x| + |y|)^2 <= 2 D u (|x|^2 + |y|^2).
    slack = 2 * (width + 4) * jnp.finfo(x_ND.dtype).eps / 2
    square_N = (1 - slack) * jnp.sum(x_ND * x_ND, axis=1)
    ones_N1 = jnp.ones((n, 1), x_ND.dtype)
    # Each row of the product is minus the bounds of one point to all others, but for its own |x|^2.
    right_NE = jnp.concatenate([x_ND, -jnp.where(there_N, square_N, jnp.inf)[:, None]], axis=1)
    left_NE = jnp.concatenate([2.0 * x_ND, ones_N1], axis=1)

    def search(tile: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        left_TE, x_TD, square_T, own_T = tile
        low_TS, candidate_TS = _top_k(matmul(left_TE, right_NE.T), shortlisted)
        low_TS = square_T[:, None] - low_TS
        exact_TS = jnp.sum(jnp.square(_rows(x_ND, candidate_TS) - x_TD[:, None]), axis=-1)
        exact_TS = jnp.where((candidate_TS == own_T[:, None]) | jnp.isinf(low_TS), jnp.inf, exact_TS)
        exact_TK, place_TK = _smallest(exact_TS, k)
        index_TK = jnp.take_along_axis(candidate_TS, place_TK, axis=1)
        doubtful = jnp.any(exact_TK[:, -1] > low_TS[:, -1]) if shortlisted < n else jnp.bool_(False)

        def measure(row: tuple[Array, Array]) -> tuple[Array, Array]:
            x_D, own = row
            exact_N = jnp.sum(jnp.square(x_ND - x_D[None]), axis=1)
            return _smallest(jnp.where(there_N & (jnp.arange(n) != own), exact_N, jnp.inf), k)

        exact_TK, index_TK = compute_if(doubtful, lambda: jax.lax.map(measure, (x_TD, own_T)), (exact_TK, index_TK))
        return index_TK, jnp.isfinite(exact_TK)

    return over_tiles(search, (left_NE, x_ND, square_N, jnp.arange(n)), tile_rows)


def _top_k(value_TN: Array, k: int) -> tuple[Array, Array]:
    """As `lax.top_k`, whose cost grows with the row: the k largest lie in the k groups with the largest maxima."""
    rows, n = value_TN.shape
    groups = -(-n // _GROUP)
    if groups < 2 * k:
        return jax.lax.top_k(value_TN, k)
    value_TN = jnp.pad(value_TN, ((0, 0), (0, groups * _GROUP - n)), constant_values=-jnp.inf)
    value_TGC = value_TN.reshape(rows, _GROUP, groups)
    _, group_TK = jax.lax.top_k(jnp.max(value_TGC, axis=1), k)
    candidate_TC = jnp.take_along_axis(value_TGC, group_TK[:, None], axis=2).reshape(rows, _GROUP * k)
    value_TK, place_TK = jax.lax.top_k(candidate_TC, k)
    index_TK = place_TK // k * groups + jnp.take_along_axis(group_TK, place_TK % k, axis=1)
    return value_TK, jnp.minimum(index_TK, n - 1)  # beyond n - 1 lies padding


def _smallest(value: Array, k: int) -> tuple[Array, Array]:
    negative, place = jax.lax.top_k(-value, k)
    return -negative, place


def _rows(x_ND: Array, index: Array) -> Array:
    return x_ND.at[index].get(mode="promise_in_bounds")


def over_tiles(f: Callable[[Any], Any], rows: Any, tile_rows: int) -> Any:
    """`f` over tiles of rows of the arrays in `rows`, one tile after another; results joined by row.

    Tiles are of one size, at most `tile_rows`; the last is filled up with rows of zeros.
    """
    n = len(jax.tree.leaves(rows)[0])
    tiles = -(-n // tile_rows)
    size = -(-n // tiles)

    def split(x: Array) -> Array:
        return jnp.pad(x, ((0, tiles * size - n), *((0, 0),) * (x.ndim - 1))).reshape(tiles, size, *x.shape[1:])

    result = jax.lax.map(f, jax.tree.map(split, rows))
    return jax.tree.map(lambda x: x.reshape(tiles * size, *x.shape[2:])[:n], result)
