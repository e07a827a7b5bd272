"""Floating-point operations of training, by formula: a multiplication and an addition count as two."""

from olmo_jax.config.model import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Entries of the matrices that every token is multiplied with: those of the blocks and the unembedding."""
    return config.n_layers * sum(_block(config)) + config.padded_vocab_size * config.d_model


def _block(config: ModelConfig) -> tuple[int, int]:
    """Entries of a block's matrices: of keys and values, and of all others."""
    d = config.d_model
    mlp = (3 if config.mlp == "swiglu" else 2) * d * config.d_ff
    return 2 * d * config.kv_heads * config.d_head, 2 * d * d + mlp


def forward(config: ModelConfig, sequences: int, length: int, pairs: int | None = None, last: bool = False) -> int:
    """Matmuls of one forward pass, logits included.

    Args:
      pairs: of a query and a key whose score is computed in a sequence and head; None: those that causal attention
        needs, L (L + 1) / 2. PaLM's convention, L^2, counts what the mask throws away.
      last: the last position alone is predicted (model.hidden's `last`).
    """
    pairs = length * (length + 1) // 2 if pairs is None else pairs
    entries, scores = matmul_parameters(config) * length, pairs * config.n_layers
    if last:  # of the last block keys and values are of all positions, the rest is of one
        entries -= (_block(config)[1] + config.padded_vocab_size * config.d_model) * (length - 1)
        scores -= pairs - length
    return sequences * (2 * entries + 2 * 2 * config.d_model * scores)


def train_step(config: ModelConfig, sequences: int, length: int, pairs: int | None = None, last: bool = False) -> int:
    """Matmuls of one training step: a backward pass is two forward ones; what is computed again isn't counted."""
    return 3 * forward(config, sequences, length, pairs, last)
