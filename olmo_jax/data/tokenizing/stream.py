"""Read a corpus, tokenise it and write token shards, in one pass and with one process per core."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from olmo_jax.config.data import DataConfig
from olmo_jax.console import Rate
from olmo_jax.data.shards import ShardWriter
from olmo_jax.data.sources.text_corpus import Counting
from olmo_jax.data.tokenizer import Tokenizer
from olmo_jax.data.tokenizing.encoded import Encode, Encoded, in_groups
from olmo_jax.data.tokenizing.key_order import KeyOrder
from olmo_jax.data.tokenizing.portions import Corpus
from olmo_jax.data.tokenizing.workers import in_order

_SECONDS_BETWEEN_LINES = 10.0


def write(
    corpus: Corpus,
    data: DataConfig,
    tokenizer: Tokenizer,
    text_bytes: float,
    directory: Path,
    say: Callable[[str], None],
    writer: ShardWriter,
    processes: int | None = None,
) -> None:
    """Write the tokens of all documents, sorted by key if they have keys, else in the order of the corpus.

    The result doesn't depend on the number of processes. Memory grows with the longest document, not with the corpus
    (but see KeyOrder).

    Args:
      text_bytes: the approximate size of the text; 0 if it is not known.
      directory: for temporary files, which are deleted.
      say: called with one line of text at a time.
      processes: the maximum; None for one per core.

    Raises DataError for text that can't be read and for tokens outside the vocabulary.
    """
    dtype = np.dtype(writer.dtype).newbyteorder("<")
    job = Encode(tokenizer, data.validation_fraction, dtype)
    by_key = KeyOrder(directory, text_bytes, dtype)
    counting, progress = Counting(data.text_field, say), _Progress(text_bytes, say)
    with contextlib.closing(in_order(job, corpus.portions(say), processes)) as portions:
        for encoded in portions:
            counting.add(encoded.tally)
            if encoded.keys_N2 is None:
                _write(encoded, writer)
            else:
                by_key.add(encoded)
            progress.add(int(encoded.sizes_N.sum()))
    for encoded in by_key.ranges():
        _write(encoded, writer)
    progress.end()


def _write(encoded: Encoded, writer: ShardWriter) -> None:
    for group in in_groups(encoded):
        writer.extend(*group)


class _Progress:
    """Reports the progress every few seconds."""

    def __init__(self, text_bytes: float, say: Callable[[str], None]):
        self._total, self._say, self._done = int(text_bytes), say, 0
        self._begun = self._reported = time.monotonic()
        self._rate = Rate(self._total, 0, self._begun)

    def add(self, text_bytes: int) -> None:
        self._done += text_bytes
        now = time.monotonic()
        self._rate.add(self._done, now)
        if now - self._reported < _SECONDS_BETWEEN_LINES:
            return
        self._reported = now
        seconds = self._rate.seconds_left()
        of = f" of about {self._total / 1e6:,.0f}" if self._done < self._total else ""
        left = f", {seconds:,.0f}s left" if of and seconds is not None else ""
        self._say(f"{self._done / 1e6:,.0f}{of} MB tokenised, {self._megabytes_per_second(now):.1f} MB/s{left}")

    def end(self) -> None:
        now = time.monotonic()
        rate = self._megabytes_per_second(now)
        self._say(f"{self._done / 1e6:,.0f} MB tokenised in {now - self._begun:,.0f}s, {rate:.1f} MB/s")

    def _megabytes_per_second(self, now: float) -> float:
        return self._done / 1e6 / max(1e-9, now - self._begun)
