"""OLMo's own trainer, and the hf_olmo checkpoints made of it: OLMo-1, and DataDecide's models with RMSNorm."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.validation import require
from olmo_jax.hf.families.olmo import DECODER
from olmo_jax.hf.families.shared import expect
from olmo_jax.hf.family import Family

_NORMS = {"default": "layer_norm", "low_precision": "layer_norm", "rms": "rms_norm"}


def _read_ai2(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of OLMo's own trainer, whose `mlp_hidden_size` and `mlp_ratio` count gate and up together."""
    expect(settings, "activation_type", "swiglu")
    expect(settings, "block_type", "sequential")
    norm = settings.get("layer_norm_type", "default")
    require(norm in _NORMS, "layer_norm_type", norm, f"isn't supported; {', '.join(map(repr, _NORMS))} are")
    # Of these norms, only RMSNorm has a scale in our decoder.
    expect(settings, "layer_norm_with_affine", _NORMS[norm] == "rms_norm", None)
    expect(settings, "rope", True)
    tokens = settings["vocab_size"]
    rows = settings.get("embedding_size") or tokens
    require(rows >= tokens, "embedding_size", rows, f"is less than vocab_size = {tokens}")
    for key in ("bias_for_layer_norm", "attention_layer_norm", "include_bias", "alibi",
                "norm_after", "scale_logits", "embedding_layer_norm"):  # fmt: skip
        expect(settings, key, False, None)
    one_head = 1 if settings.get("multi_query_attention") else None
    return {
        "vocab_size": tokens,
        "pad_vocab_to": rows,  # any vocab_size up to `rows` is padded to it
        "d_model": settings["d_model"],
        "n_layers": settings["n_layers"],
        "n_heads": settings["n_heads"],
        "n_kv_heads": settings.get("n_kv_heads") or one_head,
        "d_ff": (settings.get("mlp_hidden_size") or settings["mlp_ratio"] * settings["d_model"]) // 2,
        "context_length": settings.get("max_sequence_length", 1024),
        "init_std": settings.get("init_std", 0.02),
        "tied": settings.get("weight_tying", True),
        "norm": _NORMS[norm],
        "norm_eps": float(settings.get("layer_norm_eps") or 1e-5),
        "rope_theta": float(settings.get("rope_theta", 10000.0)),
        "clip_qkv": float(settings.get("clip_qkv") or 0.0),
    }


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
        "attention_norm/scale": "transformer.blocks.{i}.attn_norm.weight",
        "mlp_norm/scale": "transformer.blocks.{i}.ff_norm.weight",
        "final_norm/scale": "transformer.ln_f.weight",
    },
    fixed=DECODER | {"norm_at": "before", "qk_norm": False, "attention_bias": False},
    read=_read_ai2,
    write=None,
    aliases={"model.transformer.": "transformer."},
)
