"""A sample of the training documents to train a tokenizer on: those whose SHA-256 come first.

So it is drawn from the whole corpus, each document as likely as any other, and is the same however the documents are
ordered, divided among files or shared among processes.
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
    """What was found in a portion.

    Attributes:
      bytes_of: of text in UTF-8, by domain, of every domain that has a document.
      candidates: SHA-256 and UTF-8 of the documents that may be in the sample.
    """

    bytes_of: Counter[str]
    candidates: list[tuple[bytes, bytes]]
    tally: Tally | None


@dataclasses.dataclass(frozen=True)
class Scan:
    """A function of a portion and the last SHA-256 that may be in the sample; `wanted`: whether there is a sample."""

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
    """The first `most` bytes of the documents added, in the order of their SHA-256.

    It holds up to twice as much while documents are added.
    """

    def __init__(self, most: int):
        self._most = most
        self._held: list[tuple[bytes, bytes]] = []
        self._size = 0
        self.last = _LAST  # documents with a later SHA-256 needn't be added
        self.whole = True  # whether it holds all that was added

    def add(self, digest: bytes, raw: bytes) -> None:
        """Takes a document: its SHA-256 and its UTF-8."""
        self._held.append((digest, raw))
        self._size += len(raw)
        if self._size > 2 * self._most:
            self._trim()

    def texts(self) -> Iterator[str]:
        """The documents; of the last one only as much, in whole characters, as there is room for."""
        self._trim()
        self._held.sort()
        left = self._most
        for _, raw in self._held:
            yield raw[:left].decode(errors="ignore")
            left -= len(raw)

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
    """Reads a whole corpus: the bytes of text of each domain, and the sample for `data`'s tokenizer.

    Where that learns from no sample, or isn't trained, the sample is empty. Raises DataError for what can't be read.
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
