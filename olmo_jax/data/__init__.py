"""From corpora to token windows: TFDS builders, tokenizer, token shards, grain."""

from collections.abc import Iterable

from olmo_jax.errors import UserError


class DataError(UserError):
    """Data that can't be used; one line says what is wrong, where it lies and what to do."""


def some_of(names: Iterable[str], at_most: int = 20, longest: int = 60) -> str:
    """Names as part of a line, however many there are and however long: "a, b and 7 more"; "none" for none."""
    cut = [name if len(name) <= longest else name[:longest] + "..." for name in names]
    more = f" and {len(cut) - at_most} more" if len(cut) > at_most else ""
    return (", ".join(cut[:at_most]) or "none") + more
