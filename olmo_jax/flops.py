"""Floating-point operations of training, by formula: a multiplication and an addition count as two."""

from olmo_jax.model_config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Entries of the matrices that every token is multiplied with: those of the blocks and the unembedding."""
    d, kv = config.d_model, config.kv_heads * config.d_head
    attention = 2 * d * d + 2 * d * kv
    mlp = (3 if config.mlp == "swiglu" else 2) * d * config.d_ff
    return config.n_layers * (attention + mlp) + config.padded_vocab_size * d


def forward(config: ModelConfig, sequences: int, length: int, pairs: int | None = None) -> int:
    """Matmuls of one forward pass, logits included.

    Args:
      pairs: of a query and a key whose score is computed in a sequence and head; None: those that causal attention
        needs, L (L + 1) / 2. PaLM's convention, L^2, counts what the mask throws away.
    """
    pairs = length * (length + 1) // 2 if pairs is None else pairs
    tokens = 2 * matmul_parameters(config) * length
    attention = 2 * 2 * config.d_model * pairs * config.n_layers
    return sequences * (tokens + attention)


def train_step(config: ModelConfig, sequences: int, length: int, pairs: int | None = None) -> int:
    """Matmuls of one training step: a backward pass is two forward ones; what is computed again isn't counted."""
    return 3 * forward(config, sequences, length, pairs)
