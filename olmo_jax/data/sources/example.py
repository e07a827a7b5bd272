"""What a corpus is made of."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Example(NamedTuple):
    """A document: its name within the corpus, the domain it belongs to, and its text."""

    id: str
    domain: str
    text: str


def capped(found: Iterable[Example], limit: float) -> Iterator[Example]:
    """The first examples, as many as have at most `limit` bytes of UTF-8 together."""
    total = 0
    for example in found:
        total += len(example.text.encode())
        if total > limit:
            return
        yield example
