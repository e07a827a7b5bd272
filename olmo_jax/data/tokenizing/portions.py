"""Portions of a corpus: consecutive documents, about a quarter of a megabyte, that a process tokenises at a time."""

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
    """Counts of the rows in a portion of a file.

    Attributes:
      rows: rows of the file up to the end of the portion.
      passed_over: rows of the portion that are skipped, since their text is null.
      documents: documents in the portion.
      last: whether this is the file's last portion.
    """

    source: Source
    rows: int
    passed_over: int
    documents: int
    last: bool


class Content(NamedTuple):
    """The contents of a portion.

    Attributes:
      documents: in the order in which they were read.
      keys_N2: keys by which the documents of the corpus are to be sorted, uint64; None if they are in order already.
      tally: the counts of its rows, for a portion of a file whose rows are counted.
    """

    documents: Sequence[Document]
    keys_N2: np.ndarray | None = None
    tally: Tally | None = None


class Portion(Protocol):
    """A portion. It is picklable, and may read its documents only when they are asked for."""

    def content(self) -> Content:
        """Return its contents. Raises DataError for text that can't be read."""


class Corpus(Protocol):
    """A corpus. It can be read repeatedly."""

    def portions(self, note: Callable[[str], None]) -> Iterator[Portion]:
        """Yield all portions in order; `note` is called with a line about skipped rows that no tally counts."""

    def rough_bytes(self) -> float:
        """Return the approximate bytes of text; 0 if they are not known."""


class Stored(NamedTuple):
    """A portion of documents that have been read, in the order in which they are written."""

    documents: Sequence[Document]

    def content(self) -> Content:
        return Content(self.documents)


def stored(documents: Iterable[Document]) -> Iterator[Stored]:
    """Return documents, which are in order, as portions."""
    return map(Stored, in_parts(documents))


def in_parts(documents: Iterable[Any], most: int = AT_ONCE) -> Iterator[list[Any]]:
    """Yield lists of consecutive documents (anything with a `text`); a list ends once it has `most` characters."""
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
    """Return keys that sort documents of these names in a random but fixed order, uint64 [names, 2].

    It is TFDS's order of examples with these names in a split "train".
    """
    digests = b"".join(hashlib.md5(b"train" + name.replace("\\", "/").encode()).digest() for name in names)  # noqa: S324
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)
