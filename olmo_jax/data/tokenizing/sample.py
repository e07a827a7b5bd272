"""A sample of the training documents to train a tokenizer on: those with the smallest SHA-256.

It is a uniform sample of the whole corpus, and the same however the documents are ordered, divided among files or
distributed to processes.
"""

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from olmo_jax.config.data import DataConfig
from olmo_jax.data.sources.text_corpus import Counting
from olmo_jax.data.splits import split_of_digest
from olmo_jax.data.tokenizing.portions import Corpus, Portion, Tally
from olmo_jax.data.tokenizing.workers import in_order

_LAST = b"\xff" * 32


class Scanned(NamedTuple):
    """The result of scanning a portion.

    Attributes:
      bytes_of: bytes of text in UTF-8, by domain.
      candidates: SHA-256 and UTF-8 of the documents that may be in the sample.
      tally: as in portions.Content.
    """

    bytes_of: Counter[str]
    candidates: list[tuple[bytes, bytes]]
    tally: Tally | None


@dataclasses.dataclass(frozen=True)
class Scan:
    """A picklable function that scans a portion, given also the largest SHA-256 that may be in the sample.

    Attributes:
      train_domains: domains to sample from; () for all.
      wanted: whether a sample is needed.
    """

    validation_fraction: float
    train_domains: Collection[str]
    wanted: bool

    def __call__(self, item: tuple[Portion, bytes]) -> Scanned:
        portion, last = item
        content = portion.content()
        bytes_of: Counter[str] = Counter()
        candidates = []
        for domain, text in content.documents:
            raw = text.encode()
            bytes_of[domain] += len(raw)
            if not self.wanted or (self.train_domains and domain not in self.train_domains):
                continue
            digest = hashlib.sha256(raw).digest()
            if digest <= last and split_of_digest(digest, self.validation_fraction) == "train":
                candidates.append((digest, raw))
        return Scanned(bytes_of, candidates, content.tally)


class Sample:
    """Holds the first `most` bytes of the documents added, in the order of their SHA-256.

    Up to twice as many bytes are in memory while documents are added.

    Attributes:
      last: documents with a larger SHA-256 needn't be added.
      whole: whether it holds all documents that were added.
    """

    def __init__(self, most: int):
        self._most = most
        self._held: list[tuple[bytes, bytes]] = []
        self._size = 0
        self.last = _LAST
        self.whole = True

    def add(self, digest: bytes, raw: bytes) -> None:
        """Add a document, given its SHA-256 and its UTF-8."""
        self._held.append((digest, raw))
        self._size += len(raw)
        if self._size > 2 * self._most:
            self._trim()

    def texts(self) -> Iterator[str]:
        """Yield the documents in the sample; the last one is cut, after a whole character, to fit."""
        self._trim()
        self._held.sort()
        remaining = self._most
        for _, raw in self._held:
            yield raw[:remaining].decode(errors="ignore")
            remaining -= len(raw)

    def _trim(self) -> None:
        if self._size <= self._most:
            return
        self.whole = False
        self._held.sort()
        size = 0
        for number, (digest, raw) in enumerate(self._held, start=1):
            size += len(raw)
            if size >= self._most:
                del self._held[number:]
                self._size, self.last = size, digest
                return


def scan(corpus: Corpus, data: DataConfig, processes: int | None = None) -> tuple[Counter[str], Sample]:
    """Read a whole corpus; return the bytes of text of each domain, and the sample to train the tokenizer on.

    The sample is empty if the tokenizer isn't trained on a sample. Raises DataError for text that can't be read.

    Args:
      processes: the maximum; None for one per core.
    """
    sample = Sample(round(data.bpe_megabytes * 1e6))
    job = Scan(data.validation_fraction, data.train_domains, data.tokenizer == "bpe" and data.bpe_megabytes > 0)
    counting = Counting(data.text_field, lambda line: None)
    bytes_of: Counter[str] = Counter()
    items: Iterator[tuple[Portion, bytes]] = ((portion, sample.last) for portion in corpus.portions(lambda line: None))
    with contextlib.closing(in_order(job, items, processes)) as portions:
        for scanned in portions:
            counting.add(scanned.tally)
            bytes_of.update(scanned.bytes_of)
            for candidate in scanned.candidates:
                sample.add(*candidate)
    return bytes_of, sample
