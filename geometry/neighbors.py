"""Find the exact nearest neighbours of points in float32, one tile of rows at a time, without an N x N array.

Squared distances as |x|^2 + |y|^2 - 2 x.y need one matrix product, but lose precision by cancellation, so they only
select candidates. Minus a bound on their error they are lower bounds of the true distances. For the points with the
lowest bounds, distances are computed exactly, from differences. If the k nearest of these aren't all below the lowest
bound that was left out, all distances of that row are computed from differences.
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
    """Return a mask [N], False for a row that repeats an earlier one exactly (0 and -0 count as equal)."""
    bits_ND = jax.lax.bitcast_convert_type(x_ND.astype(jnp.float32) + 0.0, jnp.uint32)
    odd_2D = np.random.default_rng(0).integers(0, 2**31, (2, x_ND.shape[1]), np.uint32) * 2 + 1
    # Rows are sorted by two 32-bit hashes, so that equal rows are adjacent; the comparison is of the rows themselves.
    mixed_ND = bits_ND ^ (bits_ND >> 15)
    hash_2N = [jnp.sum(mixed_ND * odd_D[None], axis=1, dtype=jnp.uint32) for odd_D in odd_2D]
    order_N = jnp.lexsort(hash_2N)
    sorted_ND = x_ND[order_N]
    repeats_N = jnp.all(sorted_ND[1:] == sorted_ND[:-1], axis=1)
    return jnp.ones(len(x_ND), bool).at[order_N[1:]].set(~repeats_N)


@functools.partial(jax.jit, static_argnames=("k", "tile_rows"))
def nearest(x_ND: Array, valid_N: Array, k: int, tile_rows: int = _TILE_ROWS) -> tuple[Array, Array]:
    """Return the k nearest other rows of each row, by ascending distance.

    Args:
      x_ND: finite points of moderate size (squares must not overflow).
      valid_N: mask [N]; rows where it is False are no row's neighbours.
      k: at most N - 1.
      tile_rows: rows whose distances to all N points are held at once.

    Returns:
      distance_NK, differentiable, inf where a row has fewer than k valid neighbours; and index_NK, at most N - 1.
    """
    index_NK, valid_NK = neighborhoods(x_ND, valid_N, k, tile_rows)

    def measure(tile: tuple[Array, Array]) -> Array:
        x_TD, index_TK = tile
        return jnp.sum(jnp.square(_rows(x_ND, index_TK) - x_TD[:, None]), axis=-1)

    square_NK = over_tiles(measure, (x_ND, index_NK), tile_rows)
    # The square root has no derivative at 0; a distance of 0 stays 0, with derivative 0.
    positive_NK = square_NK > 0
    distance_NK = jnp.where(positive_NK, jnp.sqrt(jnp.where(positive_NK, square_NK, 1.0)), 0.0)
    return jnp.where(valid_NK, distance_NK, jnp.inf), index_NK


@functools.partial(jax.jit, static_argnames=("k", "tile_rows"))
def neighborhoods(x_ND: Array, valid_N: Array, k: int, tile_rows: int = _TILE_ROWS) -> tuple[Array, Array]:
    """Return index_NK as `nearest` does, and valid_NK, False where a row has fewer than k valid neighbours."""
    x_ND = jax.lax.stop_gradient(x_ND)
    n, width = x_ND.shape
    shortlisted = min(k + 1 + max(4, k // 8), n)  # the row itself is among them
    # |fl(x.y) - x.y| <= D u |x||y|, and likewise for the norms: in all D u (|x| + |y|)^2 <= 2 D u (|x|^2 + |y|^2).
    slack = 2 * (width + 4) * jnp.finfo(x_ND.dtype).eps / 2
    square_N = (1 - slack) * jnp.sum(x_ND * x_ND, axis=1)
    ones_N1 = jnp.ones((n, 1), x_ND.dtype)
    # Each row of the product holds one point's negated bounds to all others, without that point's own term |x|^2.
    right_NE = jnp.concatenate([x_ND, -jnp.where(valid_N, square_N, jnp.inf)[:, None]], axis=1)
    left_NE = jnp.concatenate([2.0 * x_ND, ones_N1], axis=1)

    def search(tile: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        left_TE, x_TD, square_T, row_T = tile
        low_TS, candidate_TS = _top_k(matmul(left_TE, right_NE.T), shortlisted)
        low_TS = square_T[:, None] - low_TS
        exact_TS = jnp.sum(jnp.square(_rows(x_ND, candidate_TS) - x_TD[:, None]), axis=-1)
        exact_TS = jnp.where((candidate_TS == row_T[:, None]) | jnp.isinf(low_TS), jnp.inf, exact_TS)
        exact_TK, place_TK = _smallest(exact_TS, k)
        index_TK = jnp.take_along_axis(candidate_TS, place_TK, axis=1)
        doubtful = jnp.any(exact_TK[:, -1] > low_TS[:, -1]) if shortlisted < n else jnp.bool_(False)

        def measure(row: tuple[Array, Array]) -> tuple[Array, Array]:
            x_D, row_index = row
            exact_N = jnp.sum(jnp.square(x_ND - x_D[None]), axis=1)
            return _smallest(jnp.where(valid_N & (jnp.arange(n) != row_index), exact_N, jnp.inf), k)

        exact_TK, index_TK = compute_if(doubtful, lambda: jax.lax.map(measure, (x_TD, row_T)), (exact_TK, index_TK))
        return index_TK, jnp.isfinite(exact_TK)

    return over_tiles(search, (left_NE, x_ND, square_N, jnp.arange(n)), tile_rows)


def _top_k(value_TN: Array, k: int) -> tuple[Array, Array]:
    """Return what `lax.top_k` does, faster for long rows: the k largest lie in the k groups with the largest maxima."""
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
    return value_TK, jnp.minimum(index_TK, n - 1)  # larger indices are padding


def _smallest(value: Array, k: int) -> tuple[Array, Array]:
    negative, place = jax.lax.top_k(-value, k)
    return -negative, place


def _rows(x_ND: Array, index: Array) -> Array:
    return x_ND.at[index].get(mode="promise_in_bounds")


def over_tiles(f: Callable[[Any], Any], rows: Any, tile_rows: int) -> Any:
    """Apply `f` to tiles of rows of the arrays in `rows`, one tile after another, and join the results by row.

    All tiles have the same size, at most `tile_rows`; the last is padded with rows of zeros.
    """
    n = len(jax.tree.leaves(rows)[0])
    tiles = -(-n // tile_rows)
    size = -(-n // tiles)

    def split(x: Array) -> Array:
        return jnp.pad(x, ((0, tiles * size - n), *((0, 0),) * (x.ndim - 1))).reshape(tiles, size, *x.shape[1:])

    result = jax.lax.map(f, jax.tree.map(split, rows))
    return jax.tree.map(lambda x: x.reshape(tiles * size, *x.shape[2:])[:n], result)
