"""Round weights to a grid of 2^bits levels and back, which emulates quantisation for evaluation.

A grid is affine: level n stands for the weight scale * (n - zero), with 2^bits consecutive integers n. A scale is
shared by an output column ("channel"), a group of consecutive inputs of a column ("group") or the matrix ("tensor").
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

# What shares a scale, and the range that a symmetric grid covers: see round_to_nearest.
GRANULARITIES = ("channel", "group", "tensor")
SYMMETRIC_GRIDS = ("max", "gptq")
# The projections of every block; embedding, unembedding and norms keep their precision.
BLOCK_PROJECTIONS = r"blocks_\d+/(attention|mlp)/\w+"


class Grid(NamedTuple):
    """Levels lowest..highest; level n is the weight scale * (n - zero). scale and zero broadcast against weights."""

    scale: Array
    zero: Array
    lowest: int | Array
    highest: int | Array

    def snap(self, w: Array) -> Array:
        """Return the weights of the levels nearest to `w`, ties to even, in the dtype of the scale."""
        level = jnp.clip(jnp.round(w / self.scale) + self.zero, self.lowest, self.highest)
        return self.scale * (level - self.zero)


def check_bits(bits: int | Array) -> None:
    """Raise ValueError for a number of bits outside 2..8; a traced number isn't checked."""
    if not isinstance(bits, jax.core.Tracer) and bits not in range(2, 9):
        raise ValueError(f"bits = {bits!r}: needs a whole number from 2 to 8")


def fit_grid(
    w: Array, bits: int | Array, axis: int | tuple[int, ...] = 0, symmetric: bool = True, grid: str = "max"
) -> Grid:
    """Return the grid of `round_to_nearest` for the weights along `axis`; scale and zero keep `axis` with size 1.

    Raises ValueError for an unknown grid.
    """
    if grid not in SYMMETRIC_GRIDS:
        raise ValueError(f"grid = {grid!r}: needs one of {', '.join(SYMMETRIC_GRIDS)}")
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    if symmetric:
        top = (1 << (bits - 1)) - 1
        scale = jnp.max(jnp.abs(w), axis=axis, keepdims=True) / (top if grid == "max" else top + 0.5)
        scale = jnp.where(scale == 0, 1.0, scale)
        return Grid(scale, jnp.zeros_like(scale), -top - 1, top)
    top = (1 << bits) - 1
    least = jnp.minimum(jnp.min(w, axis=axis, keepdims=True), 0.0)
    scale = (jnp.maximum(jnp.max(w, axis=axis, keepdims=True), 0.0) - least) / top
    scale = jnp.where(scale == 0, 1.0, scale)
    return Grid(scale, jnp.round(-least / scale), 0, top)


def largest_group(inputs: int, most: int) -> int:
    """Return the size of the largest groups into which `inputs` inputs can be divided evenly, `most` at most.

    Published settings name one group size, often 128, for all matrices; models narrower than that, or whose width isn't
    a multiple of it, need a smaller one. A width whose only small divisor is 1, such as a prime, gets groups of 1.

    Raises ValueError if `most` isn't positive.
    """
    if most < 1:
        raise ValueError(f"group_size = {most}: needs a positive number of inputs")
    return next(size for size in range(min(inputs, most), 0, -1) if inputs % size == 0)


def check_scales(shape: tuple[int, ...], granularity: str, group_size: int | None) -> None:
    """Raise ValueError for a shape other than [inputs, outputs], and for an invalid granularity or group size."""
    if len(shape) != 2:
        raise ValueError(f"expected one matrix [inputs, outputs], got shape {shape}; jax.vmap rounds a stack")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity = {granularity!r}: needs one of {', '.join(GRANULARITIES)}")
    if group_size is None:
        if granularity == "group":
            raise ValueError("granularity = 'group' needs a group_size, the number of inputs that share a scale")
    elif granularity == "tensor":
        raise ValueError(f"group_size = {group_size} contradicts granularity = 'tensor'; leave out one of them")
    elif group_size < 1 or shape[0] % group_size:
        raise ValueError(f"group_size = {group_size} doesn't divide the {shape[0]} inputs of a weight {shape}")


