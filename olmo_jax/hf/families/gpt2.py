"""GPT-2: learned positions, biases everywhere, and weights stored as [in, out]."""

from collections.abc import Mapping
from typing import Any

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.validation import require
from olmo_jax.hf.families.shared import expect
from olmo_jax.hf.family import Family

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    activation = settings.get("activation_function", "gelu_new")
    require(
        activation in _ACTIVATIONS, "activation_function", activation, f"isn't supported; {', '.join(_ACTIVATIONS)} are"
    )
    expect(settings, "scale_attn_weights", True)
    expect(settings, "scale_attn_by_inverse_layer_idx", False)
    expect(settings, "add_cross_attention", False)
    expect(settings, "resid_pdrop", settings.get("embd_pdrop", 0.1))
    width = settings["n_embd"]
    return {
        "vocab_size": settings["vocab_size"],
        "pad_vocab_to": 1,
        "d_model": width,
        "n_layers": settings["n_layer"],
        "n_heads": settings["n_head"],
        "d_ff": settings.get("n_inner") or 4 * width,
        "context_length": settings.get("n_positions", 1024),
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "init_std": settings.get("initializer_range", 0.02),
        "mlp": _ACTIVATIONS[activation],
        "tied": settings.get("tie_word_embeddings", True),
        "dropout": settings.get("resid_pdrop", 0.1),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.padded_vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "activation_function": "gelu" if config.mlp == "gelu" else "gelu_new",
        "tie_word_embeddings": config.tied,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
    }


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    tensors={
        "embedding": "transformer.wte.weight",
        "unembedding": "lm_head.weight",
        "positions": "transformer.wpe.weight",
    }
    | {
        f"{ours}{ours_kind}": f"transformer.h.{{i}}.{theirs}.{kind}"
        for ours, theirs in {
            "attention/query": "attn.c_attn",
            "attention/key": "attn.c_attn",
            "attention/value": "attn.c_attn",
            "attention/out": "attn.c_proj",
            "mlp/up": "mlp.c_fc",
            "mlp/down": "mlp.c_proj",
        }.items()
        for ours_kind, kind in (("", "weight"), ("_bias", "bias"))
    }
    | {
        f"{ours}/{ours_kind}": f"transformer.{theirs}.{kind}"
        for ours, theirs in {"attention_norm": "h.{i}.ln_1", "mlp_norm": "h.{i}.ln_2", "final_norm": "ln_f"}.items()
        for ours_kind, kind in (("scale", "weight"), ("bias", "bias"))
    },
    fixed={
        "norm": "affine_layer_norm", "norm_at": "before", "qk_norm": False, "clip_qkv": 0.0, "n_kv_heads": 0,
        "parallel": False, "attention_bias": True, "mlp_bias": True, "positions": "learned",
    },
    read=_read,
    write=_write,
    section=("compute_dtype", "scaled_init"),
    stored_in_out=True,
    # OpenAI's own files were saved without the prefix.
    aliases={name: f"transformer.{name}" for name in ("wte.", "wpe.", "h.", "ln_f.")},
    buffers=r"\.attn\.(bias|masked_bias)$",
)  # fmt: skip
