"""OLMo-1, OLMo-2 and OLMo-3 as transformers implements them."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.hf.families.shared import (
    DECODER_BLOCK,
    DECODER_ENDS,
    expect,
    layer_types,
    read_layers,
    read_rope,
    whole_heads,
    without_window,
    write_rope,
    write_shared,
)
from olmo_jax.hf.family import Family

_OLMO3_THETA = 500_000.0
# What all of OLMo's decoders have in common.
DECODER = {
    "parallel": False, "mlp": "swiglu", "mlp_bias": False, "positions": "rotary", "rotary_fraction": 1.0,
}  # fmt: skip
_OLMO2_FIXED = DECODER | {"norm": "rms_norm", "norm_at": "after", "qk_norm": True, "clip_qkv": 0.0}
_OLMO2_TENSORS = (
    DECODER_ENDS
    | DECODER_BLOCK
    | {
        "attention/query_norm/scale": "model.layers.{i}.self_attn.q_norm.weight",
        "attention/key_norm/scale": "model.layers.{i}.self_attn.k_norm.weight",
        "attention_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
        "mlp_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
        "final_norm/scale": "model.norm.weight",
    }
)


def _read(settings: Mapping[str, Any], theta: float) -> dict[str, Any]:
    expect(settings, "hidden_act", "silu")
    return whole_heads(settings) | {"rope_theta": theta, "attention_bias": settings.get("attention_bias", False)}


def _read_olmo(settings: Mapping[str, Any]) -> dict[str, Any]:
    without_window(settings)
    return _read(settings, read_rope(settings).unscaled) | {"clip_qkv": float(settings.get("clip_qkv") or 0.0)}


def _write_olmo(config: ModelConfig) -> dict[str, Any]:
    return write_shared(config) | {
        "hidden_act": "silu",
        "num_key_value_heads": config.kv_heads,
        "rope_theta": config.rope_theta,
        "clip_qkv": config.clip_qkv or None,
    }


def _read_olmo2(settings: Mapping[str, Any]) -> dict[str, Any]:
    without_window(settings)
    return _read(settings, read_rope(settings).unscaled) | {"norm_eps": settings.get("rms_norm_eps", 1e-5)}


def _write_olmo2(config: ModelConfig) -> dict[str, Any]:
    settings = _write_olmo(config) | {"rms_norm_eps": config.norm_eps}
    del settings["clip_qkv"]
    return settings


def _read_olmo3(settings: Mapping[str, Any]) -> dict[str, Any]:
    full = read_rope(settings, theta=_OLMO3_THETA)
    plain = {key: value for key, value in settings.items() if key != "rope_scaling"}
    sliding = read_rope(plain, theta=_OLMO3_THETA, layers="sliding_attention").unscaled
    kinds = ["sliding" if (i + 1) % 4 else "full" for i in range(settings["num_hidden_layers"])]
    layers = read_layers(settings, kinds, settings.get("sliding_window", 4096))
    return (
        _read(settings, full.theta)
        | layers
        | {
            "rope_scaling": full.scaling,
            "sliding_rope_theta": sliding if layers["window"] and sliding != full.theta else 0.0,
            "norm_eps": settings.get("rms_norm_eps", 1e-5),
        }
    )


def _write_olmo3(config: ModelConfig) -> dict[str, Any]:
    full = write_rope(config.rope_theta, config.rope_scaling)
    sliding = {"rope_type": "default", "rope_theta": config.sliding_rope_theta or config.rope_theta}
    return _write_olmo2(config) | {
        "rope_parameters": {"full_attention": full, "sliding_attention": sliding},
        "rope_scaling": None if full["rope_type"] == "default" else full,
        "layer_types": layer_types(config),
        "sliding_window": config.window or config.context_length,
    }


OLMO = Family(
    architecture="OlmoForCausalLM",
    model_type="olmo",
    tensors=DECODER_ENDS | DECODER_BLOCK,
    fixed=DECODER | {"norm": "layer_norm", "norm_at": "before", "norm_eps": 1e-5, "qk_norm": False},
    read=_read_olmo,
    write=_write_olmo,
    section=("compute_dtype", "scaled_init", "dropout"),
)

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    tensors=_OLMO2_TENSORS,
    fixed=_OLMO2_FIXED,
    read=_read_olmo2,
    write=_write_olmo2,
    section=("compute_dtype", "scaled_init", "dropout"),
)

# OLMo-2 with sliding windows on some blocks; only the others scale their rotary frequencies.
OLMO3 = Family(
    architecture="Olmo3ForCausalLM",
    model_type="olmo3",
    tensors=_OLMO2_TENSORS,
    fixed=_OLMO2_FIXED,
    read=_read_olmo3,
    write=_write_olmo3,
    section=("compute_dtype", "scaled_init", "dropout"),
)
