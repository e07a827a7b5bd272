"""Qwen2 and Qwen2.5 (biases on queries, keys and values), and Qwen3 (a norm on each head)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import require
from olmo_jax.hf.families import llama
from olmo_jax.hf.families.shared import HEAD_NORMS, UNSCALED, layer_types, read_layers
from olmo_jax.hf.family import Family


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    layers = settings["num_hidden_layers"]
    window = settings.get("sliding_window") if settings.get("use_sliding_window", False) else None
    first = layers if window is None else settings.get("max_window_layers", 28)
    kinds = ["sliding" if i >= first else "full" for i in range(layers)]
    fields = llama.read(settings) | read_layers(settings, kinds, window)
    require(
        not fields["window"] or fields["rope_scaling"].kind == "none",
        "rope_type",
        fields["rope_scaling"].kind,
        "isn't supported together with a sliding window; 'default' is",
    )
    return fields


def _write(config: ModelConfig) -> dict[str, Any]:
    if config.window:  # _read rejects scaling together with a sliding window
        config = dataclasses.replace(config, rope_scaling=UNSCALED)
    return llama.write(config) | {
        "use_sliding_window": config.window > 0,
        "sliding_window": config.window or None,
        "max_window_layers": next((i for i, layer in enumerate(config.layers) if layer.window), config.n_layers),
        "layer_types": layer_types(config),
    }


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    settings = _write(config)
    del settings["attention_bias"], settings["head_dim"]
    return settings


def _read_qwen2(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _read(settings) | {"attention_bias": True, "out_bias": False}


QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    tensors=llama.TENSORS,
    fixed=llama.FIXED | {"mlp_bias": False},
    read=_read_qwen2,
    write=_write_qwen2,
    section=llama.SECTION,
)

QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    tensors=llama.TENSORS | HEAD_NORMS,
    fixed=llama.FIXED | {"qk_norm": True, "qk_norm_by_head": True, "mlp_bias": False},
    read=_read,
    write=_write,
    section=llama.SECTION,
)
