"""What several architectures have in common in config.json and in the names of their tensors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.rope import RopeScaling
from olmo_jax.config.validation import require

UNSCALED = RopeScaling()
# Hugging Face's name of each kind of attention that layer_types can list.
LAYER_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}

DECODER_ENDS = {"embedding": "model.embed_tokens.weight", "unembedding": "lm_head.weight"}
DECODER_BLOCK = {
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
}
# Norms before each sublayer, as in Llama.
NORMS_BEFORE = {
    "attention_norm/scale": "model.layers.{i}.input_layernorm.weight",
    "mlp_norm/scale": "model.layers.{i}.post_attention_layernorm.weight",
    "final_norm/scale": "model.norm.weight",
}
HEAD_NORMS = {
    "attention/query_head_norm/scale": "model.layers.{i}.self_attn.q_norm.weight",
    "attention/key_head_norm/scale": "model.layers.{i}.self_attn.k_norm.weight",
}


def expect(settings: Mapping[str, Any], key: str, *known: Any) -> None:
    """Raise ConfigError if a setting has a value other than those known."""
    if key in settings:
        require(settings[key] in known, key, settings[key], f"isn't supported; {' or '.join(map(repr, known))} is")


class Rope(NamedTuple):
    """Base and scaling of the rotary frequencies, and the rotated fraction of each head, None if it isn't set."""

    theta: float
    scaling: RopeScaling
    fraction: float | None

    @property
    def unscaled(self) -> float:
        """Return the base; raises ConfigError if the frequencies are scaled."""
        require(self.scaling.kind == "none", "rope_type", self.scaling.kind, "isn't supported here; 'default' is")
        return self.theta


def read_rope(
    settings: Mapping[str, Any],
    theta_key: str = "rope_theta",
    theta: float = 10000.0,
    layers: str = "full_attention",
    partial: bool = False,
) -> Rope:
    """Return the rotary embedding of one kind of layer, as the settings of transformers 4 or 5 describe it.

    Args:
      theta_key: the setting that holds the base in transformers 4. theta: the base if no setting has it.
      layers: the kind, in models that have a rotary embedding for each kind of layer.
      partial: whether the family can rotate only a fraction of each head; if not, such a setting raises ConfigError.
    """
    written = settings.get("rope_parameters") or {}
    rope = (settings.get("rope_scaling") or {}) | (written.get(layers, written) or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    known = ("default", "linear", "llama3", "yarn")
    require(kind in known, "rope_type", kind, f"isn't supported; {', '.join(map(repr, known))} are")
    fraction = rope.get("partial_rotary_factor", settings.get("partial_rotary_factor", settings.get("rotary_pct")))
    require(partial or fraction in (None, 1), "partial_rotary_factor", fraction, "isn't supported; 1.0 is")
    scaling = UNSCALED if kind == "default" else _scaling(kind, rope, settings)
    return Rope(float(rope.get("rope_theta") or settings.get(theta_key) or theta), scaling, fraction)


def _scaling(kind: str, rope: Mapping[str, Any], settings: Mapping[str, Any]) -> RopeScaling:
    original = rope.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    context = settings["max_position_embeddings"]
    factor = float(rope.get("factor") or context / (original or context))
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = int(original or context)
    if kind == "llama3":
        return RopeScaling("llama3", factor, original, float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))
    for key in ("mscale", "mscale_all_dim"):
        expect(rope, key, None, 0)
    expect(rope, "truncate", True)
    attention = rope.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    slow, fast = rope.get("beta_slow") or 1.0, rope.get("beta_fast") or 32.0
    return RopeScaling("yarn", factor, original, float(slow), float(fast), float(attention))


def write_rope(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """Return the setting `rope_parameters` of a rotary embedding."""
    rope: dict[str, Any] = {"rope_type": "default" if scaling.kind == "none" else scaling.kind, "rope_theta": theta}
    if scaling.kind == "none":
        return rope
    rope["factor"] = scaling.factor
    if scaling.kind == "linear":
        return rope
    rope["original_max_position_embeddings"] = scaling.original_length
    if scaling.kind == "llama3":
        return rope | {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    return rope | {
        "beta_slow": scaling.low, "beta_fast": scaling.high, "attention_factor": scaling.attention_factor
    }  # fmt: skip


def read_shared(settings: Mapping[str, Any], tied: bool = False) -> dict[str, Any]:
    """Return the fields whose settings have one name in most families; raises KeyError for a missing size.

    Args:
      tied: whether the embeddings are tied if no setting says so.
    """
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    head = settings.get("head_dim")
    return {
        "vocab_size": settings["vocab_size"],
        "pad_vocab_to": 1,
        "d_model": width,
        "n_layers": settings["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": settings.get("num_key_value_heads"),
        "head_width": 0 if head is None or head * heads == width else head,
        "d_ff": settings["intermediate_size"],
        "context_length": settings.get("max_position_embeddings", 2048),
        "init_std": settings.get("initializer_range", 0.02),
        "tied": settings.get("tie_word_embeddings", tied),
    }


def write_shared(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that `read_shared` reads, with a rotary embedding whose frequencies aren't scaled."""
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
        "rope_parameters": write_rope(config.rope_theta, UNSCALED),
    }


def whole_heads(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `read_shared` for a family whose heads are hidden_size / num_attention_heads wide.

    Raises ConfigError for another head_dim.
    """
    expect(settings, "head_dim", None, settings["hidden_size"] // settings["num_attention_heads"])
    return read_shared(settings)


def without_window(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for a sliding window that is shorter than the context, in a family that has none."""
    window, context = settings.get("sliding_window"), settings.get("max_position_embeddings", 2048)
    used = settings.get("use_sliding_window", True)
    require(
        not used or window is None or window >= context,
        "sliding_window",
        window,
        f"is less than max_position_embeddings = {context}, and this architecture has no sliding window; null is "
        "supported",
    )


def pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest sequence of attention kinds that, repeated, gives those of all blocks; () if all are full."""
    if set(kinds) <= {"full"}:
        return ()
    period = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    return tuple(kinds[:period])


def read_layers(settings: Mapping[str, Any], default: Sequence[str], window: int | None) -> dict[str, Any]:
    """Return `attention_pattern` and `window` of a family with sliding windows.

    Args:
      default: kind of attention of each block, as in ModelConfig, if `layer_types` doesn't say.
      window: the window of the blocks that have one.
    """
    types = settings.get("layer_types")
    layers = settings["num_hidden_layers"]
    kinds = list(default)
    if types is not None:
        odd = [name for name in types if name not in LAYER_TYPES]
        require(not odd, "layer_types", odd[:1], f"isn't supported; {' and '.join(LAYER_TYPES)} are")
        require(len(types) == layers, "length of layer_types", len(types), f"must be num_hidden_layers = {layers}")
        kinds = [LAYER_TYPES[name] for name in types]
    sliding = "sliding" in kinds
    require(
        not sliding or (type(window) is int and window > 0),
        "sliding_window",
        window,
        "needs a positive whole number, since some blocks have sliding windows",
    )
    return {"attention_pattern": pattern(kinds), "window": window if sliding else 0}


def layer_types(config: ModelConfig) -> list[str]:
    """Return Hugging Face's names of the kinds of attention of all blocks."""
    return ["sliding_attention" if layer.window else "full_attention" for layer in config.layers]
