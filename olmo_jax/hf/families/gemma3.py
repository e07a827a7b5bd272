"""Gemma-3's text models: sliding windows with their own rotary base, norms before and after, gated tanh GELU."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.hf.families import llama
from olmo_jax.hf.families.shared import (
    DECODER_BLOCK,
    DECODER_ENDS,
    HEAD_NORMS,
    expect,
    layer_types,
    read_layers,
    read_rope,
    read_shared,
    write_rope,
    write_shared,
)
from olmo_jax.hf.family import Family

_THETA, _SLIDING_THETA, _PATTERN = 1_000_000.0, 10_000.0, 6


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    expect(settings, "hidden_activation", "gelu_pytorch_tanh")
    expect(settings, "hidden_act", "gelu_pytorch_tanh")
    expect(settings, "use_bidirectional_attention", False, None)
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        expect(settings, key, None)
    layers, every = settings["num_hidden_layers"], settings.get("sliding_window_pattern") or _PATTERN
    full = read_rope(settings, theta=_THETA)
    # Only full attention has scaled frequencies.
    plain = {key: value for key, value in settings.items() if key != "rope_scaling"}
    sliding = read_rope(plain, "rope_local_base_freq", _SLIDING_THETA, "sliding_attention")
    kinds = ["sliding" if (i + 1) % every else "full" for i in range(layers)]
    shared = read_shared({"head_dim": 256, **settings}, tied=True)
    fields = shared | read_layers(settings, kinds, settings.get("sliding_window", 4096))
    return fields | {
        "rope_theta": full.theta,
        "rope_scaling": full.scaling,
        "sliding_rope_theta": sliding.unscaled if fields["window"] else 0.0,
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "attention_bias": settings.get("attention_bias", False),
        "score_width": float(settings.get("query_pre_attn_scalar", 256)),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    scalar = config.score_width or config.d_head
    return write_shared(config) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.d_head,
        "rms_norm_eps": config.norm_eps,
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "sliding_window": config.window or config.context_length,
        "layer_types": layer_types(config),
        "rope_theta": config.rope_theta,
        "rope_local_base_freq": config.sliding_rope_theta or config.rope_theta,
        "rope_parameters": {
            "full_attention": write_rope(config.rope_theta, config.rope_scaling),
            "sliding_attention": {
                "rope_type": "default", "rope_theta": config.sliding_rope_theta or config.rope_theta
            },
        },
    }  # fmt: skip


GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    tensors=DECODER_ENDS
    | DECODER_BLOCK
    | HEAD_NORMS
    | {
        "attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
        "attention_norm_after/scale": "model.layers.{i}.post_attention_layernorm.weight",
        "mlp_norm/scale": "model.layers.{i}.pre_feedforward_layernorm.weight",
        "mlp_norm_after/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
        "final_norm/scale": "model.norm.weight",
    },
    fixed=llama.FIXED
    | {
        "norm_at": "both", "norm_plus_one": True, "qk_norm": True, "qk_norm_by_head": True, "mlp": "geglu",
        "mlp_bias": False, "scaled_embedding": True,
    },
    read=_read,
    write=_write,
    section=llama.SECTION,
)  # fmt: skip
