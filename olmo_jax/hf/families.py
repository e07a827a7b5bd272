"""The architectures that can be read from or written to Hugging Face's format: their settings and tensor names."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import require
from olmo_jax.hf.family import Family


def _expect(settings: Mapping[str, Any], key: str, *known: Any) -> None:
    if key in settings:
        require(settings[key] in known, key, settings[key], f"isn't supported; {' or '.join(map(repr, known))} is")


def _rope(settings: Mapping[str, Any], theta_key: str = "rope_theta") -> tuple[float, float | None]:
    """Return base and fraction (or None) of the rotary embedding, as written by transformers 4 or 5."""
    rope = settings.get("rope_parameters") or {}
    scaling = settings.get("rope_scaling") or {}
    kind = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    require(kind == "default", "rope_type", kind, "isn't supported; 'default' is")
    fraction = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", settings.get("rotary_pct")))
    return float(rope.get("rope_theta", settings.get(theta_key, 10000.0))), fraction


def _read_shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields whose settings have the same name in all three families; raises KeyError for a missing size."""
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    _expect(settings, "head_dim", None, width // heads)
    return {
        "vocab_size": settings["vocab_size"],
        "pad_vocab_to": 1,
        "d_model": width,
        "n_layers": settings["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": settings.get("num_key_value_heads"),
        "d_ff": settings["intermediate_size"],
        "context_length": settings.get("max_position_embeddings", 2048),
        "init_std": settings.get("initializer_range", 0.02),
        "tied": settings.get("tie_word_embeddings", False),
    }


def _write_shared(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.padded_vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.context_length,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


def _read_olmo(settings: Mapping[str, Any]) -> dict[str, Any]:
    _expect(settings, "hidden_act", "silu")
    theta, fraction = _rope(settings)
    require(fraction in (None, 1), "partial_rotary_factor", fraction, "isn't supported; 1.0 is")
    return _read_shared(settings) | {
        "rope_theta": theta,
        "attention_bias": settings.get("attention_bias", False),
        "clip_qkv": float(settings.get("clip_qkv") or 0.0),
    }


def _write_olmo(config: ModelConfig) -> dict[str, Any]:
    return _write_shared(config) | {
        "hidden_act": "silu",
        "num_key_value_heads": config.kv_heads,
        "rope_theta": config.rope_theta,
        "clip_qkv": config.clip_qkv or None,
    }


def _read_olmo2(settings: Mapping[str, Any]) -> dict[str, Any]:
    return _read_olmo(settings) | {"norm_eps": settings.get("rms_norm_eps", 1e-5), "clip_qkv": 0.0}


def _write_olmo2(config: ModelConfig) -> dict[str, Any]:
    settings = _write_olmo(config) | {"rms_norm_eps": config.norm_eps}
    del settings["clip_qkv"]
    return settings


def _read_neox(settings: Mapping[str, Any]) -> dict[str, Any]:
    _expect(settings, "hidden_act", "gelu")
    theta, fraction = _rope(settings, "rotary_emb_base")
    return _read_shared(settings) | {
        "n_kv_heads": 0,
        "norm_eps": settings.get("layer_norm_eps", 1e-5),
        "parallel": settings.get("use_parallel_residual", True),
        "rope_theta": theta,
        "rotary_fraction": 0.25 if fraction is None else fraction,
        "attention_bias": settings.get("attention_bias", True),
        "dropout": settings.get("hidden_dropout", 0.0),
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    shared = _write_shared(config)
    return shared | {
        "hidden_act": "gelu",
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel,
        "rope_parameters": shared["rope_parameters"] | {"partial_rotary_factor": config.rotary_fraction},
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rotary_fraction,
        "hidden_dropout": config.dropout,
    }


def _read_ai2(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of OLMo's own trainer, whose `mlp_hidden_size` and `mlp_ratio` count gate and up together."""
    _expect(settings, "activation_type", "swiglu")
    _expect(settings, "block_type", "sequential")
    _expect(settings, "layer_norm_type", "default", "low_precision")
    _expect(settings, "rope", True)
    _expect(settings, "layer_norm_eps", 1e-5, None)
    rows = settings.get("embedding_size") or settings["vocab_size"]
    require(rows >= settings["vocab_size"], "embedding_size", rows, f"is less than {settings['vocab_size']} tokens")
    for key in ("layer_norm_with_affine", "bias_for_layer_norm", "attention_layer_norm", "include_bias", "alibi",
                "norm_after", "scale_logits", "embedding_layer_norm"):  # fmt: skip
        _expect(settings, key, False, None)
    one_head = 1 if settings.get("multi_query_attention") else None
    return {
        "vocab_size": settings["vocab_size"],
        "pad_vocab_to": rows,  # any vocab_size up to `rows` is padded to it
        "d_model": settings["d_model"],
        "n_layers": settings["n_layers"],
        "n_heads": settings["n_heads"],
        "n_kv_heads": settings.get("n_kv_heads") or one_head,
        "d_ff": (settings.get("mlp_hidden_size") or settings["mlp_ratio"] * settings["d_model"]) // 2,
        "context_length": settings.get("max_sequence_length", 1024),
        "init_std": settings.get("init_std", 0.02),
        "tied": settings.get("weight_tying", True),
        "rope_theta": float(settings.get("rope_theta", 10000.0)),
        "clip_qkv": float(settings.get("clip_qkv") or 0.0),
    }


_OLMO_BLOCK = {
    f"{ours}{bias}": f"model.layers.{{i}}.{theirs}.{kind}"
    for ours, theirs in {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.o_proj",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
    }.items()
    for bias, kind in (("", "weight"), ("_bias", "bias"))
    if not (bias and ours.startswith("mlp"))
}
_OLMO_ENDS = {"embedding": "model.embed_tokens.weight", "unembedding": "lm_head.weight"}
_OLMO_FIXED = {
    "parallel": False, "mlp": "swiglu", "mlp_bias": False, "positions": "rotary", "rotary_fraction": 1.0,
}  # fmt: skip

OLMO = Family(
    architecture="OlmoForCausalLM",
    model_type="olmo",
    tensors=_OLMO_ENDS | _OLMO_BLOCK,
    fixed=_OLMO_FIXED | {"norm": "layer_norm", "norm_at": "before", "norm_eps": 1e-5, "qk_norm": False},
    read=_read_olmo,
    write=_write_olmo,
    section=("compute_dtype", "dropout"),
)

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    tensors=_OLMO_ENDS
    | _OLMO_BLOCK
    | {
        "attention/query_norm/scale": "model.layers.{i}.self_attn.q_norm.weight",
        "attention/key_norm/scale": "model.layers.{i}.self_attn.k_norm.weight",
        "attention_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
        "mlp_norm/scale": "model.layers.{i}.post_feedforward_layernorm.weight",
        "final_norm/scale": "model.norm.weight",
    },
    fixed=_OLMO_FIXED | {"norm": "rms_norm", "norm_at": "after", "qk_norm": True, "clip_qkv": 0.0},
    read=_read_olmo2,
    write=_write_olmo2,
    section=("compute_dtype", "dropout"),
)

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
    section=("compute_dtype",),
    per_head=True,
    aliases={"lm_head.": "embed_out."},
    buffers=r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
)  # fmt: skip

AI2_OLMO = Family(
    architecture="OLMoForCausalLM",
    model_type="hf_olmo",
    tensors={
        "embedding": "transformer.wte.weight",
        "unembedding": "transformer.ff_out.weight",
        "attention/query": "transformer.blocks.{i}.att_proj.weight",
        "attention/key": "transformer.blocks.{i}.att_proj.weight",
        "attention/value": "transformer.blocks.{i}.att_proj.weight",
        "attention/out": "transformer.blocks.{i}.attn_out.weight",
        # OLMo's SwiGLU gates the first half by the second.
        "mlp/up": "transformer.blocks.{i}.ff_proj.weight",
        "mlp/gate": "transformer.blocks.{i}.ff_proj.weight",
        "mlp/down": "transformer.blocks.{i}.ff_out.weight",
    },
    fixed={**OLMO.fixed, "attention_bias": False},
    read=_read_ai2,
    write=None,
    aliases={"model.transformer.": "transformer."},
)

FAMILIES = (OLMO, OLMO2, GPT_NEOX, AI2_OLMO)
