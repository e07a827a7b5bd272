"""A model's parameters from its Hugging Face folder."""

import base64
import dataclasses
import pickletools
import re
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from olmo_jax import model, weights
from olmo_jax.config.model import ModelConfig
from olmo_jax.hf.families import AI2_OLMO
from olmo_jax.hf.family import Family
from olmo_jax.hf.layout import holders_of, nested, our_shapes, split, their_shape
from olmo_jax.hf.settings import read_config
from olmo_jax.weights import WeightsError

_NAMED_IN_ERRORS = 6
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def import_checkpoint(path: epath.PathLike) -> tuple[ModelConfig, model.Params]:
    """Return the model in a Hugging Face folder, or in one with AI2's original names of OLMo-1.

    Args:
      path: a folder with config.json (or AI2's config.yaml), safetensors, single or in parts, and perhaps
        tokenizer.json. Where that is there, the rows beyond its tokens are taken for padding of the vocabulary.

    Returns:
      The configuration, and the parameters as float32 numpy arrays.

    Raises:
      WeightsError: no such folder, pickled weights, tensors that are missing, that don't belong, of another shape, or
        quantised.
      ConfigError: an architecture or a setting that isn't known, a vocabulary smaller than the tokenizer's.
    """
    found = _Checkpoint.open(weights.at(path))
    flat: dict[str, np.ndarray] = {}
    for name, paths in found.holders.items():
        theirs = found.tensors[name].read().astype(np.float32)
        flat |= split(theirs, paths, found.shapes, found.config, found.family.per_head)
    return found.config, nested(flat)


def check_checkpoint(path: epath.PathLike) -> None:
    """Raise what `import_checkpoint` would, from headers alone: no weights are read."""
    _Checkpoint.open(weights.at(path))


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A folder's model with everything checked and no weights read; `holders` says what its tensors hold of ours."""

    family: Family
    config: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    holders: dict[str, tuple[str, ...]]
    tensors: dict[str, weights.Tensor]

    @classmethod
    def open(cls, folder: epath.Path) -> "_Checkpoint":
        family, config = read_config(folder)
        tensors = _tensors(folder, family)
        _check_sizes(folder, config, tensors)
        shapes = our_shapes(config)
        holders = holders_of(family, shapes)
        head = tensors.pop(family.tensors["unembedding"], None) if config.tied else None
        _check_names(folder, family, holders.keys(), tensors.keys())
        for name, paths in holders.items():
            wanted, found = their_shape(paths, shapes), tensors[name]
            if found.shape != wanted:
                raise WeightsError(
                    f"{folder}: '{name}' has shape {found.shape}, and config.json asks for {wanted}; one of the two "
                    "files is of another model"
                )
            if found.dtype not in _DTYPES:
                raise WeightsError(
                    f"{folder}: '{name}' is stored as {found.dtype}, so the model is quantised; take one of "
                    f"{', '.join(_DTYPES)}"
                )
        # Some versions write the one matrix of a tied model twice.
        if head is not None and not np.array_equal(head.read(), tensors[family.tensors["embedding"]].read()):
            raise WeightsError(
                f"{folder}: '{head.name}' differs from the embedding, and config.json says that the two are tied; one "
                "of the two files is of another model"
            )
        return cls(family, config, shapes, holders, tensors)


def _check_sizes(folder: epath.Path, config: ModelConfig, tensors: Mapping[str, weights.Tensor]) -> None:
    """Raises WeightsError for sizes beyond measure and all that the files hold, of which no shapes could be made."""
    longest = max((side for tensor in tensors.values() for side in tensor.shape), default=0)
    claims = {"a vocabulary": config.padded_vocab_size, "a width": config.d_model, "an inner width": config.d_ff}
    for name, size in claims.items():
        if size > max(longest, 2**20):
            raise WeightsError(
                f"{folder}: its configuration asks for {name} of {weights.brief(str(size))}, and the "
                f"longest side of a tensor is {longest}; one of the two is of another model"
            )
    if config.n_layers > max(len(tensors), 1000):
        raise WeightsError(
            f"{folder}: its configuration asks for {weights.brief(str(config.n_layers))} layers, and there are "
            f"{len(tensors)} tensors; one of the two is of another model"
        )


def _tensors(folder: epath.Path, family: Family) -> dict[str, weights.Tensor]:
    """The folder's tensors by the family's names, buffers left out."""
    named = {}
    for tensor in weights.folder_tensors(folder):
        name = tensor.name
        if family is AI2_OLMO:
            name = _plain(folder, name)
        for theirs, ours in family.aliases.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        if not re.search(family.buffers, name):
            named[name] = tensor
    return named


def _plain(folder: epath.Path, name: str) -> str:
    """The name of a tensor in the safetensors of AI2's own trainer, where it is base64 of a pickle of (parts of the
    name, whether the value is a pickle). The pickle is taken apart and not carried out.
    """
    try:
        content = base64.urlsafe_b64decode(name.encode("ascii"))
        operations = [(op.name, argument) for op, argument, _ in pickletools.genops(content)]
    except ValueError:
        return name  # a plain one
    if "NEWTRUE" in dict(operations):
        raise WeightsError(f"{folder}: holds a pickle under '{name}', which runs whatever code it holds; not opened")
    return ".".join(str(argument) for op, argument in operations if op.endswith("UNICODE"))


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
