"""Damage that no training made: Gaussian noise on the weights, and an unembedding of lower rank."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from geometry.svd import matmul, right_singular
from olmo_jax import model
from olmo_jax.execution import sharding


def add_noise(params: Any, key: Array, scale: float, relative: bool = False, pattern: str = ".*") -> Any:
    """One model's parameters with independent Gaussian noise on its matrices.

    Args:
      params: nested dict of arrays, of one model: `jax.vmap` treats those of a stack, the same noise for all.
      key: of the draw. What a matrix gets depends on it, the matrix's path and shape alone.
      scale: standard deviation; with `relative` over the root mean square of the matrix, so that the noise has `scale`
        times the matrix's Frobenius norm in expectation.
      pattern: regular expression that the whole of a matrix's path has to match.

    Raises ValueError where no matrix does.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [sharding.path_name(path) for path, _ in leaves]
    hit = [leaf.ndim == 2 and bool(re.fullmatch(pattern, p)) for p, (_, leaf) in zip(paths, leaves, strict=True)]
    if not any(hit):
        raise ValueError(f"no matrix of the parameters matches {pattern!r}; there are {', '.join(paths[:8])}, ...")

    def noisy(place: int, w_IO: Array) -> Array:
        size = jnp.sqrt(jnp.mean(jnp.square(w_IO))) if relative else 1.0
        # In the order of the paths, which a dict's leaves have.
        return w_IO + scale * size * jax.random.normal(jax.random.fold_in(key, place), w_IO.shape, w_IO.dtype)

    changed = [noisy(i, leaf) if hit[i] else leaf for i, (_, leaf) in enumerate(leaves)]
    return jax.tree_util.tree_unflatten(structure, changed)


def kept_dimensions(share: float, dimensions: int) -> int:
    """How many of the dimensions a share of them is, at least one."""
    return max(1, round(share * dimensions))


def truncate_unembedding(params: Any, rank: int, vocabulary: int | None = None) -> Any:
    """One model's parameters with the unembedding replaced by the nearest matrix of at most that rank.

    W V_k V_k^T with the `rank` first right singular vectors of W [V, D], those of its `vocabulary` first rows: what
    lies beyond pads it. Where the embedding is tied to it, the model gets an unembedding of its own: what it reads
    stays as it is.
    """
    w_VD = model.unembedding(params)
    _, v_DD = right_singular(w_VD[:vocabulary])
    v_Dk = v_DD[:, :rank]
    return params | {"unembedding": matmul(matmul(w_VD, v_Dk), v_Dk.T)}
