"""From corpora to token windows: TFDS builders, tokenizer, token shards, grain."""

from olmo_jax.errors import UserError


class DataError(UserError):
    """Data that can't be used; one line says what is wrong, where it lies and what to do."""
