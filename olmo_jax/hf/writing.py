"""Write a model as a folder for `AutoModelForCausalLM.from_pretrained`."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from olmo_jax import model
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import ConfigError, one_of, require
from olmo_jax.console import say
from olmo_jax.files import whole_folder
from olmo_jax.hf.families.registry import FAMILIES
from olmo_jax.hf.family import Family
from olmo_jax.hf.layout import their_tensors
from olmo_jax.hf.settings import TOKENIZER, check_tokenizer
from olmo_jax.storage.paths import local
from olmo_jax.weights import WeightsError

DTYPES = ("float32", "bfloat16")


def export_checkpoint(
    config: ModelConfig,
    params: Mapping[str, Any],
    path: epath.PathLike,
    *,
    tokenizer: epath.PathLike | None = None,
    eos_token: str = "<|endoftext|>",
    dtype: str = "float32",
    shard_bytes: float = 5e9,
) -> str:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` can open, atomically.

    `import_checkpoint` returns the same configuration and, for "float32", the same parameters. `compute_dtype`,
    `scaled_init`, and dropout if the architecture has none, are stored in a section of config.json that transformers
    doesn't read; a line on stderr says so. A head of two factors is written as their product.

    `eos_token` is set as both the first and the last token of a document, as in our training.

    Args:
      config, params: one model. path: the folder, which must be new or empty.
      tokenizer: a tokenizer.json to copy into it, with `eos_token` as its end-of-text token.
      dtype: "float32" is exact, "bfloat16" rounds. shard_bytes: largest size of one file of weights.

    Returns:
      The architecture's name.

    Raises:
      ConfigError: a model with an option that no architecture can express, an unknown dtype, or a tokenizer with more
        tokens than the vocabulary or without `eos_token`.
      WeightsError: `path` exists and isn't an empty folder.
    """
    folder = epath.Path(os.path.abspath(local(path)))
    config, params = model.folded(config, dict(params))
    family = _family_of(config)
    one_of(dtype, DTYPES, "dtype")
    files = {"config.json": _settings(config, family, dtype)}
    if tokenizer is not None:
        number = check_tokenizer(epath.Path(tokenizer), config.vocab_size, eos_token)
        files["config.json"] |= {"bos_token_id": number, "eos_token_id": number}
        ends = {"bos_token": eos_token, "eos_token": eos_token, "model_max_length": config.context_length}
        files["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast"} | ends
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder}: already exists; choose another folder, or move it away")
    require(0 < shard_bytes < math.inf, "shard_bytes", shard_bytes, "needs a positive number of bytes")

    with whole_folder(folder, durable=False) as partial:
        for name, content in files.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        if tokenizer is not None:
            epath.Path(tokenizer).copy(partial / TOKENIZER)
        _write_weights(partial, their_tensors(config, params, family, dtype), shard_bytes)
    if kept := family.kept(config):
        listed = ", ".join(f"{name} = {value!r}" for name, value in kept.items())
        say(f"{folder}: transformers has no setting for {listed} and ignores it; import_checkpoint reads it")
    return family.architecture


def _settings(config: ModelConfig, family: Family, dtype: str) -> dict[str, Any]:
    """Return config.json without the tokenizer's tokens; transformers 4 and 5 both read `torch_dtype`."""
    named = {"architectures": [family.architecture], "model_type": family.model_type, "torch_dtype": dtype}
    return named | family.settings(config) | dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def _write_weights(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: float) -> None:
    """Write model.safetensors, or shards of at most `shard_bytes` and their index, one at a time."""
    parts: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    total = 0

    def write() -> None:
        save_file(shard, folder / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(shard))
        shard.clear()

    for name, array in tensors:
        if shard and sum(x.nbytes for x in shard.values()) + array.nbytes > shard_bytes:
            write()
        shard[name] = array
        total += array.nbytes
    write()
    if len(parts) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        (folder / f"part-{i}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _family_of(config: ModelConfig) -> Family:
    """Return the architecture that can express the model; raises ConfigError with what the closest one would lose."""
    written = [family for family in FAMILIES if family.write is not None]
    nearest = min(written, key=lambda family: len(family.unlike(config)))
    if unlike := nearest.unlike(config):
        differences = ", ".join(f"{name} = {value!r} (not {theirs!r})" for name, (value, theirs) in unlike.items())
        raise ConfigError(
            f"config.model matches none of {', '.join(f.architecture for f in written)}; from the closest, "
            f"{nearest.architecture}, it differs in {differences}; to export the model, train it with the "
            "architecture's values. In Python, olmo_jax.checkpoint.load_run reads it without export"
        )
    return nearest
