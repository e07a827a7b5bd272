"""Architectures by name: the sizes that stand in for paper A's, in two readings, and the published ones.

OLMO, OLMO2 and PYTHIA map a size to its ModelConfig, as published in code: OLMo's configs/tiny and configs/official,
OLMo-core's TransformerConfig, Pythia's config.json. Settings of training aren't included.
"""

import dataclasses

from olmo_jax.config.model import ModelConfig


def _olmo(d_model: int, n_layers: int, n_heads: int, context_length: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50280,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=4 * d_model,
        context_length=context_length,
    )


def _olmo2(d_model: int, n_layers: int, n_heads: int, d_ff: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=100278,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=d_ff,
        rope_theta=500_000.0,
        norm_eps=1e-6,
        context_length=4096,
        norm="rms_norm",
        norm_at="after",
        qk_norm=True,
    )


def _pythia(d_model: int, n_layers: int, n_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50277,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        d_ff=4 * d_model,
        context_length=2048,
        norm="affine_layer_norm",
        parallel=True,
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
        rotary_fraction=0.25,
    )


# Six sizes [ours, methods.md section 1], named by their parameters without embedding and unembedding.
STAND_INS = {
    "4m": _olmo(256, 4, 8, 2048),
    "8m": _olmo(256, 8, 8, 2048),
    "13m": _olmo(320, 8, 8, 2048),
    "19m": _olmo(384, 8, 8, 2048),
    "34m": _olmo(512, 8, 8, 2048),
    "75m": _olmo(768, 8, 12, 2048),
}

# The same labels as OLMo's counter reads them, with the unembedding and without the embedding: four sizes of public
# suites [code], and two between and above them [ours]; methods.md section 7.
STAND_INS_WITH_HEAD = {
    "4m": _olmo(64, 8, 8, 2048),
    "8m": _olmo(128, 8, 8, 2048),
    "14m": _olmo(192, 8, 8, 2048),
    "20m": _olmo(256, 8, 8, 2048),
    "34m": _olmo(320, 10, 8, 2048),
    "75m": _olmo(512, 12, 8, 2048),
}

# Public [code], named by their parameters with one of the two embeddings; OLMo-1B ties them.
PUBLIC_OLMO = {
    "20m": _olmo(256, 8, 8, 4096),
    "60m": _olmo(512, 8, 8, 4096),
    "150m": _olmo(768, 12, 12, 4096),
    "300m": _olmo(1024, 16, 16, 4096),
    "1b": dataclasses.replace(_olmo(2048, 16, 16, 2048), tied=True),
}

OLMO = STAND_INS | PUBLIC_OLMO

# OLMo-core's olmo2_14M to olmo2_760M, and the OLMo-2-0425-1B that was released (its olmo2_1B_v2) [code].
OLMO2 = {
    "14m": _olmo2(128, 4, 8, 512),
    "30m": _olmo2(256, 4, 8, 768),
    "60m": _olmo2(384, 8, 8, 1536),
    "100m": _olmo2(512, 12, 8, 2048),
    "190m": _olmo2(768, 12, 12, 3072),
    "370m": _olmo2(1024, 16, 16, 4096),
    "600m": _olmo2(1344, 16, 16, 5376),
    "760m": _olmo2(1536, 16, 16, 6144),
    "1b": _olmo2(2048, 16, 16, 8192),
}

_PARALLEL = {
    "14m": _pythia(128, 6, 4),
    "31m": _pythia(256, 6, 8),
    "70m": _pythia(512, 6, 8),
    "160m": _pythia(768, 12, 12),
}

# Each with the twin that paper A compares it with: the MLP reads the stream after attention, all else equal.
PYTHIA = _PARALLEL | {
    f"{size}-sequential": dataclasses.replace(config, parallel=False) for size, config in _PARALLEL.items()
}

# The small model of paper B's grokking [B]; norms with parameters, biases and the initialisation are ours.
GROKKING = ModelConfig(
    vocab_size=200,
    pad_vocab_to=1,
    d_model=128,
    n_layers=2,
    n_heads=4,
    d_ff=512,
    context_length=4,
    norm="affine_layer_norm",
    mlp="gelu",
    attention_bias=True,
    mlp_bias=True,
    positions="learned",
    dropout=0.1,
)
