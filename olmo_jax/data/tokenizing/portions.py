"""Portions of a corpus: consecutive documents, a quarter of a megabyte, that one process tokenises at a time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from olmo_jax.data.sources.text_files import Source

AT_ONCE = 1 << 18


class Document(NamedTuple):
    domain: str
    text: str


class Tally(NamedTuple):
    """What a portion of a file held.

    Attributes:
      rows: of the file up to here. passed_over: those of this portion whose text is null. documents: of this portion.
      last: whether the file ends here.
    """

    source: Source
    rows: int
    passed_over: int
    documents: int
    last: bool


class Content(NamedTuple):
    """What is in a portion.

    Attributes:
      documents: in the order in which they were read.
      keys_N2: by which all documents of the corpus are put in order, uint64 [documents, 2]; None where they are in it.
      tally: of a portion of a file whose rows are counted.
    """

    documents: Sequence[Document]
    keys_N2: np.ndarray | None = None
    tally: Tally | None = None


class Portion(Protocol):
    """Picklable."""

    def content(self) -> Content:
        """Reads it. Raises DataError for what can't be read."""


class Corpus(Protocol):
    """A corpus, which is read as often as needed."""

    def portions(self, note: Callable[[str], None]) -> Iterator[Portion]:
        """All portions, in order; `note` is called with a line on skipped rows where the tallies don't count them."""

    def rough_bytes(self) -> float:
        """About how much text there is; 0 where that can't be told."""


class Stored(NamedTuple):
    """Documents that have been read, in the order in which they are written."""

    documents: Sequence[Document]

    def content(self) -> Content:
        return Content(self.documents)


def stored(documents: Iterable[Document]) -> Iterator[Stored]:
    """Documents in portions."""
    return map(Stored, in_parts(documents))


def in_parts(documents: Iterable[Any], most: int = AT_ONCE) -> Iterator[list[Any]]:
    """Lists of consecutive documents, of any kind that has a `text`; each list ends once it has `most` characters."""
    part, size = [], 0
    for document in documents:
        part.append(document)
        size += len(document.text)
        if size >= most:
            yield part
            part, size = [], 0
    if part:
        yield part


def keys(names: Iterable[str]) -> np.ndarray:
    """Keys that put documents of these names in a random but fixed order, uint64 [names, 2].

    It is the order that TFDS gives the examples of a split "train" with these keys.
    """
    digests = b"".join(hashlib.md5(b"train" + name.replace("\\", "/").encode()).digest() for name in names)  # noqa: S324
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