def round_to_nearest(
    w_IO: ArrayLike,
    bits: int | Array,
    granularity: str = "channel",
    group_size: int | None = None,
    symmetric: bool = True,
    grid: str = "max",
) -> Array:
    """Round each weight to the nearest level of its grid.

    Symmetric, with q = 2^(bits-1) - 1: zero is level 0, levels are -q - 1..q, and scale = max|w| / q (grid "max") or
    max|w| / (q + 1/2) (grid "gptq", the scale of the reference GPTQ code and of Qwix).

    Asymmetric, with levels 0..2^bits - 1: scale = (max - min) / (2^bits - 1) and zero = round(-min / scale), where
    min and max are first extended to include 0, as the reference GPTQ code does. So a weight of 0 stays exactly 0,
    and the ends of the range may move by up to half a scale. `grid` has no effect here.

    No weight moves by more than half its scale. Weights that are all zero stay zero. If a weight is NaN or infinite,
    all weights that share its scale become NaN, and no others.

    Args:
      w_IO: one matrix [inputs, outputs].
      bits: 2 to 8.
      granularity: which weights share a scale: "channel" (an output's column), "group" or "tensor".
      group_size: inputs in a group; implies granularity "group". It must divide the number of inputs.
      symmetric: whether the grid is symmetric, see above. grid: "max" or "gptq".

    Returns:
      The rounded weights in the dtype of `w_IO` (float32 for integers). They are computed in float32 or wider, so in a
      narrower dtype they lie on the grid only up to its precision.

    Raises:
      ValueError: not a matrix, or an invalid argument.

    There is one compiled program per shape and choice of the arguments after `bits`.
    """
    check_bits(bits)
    return _round_to_nearest(w_IO, bits, granularity, group_size, symmetric, grid)


@functools.partial(jax.jit, static_argnames=("granularity", "group_size", "symmetric", "grid"))
def _round_to_nearest(
    w_IO: ArrayLike, bits: Array, granularity: str, group_size: int | None, symmetric: bool, grid: str
) -> Array:
    w_IO = jnp.asarray(w_IO)
    if not jnp.issubdtype(w_IO.dtype, jnp.floating):
        w_IO = w_IO.astype(jnp.float32)
    check_scales(w_IO.shape, granularity, group_size)
    if group_size is None:
        levels = fit_grid(w_IO, bits, (0, 1) if granularity == "tensor" else 0, symmetric, grid)
        return levels.snap(w_IO).astype(w_IO.dtype)
    inputs, outputs = w_IO.shape
    w_GIO = w_IO.reshape(inputs // group_size, group_size, outputs)
    return fit_grid(w_GIO, bits, 1, symmetric, grid).snap(w_GIO).reshape(inputs, outputs).astype(w_IO.dtype)


def quantize_params(
    params: Mapping[str, Any],
    bits: int | Array,
    pattern: str = BLOCK_PROJECTIONS,
    granularity: str = "channel",
    group_size: int | None = None,
    symmetric: bool = True,
    grid: str = "max",
    adapt_groups: bool = False,
) -> Any:
    """Round the matrices of one model whose path matches; all else, including matching vectors, stays unchanged.

    Embedding, positions and unembedding [V, D] are rounded as [D, V], so that each token has its own scale, or one per
    group of its dimensions. A tied embedding matches by either name.

    Args:
      params: nested dict of arrays, of one model; `jax.vmap` rounds a stack of members.
      bits, granularity, group_size, symmetric, grid: as in `round_to_nearest`.
      pattern: regular expression that the whole of a leaf's path, its keys joined by "/", has to match.
      adapt_groups: whether a matrix whose inputs `group_size` doesn't divide has `largest_group` instead, rather than
        being an error.

    Returns:
      A tree of the same structure.

    Raises:
      ValueError: no matrix matches, a match has more than two axes, or `round_to_nearest` rejects one (the message
        gives its path).
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in leaves]
    names = {"embedding": ("embedding", "unembedding")} if "unembedding" not in params else {}
    matching = [any(re.fullmatch(pattern, name) for name in names.get(path, (path,))) for path in paths]
    for path, (_, leaf), matches in zip(paths, leaves, matching, strict=True):
        if matches and jnp.ndim(leaf) > 2:
            raise ValueError(f"{path}: expected one matrix, got shape {jnp.shape(leaf)}; jax.vmap rounds a stack")
    chosen = [matches and jnp.ndim(leaf) == 2 for matches, (_, leaf) in zip(matching, leaves, strict=True)]
    if not any(chosen):
        first = ", ".join(f"{path} {jnp.shape(leaf)}" for path, (_, leaf) in list(zip(paths, leaves, strict=True))[:8])
        raise ValueError(f"no matrix of the parameters matches {pattern!r}; the first are: {first}")

    def rounded(path: str, leaf: Array) -> Array:
        by_token = path in ("embedding", "positions", "unembedding")
        w_IO = leaf.T if by_token else leaf
        size = largest_group(len(w_IO), group_size) if adapt_groups and group_size else group_size
        try:
            rounded_IO = round_to_nearest(w_IO, bits, granularity, size, symmetric, grid)
            return rounded_IO.T if by_token else rounded_IO
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    return jax.tree_util.tree_unflatten(
        structure,
        [
            rounded(path, leaf) if matches else leaf
            for path, (_, leaf), matches in zip(paths, leaves, chosen, strict=True)
        ],
    )
