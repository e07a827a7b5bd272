"""Perturb weights: add Gaussian noise, or reduce the rank of the unembedding."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from geometry.svd import matmul, right_singular
from olmo_jax import model
from olmo_jax.execution import sharding


def add_noise(params: Any, key: Array, scale: float, relative: bool = False, pattern: str = ".*") -> Any:
    """Return one model's parameters with independent Gaussian noise added to its matrices.

    Args:
      params: nested dict of arrays, of one model; `jax.vmap` adds the same noise to all members of a stack.
      key: random key. The noise of a matrix depends only on the key, the matrix's path and its shape.
      scale: standard deviation; with `relative`, in units of the matrix's root mean square, so that the noise has about
        `scale` times the matrix's Frobenius norm.
      pattern: regular expression that the whole of a matrix's path has to match.

    Raises ValueError if no matrix matches.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [sharding.path_name(path) for path, _ in leaves]
    matched = [leaf.ndim == 2 and bool(re.fullmatch(pattern, p)) for p, (_, leaf) in zip(paths, leaves, strict=True)]
    if not any(matched):
        raise ValueError(
            f"no matrix of the parameters matches {pattern!r}; the parameters are {', '.join(paths[:8])}, ..."
        )

    def noisy(place: int, w_IO: Array) -> Array:
        unit = jnp.sqrt(jnp.mean(jnp.square(w_IO))) if relative else 1.0
        # Leaves of a dict are sorted by path, so that the index depends on nothing else.
        return w_IO + scale * unit * jax.random.normal(jax.random.fold_in(key, place), w_IO.shape, w_IO.dtype)

    changed = [noisy(i, leaf) if matched[i] else leaf for i, (_, leaf) in enumerate(leaves)]
    return jax.tree_util.tree_unflatten(structure, changed)


def kept_dimensions(share: float, dimensions: int) -> int:
    """Return the number of dimensions in a share of them, at least one."""
    return max(1, round(share * dimensions))


def truncate_unembedding(params: Any, rank: int, vocabulary: int | None = None) -> Any:
    """Return one model's parameters with the unembedding replaced by the nearest matrix of at most that rank.

    W V_k V_k^T, with V_k the first `rank` right singular vectors of the first `vocabulary` rows of W [V, D]; later rows
    are padding. A model with tied embeddings gets a separate unembedding, and its embedding is unchanged.
    """
    w_VD = model.unembedding(params)
    _, v_DD = right_singular(w_VD[:vocabulary])
    v_Dk = v_DD[:, :rank]
    return params | {"unembedding": matmul(matmul(w_VD, v_Dk), v_Dk.T)}
