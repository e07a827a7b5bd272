"""Llama and models built like it: SmolLM and SmolLM2, TinyLlama, Amber, Mistral, and SmolLM3."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import require
from olmo_jax.hf.families.shared import (
    DECODER_BLOCK,
    DECODER_ENDS,
    NORMS_BEFORE,
    expect,
    pattern,
    read_layers,
    read_rope,
    read_shared,
    without_window,
    write_rope,
    write_shared,
)
from olmo_jax.hf.family import Family

TENSORS = DECODER_ENDS | DECODER_BLOCK | NORMS_BEFORE
FIXED = {
    "norm": "rms_norm", "norm_at": "before", "qk_norm": False, "clip_qkv": 0.0, "parallel": False, "mlp": "swiglu",
    "positions": "rotary", "rotary_fraction": 1.0,
}  # fmt: skip
SECTION = ("compute_dtype", "scaled_init", "dropout")


def read(settings: Mapping[str, Any], theta: float = 10000.0, tied: bool = False) -> dict[str, Any]:
    """Return the fields of a decoder whose norms, gates and rotary embedding are Llama's, without windows."""
    expect(settings, "hidden_act", "silu")
    expect(settings, "rope_interleaved", False)
    rope = read_rope(settings, theta=theta)
    return read_shared(settings, tied) | {
        "rope_theta": rope.theta,
        "rope_scaling": rope.scaling,
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "attention_bias": settings.get("attention_bias", False),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that `read` reads; those of the rotary embedding in the formats of transformers 4 and 5."""
    rope = write_rope(config.rope_theta, config.rope_scaling)
    return write_shared(config) | {
        "hidden_act": "silu",
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
    }


def _read_llama(settings: Mapping[str, Any]) -> dict[str, Any]:
    without_window(settings)
    return read(settings) | {"mlp_bias": settings.get("mlp_bias", False)}


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return write(config) | {"mlp_bias": config.mlp_bias}


def _read_mistral(settings: Mapping[str, Any]) -> dict[str, Any]:
    window, layers = settings.get("sliding_window"), settings["num_hidden_layers"]
    reaches_all = window is None or window >= settings.get("max_position_embeddings", 2048)
    kind = "full" if reaches_all else "sliding"
    return read(settings) | {"attention_bias": False} | read_layers(settings, [kind] * layers, window)


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    settings = write(config) | {"sliding_window": config.window or None}
    del settings["attention_bias"]
    return settings


def _read_smollm3(settings: Mapping[str, Any]) -> dict[str, Any]:
    expect(settings, "use_sliding_window", False)
    layers, interval = settings["num_hidden_layers"], settings.get("no_rope_layer_interval", 4)
    rotated = settings.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(layers)]
    require(
        len(rotated) >= layers,
        "length of no_rope_layers",
        len(rotated),
        f"must be at least num_hidden_layers = {layers}",
    )
    kinds = ["full" if turned else "unrotated" for turned in rotated[:layers]]
    fields = read(settings, theta=2_000_000.0, tied=True)
    return fields | {"mlp_bias": settings.get("mlp_bias", False), "attention_pattern": pattern(kinds)}


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    rotated = [int(layer.rope_theta > 0) for layer in config.layers]
    return _write_llama(config) | {"no_rope_layers": rotated, "use_sliding_window": False}


LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    tensors=TENSORS,
    fixed=FIXED,
    read=_read_llama,
    write=_write_llama,
    section=SECTION,
)

MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    tensors=TENSORS,
    fixed=FIXED | {"attention_bias": False, "mlp_bias": False},
    read=_read_mistral,
    write=_write_mistral,
    section=SECTION,
)

SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    tensors=TENSORS,
    fixed=FIXED,
    read=_read_smollm3,
    write=_write_smollm3,
    section=SECTION,
)
