"""From corpora to token windows: TFDS builders, tokenizer, token shards, grain."""

from olmo_jax.errors import UserError


class DataError(UserError):
    """Data that can't be used; one line says what is wrong, where it lies and what to do."""


def brief(error: BaseException, longest: int = 200) -> str:
    """An error's message, or else its name, as part of a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[:longest] + "..."
