"""Small decoders that together cover every option."""

import dataclasses

from olmo_jax.config import ModelConfig
from olmo_jax.config.rope import RopeScaling

_SMALL = ModelConfig(vocab_size=61, pad_vocab_to=8, d_model=32, n_layers=2, n_heads=4, d_ff=48, context_length=80)

FAMILIES = {
    "olmo": dataclasses.replace(_SMALL, clip_qkv=0.5),
    "olmo2": dataclasses.replace(_SMALL, norm="rms_norm", norm_at="after", qk_norm=True, n_kv_heads=2),
    "gpt_neox": dataclasses.replace(
        _SMALL, norm="affine_layer_norm", parallel=True, mlp="gelu", attention_bias=True, mlp_bias=True,
        rotary_fraction=0.25,
    ),
}  # fmt: skip

# Of one layer, for these are compiled often.
VARIANTS = FAMILIES | {
    "sequential neox": dataclasses.replace(FAMILIES["gpt_neox"], parallel=False, n_layers=1),
    # Paper B's small models.
    "learned positions": dataclasses.replace(
        _SMALL, norm="affine_layer_norm", mlp="gelu", attention_bias=True, mlp_bias=True, positions="learned",
        dropout=0.1, n_layers=1,
    ),
    "tied": dataclasses.replace(_SMALL, tied=True, n_kv_heads=1, n_layers=1),
    "all at once": dataclasses.replace(
        _SMALL, norm="affine_layer_norm", norm_at="after", qk_norm=True, clip_qkv=0.5, parallel=True,
        attention_bias=True, mlp_bias=True, positions="learned", n_kv_heads=2, tied=True, dropout=0.2,
        n_layers=1,
    ),
    "gemma3": dataclasses.replace(
        _SMALL, norm="rms_norm", norm_at="both", norm_plus_one=True, qk_norm=True, qk_norm_by_head=True, mlp="geglu",
        scaled_embedding=True, head_width=12, score_width=20.0, n_kv_heads=2, tied=True,
        attention_pattern=("sliding", "full"), window=9, sliding_rope_theta=50.0,
    ),
    "unrotated blocks": dataclasses.replace(
        _SMALL, norm="rms_norm", mlp="gelu_tanh", attention_bias=True, out_bias=False,
        attention_pattern=("unrotated", "full"), rope_scaling=RopeScaling("llama3", 4.0, 32),
    ),
}  # fmt: skip
