"""The small model of prose that several studies train: its configuration, from the sizes of a scale."""

from typing import Protocol

from olmo_jax.config import DataConfig, ModelConfig, ProbeConfig, TargetConfig


class TextSizes(Protocol):
    """Tokens of the tokenizer, tokens per sequence, sequences per batch, and megabytes of text."""

    @property
    def vocabulary(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def megabytes(self) -> float: ...


class ModelSizes(TextSizes, Protocol):
    """The same, and the width and the number of blocks."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...


def prose(sizes: TextSizes) -> DataConfig:
    return DataConfig(
        train_domains=("prose",),
        max_megabytes=sizes.megabytes,
        bpe_vocab_size=sizes.vocabulary,
        sequence_length=sizes.length,
        batch_size=sizes.batch,
        max_epochs=8.0,
    )


def small_model(sizes: ModelSizes, factored_head: bool = False) -> ModelConfig:
    return ModelConfig(
        vocab_size=sizes.vocabulary,
        pad_vocab_to=1,
        d_model=sizes.width,
        n_layers=sizes.layers,
        n_heads=max(2, sizes.width // 32),
        d_ff=4 * sizes.width,
        context_length=sizes.length,
        factored_head=factored_head,
    )


def small_probe(sizes: TextSizes, every: int, metrics: tuple[str, ...]) -> ProbeConfig:
    """Return the probe of an unembedding by these metrics, and of the states of 64 short documents."""
    return ProbeConfig(
        every=every,
        unembedding=TargetConfig(metrics=metrics),
        final_states=TargetConfig(metrics=("effective_rank_percent", "mean_cosine", "isoscore")),
        documents=64,
        document_tokens=min(64, sizes.length),
    )
