"""Read a model's parameters from its Hugging Face folder."""

import base64
import dataclasses
import pickletools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from olmo_jax import model, weights
from olmo_jax.config.model import ModelConfig
from olmo_jax.hf import gguf
from olmo_jax.hf.families.ai2 import AI2_OLMO
from olmo_jax.hf.family import Family
from olmo_jax.hf.layout import holders_of, nested, our_shapes, split, their_shape
from olmo_jax.hf.settings import read_config, read_settings
from olmo_jax.storage.gguf import SUFFIX
from olmo_jax.weights import WeightsError

_MAX_NAMES = 6
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def import_checkpoint(path: epath.PathLike) -> tuple[ModelConfig, model.Params]:
    """Return the model in a Hugging Face folder, in one of OLMo-1 with AI2's original names, or in a GGUF file.

    Args:
      path: a .gguf file, or a folder with config.json (or AI2's config.yaml), one or several safetensors files, and
        optionally tokenizer.json; rows of the embedding beyond its tokens then count as padding of the vocabulary.

    Returns:
      The configuration, and the parameters as float32 numpy arrays.

    Raises:
      WeightsError: no such folder, pickled weights, or tensors that are missing, unexpected, of another shape or
        quantised.
      ConfigError: an unknown architecture or setting, or a vocabulary smaller than the tokenizer's.
    """
    checkpoint = _Checkpoint.open(weights.at(path))
    flat: dict[str, np.ndarray] = {}
    for name, paths in checkpoint.holders.items():
        theirs = checkpoint.tensors[name].read().astype(np.float32)
        flat |= split(checkpoint.family, theirs, paths, checkpoint.shapes, checkpoint.config)
    return checkpoint.config, nested(flat)


def check_checkpoint(path: epath.PathLike) -> None:
    """Raise what `import_checkpoint` would raise, from headers only, without reading weights."""
    _Checkpoint.open(weights.at(path))


class Head(NamedTuple):
    """What turns a model's final states into logits: W, and the gain of the norm before it (None without one)."""

    config: ModelConfig
    unembedding_VD: np.ndarray
    gain_D: np.ndarray | None


def read_head(folder: epath.PathLike, tensors: Iterable[weights.Tensor], tokenizer: epath.Path | None = None) -> Head:
    """Return a model's unembedding in float32, reading no other matrix.

    Args:
      folder: with the model's config.json and, unless `tokenizer` is given, its tokenizer.json if it has one; rows
        beyond the tokenizer's count as padding, and are left out.
      tensors: those of the model, by the names of its files.

    Raises:
      WeightsError, ConfigError: as import_checkpoint, as far as these files and tensors are concerned.
    """
    place = weights.at(folder)
    family, config = read_config(place, tokenizer)
    named = _by_our_names(place, family, tensors)
    path = "embedding" if config.tied else "unembedding"
    stored = named.get(family.tensors[path])
    if stored is None:
        raise WeightsError(f"{place}: the files lack the tensor {family.tensors[path]} of {family.architecture}")
    if stored.shape != (config.padded_vocab_size, config.d_model):
        raise WeightsError(
            f"{place}: '{stored.name}' has shape {stored.shape}, but config.json requires "
            f"{(config.padded_vocab_size, config.d_model)}; one of the two files belongs to another model"
        )
    _check_dtype(place, stored)
    gain = named.get(family.tensors.get("final_norm/scale", ""))
    gain_D = None if gain is None else gain.read().astype(np.float32) + (1 if config.norm_plus_one else 0)
    return Head(config, stored.read().astype(np.float32)[: config.vocab_size], gain_D)


def _check_dtype(folder: epath.Path, tensor: weights.Tensor) -> None:
    """Raise WeightsError for a tensor of a quantised model."""
    if tensor.dtype not in _DTYPES:
        raise WeightsError(
            f"{folder}: '{tensor.name}' is stored as {tensor.dtype}, so the model is quantised; use a copy in "
            f"one of {', '.join(_DTYPES)}"
        )


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    """A folder's model, checked but without its weights; `holders` maps each tensor to the paths of its parameters."""

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
            expected, tensor = their_shape(family, paths, shapes), tensors[name]
            if tensor.shape != expected:
                raise WeightsError(
                    f"{folder}: '{name}' has shape {tensor.shape}, but config.json requires {expected}; one of the two "
                    "files belongs to another model"
                )
            _check_dtype(folder, tensor)
        # Some versions write the one matrix of a tied model twice.
        if head is not None and not np.array_equal(head.read(), tensors[family.tensors["embedding"]].read()):
            raise WeightsError(
                f"{folder}: '{head.name}' differs from the embedding, but config.json says that the two are tied; one "
                "of the two files belongs to another model"
            )
        return cls(family, config, shapes, holders, tensors)


def _check_sizes(folder: epath.Path, config: ModelConfig, tensors: Mapping[str, weights.Tensor]) -> None:
    """Raise WeightsError for sizes that exceed all tensors in the files and are too large to compute shapes from."""
    longest = max((side for tensor in tensors.values() for side in tensor.shape), default=0)
    claims = {"a vocabulary": config.padded_vocab_size, "a width": config.d_model, "an inner width": config.d_ff}
    for name, size in claims.items():
        if size > max(longest, 2**20):
            raise WeightsError(
                f"{folder}: its configuration requires {name} of {weights.brief(str(size))}, but the "
                f"longest side of a tensor is {longest}; one of the two belongs to another model"
            )
    if config.n_layers > max(len(tensors), 1000):
        raise WeightsError(
            f"{folder}: its configuration requires {weights.brief(str(config.n_layers))} layers, but there are "
            f"only {len(tensors)} tensors; one of the two belongs to another model"
        )


def _tensors(folder: epath.Path, family: Family) -> dict[str, weights.Tensor]:
    """Return the tensors of a folder or GGUF file by the family's names, without buffers."""
    if folder.suffix == SUFFIX and folder.is_file():
        return gguf.tensors_of(folder, read_settings(folder)[0], family)
    return _by_our_names(folder, family, weights.folder_tensors(folder))


def _by_our_names(folder: epath.Path, family: Family, tensors: Iterable[weights.Tensor]) -> dict[str, weights.Tensor]:
    named = {}
    for tensor in tensors:
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
    """Return the name of a tensor in safetensors of AI2's own trainer.

    It is stored as base64 of a pickle of (parts of the name, whether the value is a pickle), which is parsed without
    being executed.
    """
    try:
        content = base64.urlsafe_b64decode(name.encode("ascii"))
        operations = [(op.name, argument) for op, argument, _ in pickletools.genops(content)]
    except ValueError:
        return name  # not encoded
    if "NEWTRUE" in dict(operations):
        raise WeightsError(
            f"{folder}: holds a pickle under '{name}', which can run any code, so it isn't opened; use "
            "safetensors without pickles"
        )
    return ".".join(str(argument) for op, argument in operations if op.endswith("UNICODE"))


def _check_names(folder: epath.Path, family: Family, expected: Iterable[str], actual: Iterable[str]) -> None:
    expected, actual = set(expected), set(actual)
    problems = [
        f"{what} {', '.join(sorted(names)[:_MAX_NAMES])}{' and more' if len(names) > _MAX_NAMES else ''}"
        for what, names in (("lack the tensors", expected - actual), ("have the unexpected tensors", actual - expected))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{folder}: for {family.architecture} with this config.json, the files {' and '.join(problems)}; they "
            "belong to another model, or some are missing"
        )
