"""GPT-NeoX, the architecture of Pythia."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.hf.families.shared import expect, read_rope, whole_heads, write_shared
from olmo_jax.hf.family import Family


def _read_neox(settings: Mapping[str, Any]) -> dict[str, Any]:
    expect(settings, "hidden_act", "gelu")
    rope = read_rope(settings, "rotary_emb_base", partial=True)
    return whole_heads(settings) | {
        "n_kv_heads": 0,
        "norm_eps": settings.get("layer_norm_eps", 1e-5),
        "parallel": settings.get("use_parallel_residual", True),
        "rope_theta": rope.unscaled,
        "rotary_fraction": 0.25 if rope.fraction is None else rope.fraction,
        "attention_bias": settings.get("attention_bias", True),
        "dropout": settings.get("hidden_dropout", 0.0),
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    shared = write_shared(config)
    return shared | {
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel,
        "rope_parameters": shared["rope_parameters"] | {"partial_rotary_factor": config.rotary_fraction},
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rotary_fraction,
        "hidden_dropout": config.dropout,
    }


GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    tensors={"embedding": "gpt_neox.embed_in.weight", "unembedding": "embed_out.weight"}
    | {
        f"{ours}{ours_kind}": f"gpt_neox.layers.{{i}}.{theirs}.{kind}"
        for ours, theirs in {
            "attention/query": "attention.query_key_value",
            "attention/key": "attention.query_key_value",
            "attention/value": "attention.query_key_value",
            "attention/out": "attention.dense",
            "mlp/up": "mlp.dense_h_to_4h",
            "mlp/down": "mlp.dense_4h_to_h",
        }.items()
        for ours_kind, kind in (("", "weight"), ("_bias", "bias"))
    }
    | {
        f"{ours}/{ours_kind}": f"gpt_neox.{theirs}.{kind}"
        for ours, theirs in {
            "attention_norm": "layers.{i}.input_layernorm",
            "mlp_norm": "layers.{i}.post_attention_layernorm",
            "final_norm": "final_layer_norm",
        }.items()
        for ours_kind, kind in (("scale", "weight"), ("bias", "bias"))
    },
    fixed={
        "norm": "affine_layer_norm", "norm_at": "before", "qk_norm": False, "clip_qkv": 0.0, "n_kv_heads": 0,
        "mlp": "gelu", "mlp_bias": True, "positions": "rotary",
    },
    read=_read_neox,
    write=_write_neox,
    section=("compute_dtype", "scaled_init"),
    per_head=True,
    aliases={"lm_head.": "embed_out."},
    buffers=r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
)  # fmt: skip
