"""Conversion between our parameters and Hugging Face's tensors.

Linear layers are `[out, in]` in most families of Hugging Face's format and `[in, out]` here; some tensors hold several
parameters.
"""

import collections
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from olmo_jax import model
from olmo_jax.config.model import ModelConfig
from olmo_jax.execution.sharding import path_name
from olmo_jax.hf.family import Family

# One row per token or position: these have the same orientation in both formats.
_BY_TOKEN = ("embedding", "unembedding", "positions")


def our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of our parameters, by path."""
    tree = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))
    return {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def holders_of(family: Family, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the names of a family's tensors, each with the paths of the parameters that it holds, in order."""
    order = {key: i for i, key in enumerate(family.tensors)}

    def block_and_order(path: str) -> tuple[int, int]:
        block, key = _block(path)
        return block, order[key]

    holders: dict[str, list[str]] = collections.defaultdict(list)
    for path in sorted(paths, key=block_and_order):
        block, key = _block(path)
        holders[family.tensors[key].format(i=block)].append(path)
    return {name: tuple(held_paths) for name, held_paths in holders.items()}


def _block(path: str) -> tuple[int, str]:
    """Return the block's number, -1 outside any block, and the path inside it."""
    match = re.fullmatch(r"blocks_(\d+)/(.*)", path)
    return (int(match[1]), match[2]) if match else (-1, path)


def their_shape(family: Family, paths: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a family's tensor that holds the parameters at `paths`."""
    if paths[0] in _BY_TOKEN or len(shapes[paths[0]]) == 1:
        rows = sum(shapes[path][0] for path in paths)
        return (rows, *shapes[paths[0]][1:])
    out_in = sum(shapes[path][1] for path in paths), shapes[paths[0]][0]
    return out_in[::-1] if family.stored_in_out else out_in


def split(
    family: Family, theirs: np.ndarray, paths: Sequence[str], shapes: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> dict[str, np.ndarray]:
    """Return our parameters, matrices as `[in, out]`, from the family's tensor that holds them."""
    if paths[0] in _BY_TOKEN:
        return {paths[0]: theirs}
    if family.stored_in_out:
        theirs = theirs.T
    if len(paths) == 1:
        parts = [theirs]
    elif family.per_head:
        rows_HPK = theirs.reshape(config.n_heads, len(paths), config.d_head, *theirs.shape[1:])
        parts = [rows_HPK[:, i].reshape(-1, *theirs.shape[1:]) for i in range(len(paths))]
    else:
        parts = np.split(theirs, np.cumsum([shapes[path][-1] for path in paths])[:-1])
    return {path: np.ascontiguousarray(part.T) for path, part in zip(paths, parts, strict=True)}


def their_tensors(
    config: ModelConfig, params: Mapping[str, Any], family: Family, dtype: str
) -> Iterable[tuple[str, np.ndarray]]:
    """Yield the names and arrays of the family's tensors, one at a time."""
    flat = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    target = jax.numpy.dtype(dtype)
    for name, paths in holders_of(family, our_shapes(config)).items():
        ours = [np.asarray(flat[path], np.float32).astype(target) for path in paths]
        if paths[0] in _BY_TOKEN:
            yield name, ours[0]
            continue
        parts = [np.ascontiguousarray(x.T) for x in ours]
        if len(parts) > 1 and family.per_head:
            heads = [x.reshape(config.n_heads, 1, config.d_head, *x.shape[1:]) for x in parts]
            joined = np.concatenate(heads, axis=1).reshape(-1, *parts[0].shape[1:])
        else:
            joined = np.concatenate(parts)
        yield name, np.ascontiguousarray(joined.T) if family.stored_in_out else joined


def nested(flat: Mapping[str, np.ndarray]) -> model.Params:
    """Return the tree of parameters with the given leaves by path."""
    tree: model.Params = {}
    for path, array in flat.items():
        *groups, name = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = array
    return tree
