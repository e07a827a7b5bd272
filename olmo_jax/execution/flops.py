"""Floating-point operations of training, by formula: a multiplication and an addition count as two."""

from olmo_jax.config.model import ModelConfig
from olmo_jax.config.train import TrainConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Return the number of entries of the matrices applied to every token: those of the blocks and the unembedding."""
    return config.n_layers * sum(_block(config)) + config.padded_vocab_size * config.d_model


def _block(config: ModelConfig) -> tuple[int, int]:
    """Return the number of entries of a block's key and value matrices, and of its other matrices."""
    d = config.d_model
    mlp = (3 if config.gated else 2) * d * config.d_ff
    return 2 * d * config.kv_heads * config.d_head, 2 * d * config.n_heads * config.d_head + mlp


def forward(config: ModelConfig, sequences: int, length: int, pairs: int | None = None, last: bool = False) -> int:
    """Return the FLOPs of the matmuls of one forward pass, including logits.

    Args:
      pairs: pairs of query and key whose score is computed, per sequence and head; None: those that causal attention
        needs, L (L + 1) / 2, or fewer with a sliding window. PaLM's convention, L^2, includes masked scores.
      last: only the last position is predicted (model.hidden's `last`).
    """
    reach = [min(layer.window or length, length) for layer in config.layers]
    pairs_of_block = [w * length - w * (w - 1) // 2 if pairs is None else pairs for w in reach]
    entries, scores = matmul_parameters(config) * length, sum(pairs_of_block)
    if last:  # the last block computes keys and values at all positions, the rest at one
        entries -= (_block(config)[1] + config.padded_vocab_size * config.d_model) * (length - 1)
        scores -= pairs_of_block[-1] - reach[-1]
    head = 2 * config.factored_head * config.padded_vocab_size * config.d_model**2  # W = U P, once per pass
    return sequences * (2 * entries + 2 * 2 * config.n_heads * config.d_head * scores) + head


def train_step(config: ModelConfig, sequences: int, length: int, pairs: int | None = None, last: bool = False) -> int:
    """Return the FLOPs of one training step: the backward pass counts as two forward passes.

    Recomputation isn't counted.
    """
    return 3 * forward(config, sequences, length, pairs, last)


def run_step(config: TrainConfig) -> int:
    """Return the FLOPs of one step of a run: train_step, twice for sharpness-aware minimisation."""
    data = config.data
    step = train_step(config.model, data.batch_size, data.sequence_length, last=data.is_arithmetic)
    return step * (2 if config.optimizer.sam_rho else 1)
