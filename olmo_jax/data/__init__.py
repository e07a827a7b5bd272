"""Turn corpora into batches of tokens: TFDS builders, tokenizer, token shards, windows read with grain."""

from collections.abc import Iterable

from olmo_jax.errors import UserError


class DataError(UserError):
    """Data that can't be used. The message is one line: what is wrong, in which file or setting, and what to do."""


def some_of(names: Iterable[str], at_most: int = 20, longest: int = 60) -> str:
    """Return names as part of a line, shortened if they are many or long: "a, b and 7 more", or "none" for none.

    Args:
      at_most: the number of names listed. longest: the number of characters kept of each name.
    """
    cut = [name if len(name) <= longest else name[:longest] + "..." for name in names]
    more = f" and {len(cut) - at_most} more" if len(cut) > at_most else ""
    return (", ".join(cut[:at_most]) or "none") + more
