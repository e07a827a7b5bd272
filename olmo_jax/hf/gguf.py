"""A GGUF file under Hugging Face's names: the settings of a config.json, and the tensors of its architecture."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from olmo_jax.config.validation import ConfigError
from olmo_jax.hf.family import Family
from olmo_jax.storage.gguf import GgufFile, open_gguf
from olmo_jax.weights import Tensor, WeightsError

# Names of settings, by the end of their GGUF key, which begins with the architecture.
_DECODER = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
_GPT2 = {
    "embedding_length": "n_embd",
    "block_count": "n_layer",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "context_length": "n_positions",
}
_SCALING = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
}
# Divisors of the rotary frequencies in models with Llama 3's scaling, whose own numbers the format doesn't keep.
_ROPE_DIVISORS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class _Architecture(NamedTuple):
    """How llama.cpp's converter changes a model: the names of its settings, and the values of some of its tensors.

    rotated_pairs: rows of queries and keys are reordered so that the two rows of a rotated pair are adjacent.
    norms_plus_one: the scales of norms are stored with 1 added.
    """

    model_type: str
    settings: Mapping[str, str]
    rotated_pairs: bool = False
    norms_plus_one: bool = False


_ARCHITECTURES = {
    "llama": _Architecture("llama", _DECODER, rotated_pairs=True),
    "qwen2": _Architecture("qwen2", _DECODER),
    "qwen3": _Architecture("qwen3", _DECODER),
    "olmo2": _Architecture("olmo2", _DECODER),
    "gemma3": _Architecture("gemma3_text", _DECODER, norms_plus_one=True),
    "gpt2": _Architecture("gpt2", _GPT2),
}


def settings_of(path: epath.PathLike) -> dict[str, Any]:
    """Return the settings of a GGUF file's model as its config.json would have them.

    Raises:
      WeightsError: a file that can't be read. ConfigError: an architecture that isn't known.
    """
    file = open_gguf(path)
    name, architecture = _architecture(file)
    settings: dict[str, Any] = {}
    for end, setting in {**architecture.settings, **_SCALING}.items():
        value = file.metadata.get(f"{name}.{end}")
        if value is not None:
            settings[setting] = _shortest(value) if isinstance(value, float) else value
    scaling = {setting: settings.pop(setting) for setting in _SCALING.values() if setting in settings}
    if scaling.get("rope_type", "none") != "none":
        settings["rope_scaling"] = scaling
    if _ROPE_DIVISORS in file.tensors:
        settings["rope_scaling"] = _llama3(file, settings)
    names = file.tensors
    # In GGUF, Mistral's architecture is named "llama".
    mistral = name == "llama" and "sliding_window" in settings
    settings |= {
        "model_type": "mistral" if mistral else architecture.model_type,
        "vocab_size": names["token_embd.weight"].shape[0] if "token_embd.weight" in names else 0,
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_output.bias" in names,
        "mlp_bias": "blk.0.ffn_down.bias" in names,
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "add_bos_token": file.metadata.get("tokenizer.ggml.add_bos_token", False),
    }
    if name == "gpt2":  # GGUF doesn't store its dropout
        settings |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    if name == "gemma3" and "head_dim" in settings:  # GGUF has no key for the scalar; only the 27B model's differs
        settings["query_pre_attn_scalar"] = settings["head_dim"]
    return settings


def quantization_of(path: epath.PathLike) -> str:
    """Return the types of a GGUF file's matrices, the one with the most parameters first, such as "Q4_1, Q8_0"."""
    sizes: dict[str, int] = {}
    for tensor in open_gguf(path).tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.quantization] = sizes.get(tensor.quantization, 0) + math.prod(tensor.shape)
    return ", ".join(sorted(sizes, key=sizes.__getitem__, reverse=True))


def tensors_of(path: epath.PathLike, settings: Mapping[str, Any], family: Family) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file under the family's names, as they would be in its Hugging Face folder.

    A tensor without such a name keeps its GGUF name. Raises WeightsError for a type of quantisation that can't be read.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    file = open_gguf(path)
    name, architecture = _architecture(file)
    layers = settings.get("num_hidden_layers", settings.get("n_layer", 0))
    if layers > len(file.tensors):
        raise WeightsError(f"{path}: declares {layers} blocks, but has {len(file.tensors)} tensors; download it again")
    kind = next(kind for kind, known in MODEL_ARCH_NAMES.items() if known == name)
    name_map = get_tensor_name_map(kind, layers)
    names = {}
    for pattern in set(family.tensors.values()):
        for block in range(layers if "{i}" in pattern else 1):
            full = pattern.format(i=block)
            stem, _, end = full.rpartition(".")
            names[f"{name_map.get_name(stem)}.{end}"] = full
    tensors = {}
    for tensor in file.tensors.values():
        if tensor.name == _ROPE_DIVISORS:
            continue
        file.check(tensor.name)
        full = names.get(tensor.name, tensor.name)
        change, shape = _change(architecture, tensor.name, settings), tensor.shape
        if family.stored_in_out and len(shape) == 2 and tensor.name.startswith("blk."):
            change, shape = np.transpose, shape[::-1]
        tensors[full] = Tensor(full, shape, "float32", _reader(file, tensor.name, change))
    return tensors


def _architecture(file: GgufFile) -> tuple[str, _Architecture]:
    name = file.metadata.get("general.architecture")
    if name not in _ARCHITECTURES:
        raise ConfigError(
            f"{file.path}: the architecture {name!r} can't be read from GGUF; {', '.join(_ARCHITECTURES)} can"
        )
    return name, _ARCHITECTURES[name]


def _shortest(number: float) -> float:
    """Return the number with the fewest digits that is the same in float32, the type in which the file stores it."""
    return float(str(np.float32(number)))


def _llama3(file: GgufFile, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return Llama 3's scaling if it explains the stored divisors of the rotary frequencies, else raise ConfigError."""
    from olmo_jax.config.rope import RopeScaling
    from olmo_jax.rotary import frequencies

    divisors_k = file.read(_ROPE_DIVISORS)
    factor = float(divisors_k.max())
    numbers = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    scaling = RopeScaling("llama3", factor, int(_LLAMA3["original_max_position_embeddings"]), *numbers)
    theta, width = float(settings.get("rope_theta", 10000.0)), 2 * divisors_k.size
    expected_k = np.asarray(frequencies(theta, width)) / np.asarray(frequencies(theta, width, scaling))
    if not np.allclose(divisors_k, expected_k, rtol=1e-4):
        raise ConfigError(
            f"{file.path}: its {_ROPE_DIVISORS} match no known scaling of the rotary frequencies; import the model "
            "from its Hugging Face folder"
        )
    return {"rope_type": "llama3", "factor": factor} | _LLAMA3


def _reader(file: GgufFile, name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[], np.ndarray]:
    return lambda: change(file.read(name))


def _change(architecture: _Architecture, name: str, settings: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function that undoes the converter's change of a tensor."""
    if architecture.norms_plus_one and name.endswith("norm.weight"):
        return lambda scale: scale - 1
    if architecture.rotated_pairs and (".attn_q." in name or ".attn_k." in name):
        heads = settings["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
        return lambda rows: _halves(rows, heads)
    return lambda x: x


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of each head with the even ones first, so that the two rows of a pair are half a head apart."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
