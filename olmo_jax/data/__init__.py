"""From corpora to token windows: TFDS builders, tokenizer, token shards, grain."""


class DataError(Exception):
    """Data that can't be used; one line says what is wrong, where it lies and what to do."""
