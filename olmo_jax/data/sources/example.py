"""The documents of a corpus."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Example(NamedTuple):
    """A document: its name within the corpus, its domain, and its text."""

    id: str
    domain: str
    text: str


def capped(examples: Iterable[Example], limit: float) -> Iterator[Example]:
    """Yield the first examples, up to `limit` bytes of UTF-8 in total."""
    total = 0
    for example in examples:
        total += len(example.text.encode())
        if total > limit:
            return
        yield example
