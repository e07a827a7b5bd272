"""A model's parameters from its Hugging Face folder."""

import re
from collections.abc import Iterable

import numpy as np
from etils import epath

from olmo_jax import model, weights
from olmo_jax.hf.families import Family
from olmo_jax.hf.layout import holders_of, nested, our_shapes, split, their_shape
from olmo_jax.hf.settings import read_config
from olmo_jax.model_config import ModelConfig
from olmo_jax.weights import WeightsError

_NAMED_IN_ERRORS = 6


def import_checkpoint(path: epath.PathLike) -> tuple[ModelConfig, model.Params]:
    """The model in a Hugging Face folder, or in one with AI2's original names of OLMo-1.

    Args:
      path: a folder with config.json (or AI2's config.yaml), safetensors, single or in parts, and perhaps
        tokenizer.json. Where that is there, the rows beyond its tokens are taken for padding of the vocabulary.

    Returns:
      The configuration, and the parameters as float32 numpy arrays.

    Raises:
      WeightsError: no such folder, pickled weights, tensors that are missing, that don't belong, or of another shape.
      ConfigError: an architecture or a setting that isn't known, a vocabulary smaller than the tokenizer's.
    """
    folder = epath.Path(path)
    family, config = read_config(folder)
    tensors = _tensors(folder, family)
    shapes = our_shapes(config)
    holders = holders_of(family, shapes)
    head = tensors.pop(family.tensors["unembedding"], None) if config.tied else None
    _check_names(folder, family, holders.keys(), tensors.keys())
    # Some versions write the one matrix of a tied model twice.
    if head is not None and not np.array_equal(head.read(), tensors[family.tensors["embedding"]].read()):
        raise WeightsError(
            f"{folder}: '{head.name}' differs from the embedding, and config.json says that the two are tied; one of "
            "the two files is of another model"
        )
    flat: dict[str, np.ndarray] = {}
    for name, paths in holders.items():
        wanted = their_shape(paths, shapes)
        if tensors[name].shape != wanted:
            raise WeightsError(
                f"{folder}: '{name}' has shape {tensors[name].shape}, and config.json asks for {wanted}; one of the "
                "two files is of another model"
            )
        flat |= split(tensors[name].read().astype(np.float32), paths, shapes, config, family.per_head)
    return config, nested(flat)


def _tensors(folder: epath.Path, family: Family) -> dict[str, weights.Tensor]:
    """The folder's tensors by the family's names, buffers left out."""
    (found,) = weights.models(folder)
    named = {}
    for tensor in found.tensors():
        name = tensor.name
        for theirs, ours in family.aliases.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        if not re.search(family.buffers, name):
            named[name] = tensor
    return named


def _check_names(folder: epath.Path, family: Family, wanted: Iterable[str], found: Iterable[str]) -> None:
    wanted, found = set(wanted), set(found)
    wrong = [
        f"{what} {', '.join(sorted(names)[:_NAMED_IN_ERRORS])}{' and more' if len(names) > _NAMED_IN_ERRORS else ''}"
        for what, names in (("lacks", wanted - found), ("has no place for", found - wanted))
        if names
    ]
    if wrong:
        raise WeightsError(
            f"{folder}: {family.architecture} with this config.json {'; it '.join(wrong)}; the files are of another "
            "model, or not all there"
        )
