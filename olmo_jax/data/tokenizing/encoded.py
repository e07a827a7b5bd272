"""Tokenise portions of documents, and sort their documents."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from olmo_jax.data.shards import check_tokens
from olmo_jax.data.splits import split_of_digest
from olmo_jax.data.tokenizer import Tokenizer
from olmo_jax.data.tokenizing.portions import Portion, Tally


class Encoded(NamedTuple):
    """Tokenised documents.

    Attributes:
      groups: pairs of split and domain. group_N: index of each document's pair, uint32.
      lengths_N: tokens of each document with eos, uint64. sizes_N: bytes of each text in UTF-8, uint64.
      tokens_T: the concatenated documents, each ending with eos, in the dtype of the shards.
      keys_N2, tally: as in portions.Content.
    """

    groups: tuple[tuple[str, str], ...]
    group_N: np.ndarray
    lengths_N: np.ndarray
    sizes_N: np.ndarray
    tokens_T: np.ndarray
    keys_N2: np.ndarray | None = None
    tally: Tally | None = None


class Group(NamedTuple):
    """Documents of one split and domain, in the order in which they are written; arrays as in Encoded."""

    split: str
    domain: str
    tokens_T: np.ndarray
    lengths_N: np.ndarray
    sizes_N: np.ndarray


class Encode:
    """A picklable function that returns the tokenised documents of a portion.

    It raises DataError for text that can't be read and for a token outside the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, validation_fraction: float, dtype: np.dtype):
        self._tokenizer, self._validation_fraction, self._dtype = tokenizer, validation_fraction, dtype

    def __call__(self, portion: Portion) -> Encoded:
        content = portion.content()
        raw = [document.text.encode() for document in content.documents]
        digests = (hashlib.sha256(text).digest() for text in raw)
        index_of: dict[tuple[str, str], int] = {}
        group = [
            index_of.setdefault((split_of_digest(digest, self._validation_fraction), document.domain), len(index_of))
            for digest, document in zip(digests, content.documents, strict=True)
        ]
        tokens = self._tokenizer.encode([document.text for document in content.documents])
        for document, tokens_L in zip(content.documents, tokens, strict=True):
            check_tokens(tokens_L, self._tokenizer.vocab_size, document.domain)
        eos = np.array([self._tokenizer.eos_id])
        parts = [part.astype(self._dtype) for tokens_L in tokens for part in (tokens_L, eos)]
        return Encoded(
            groups=tuple(index_of),
            group_N=np.array(group, np.uint32),
            lengths_N=np.array([len(tokens_L) + 1 for tokens_L in tokens], np.uint64),
            sizes_N=np.array([len(text) for text in raw], np.uint64),
            tokens_T=np.concatenate(parts) if parts else np.zeros(0, self._dtype),
            keys_N2=content.keys_N2,
            tally=content.tally,
        )


def in_groups(encoded: Encoded) -> Iterator[Group]:
    """Yield the documents of each split and domain, sorted by key if they have keys, else in their order."""
    keys = () if encoded.keys_N2 is None else (encoded.keys_N2[:, 1], encoded.keys_N2[:, 0])
    order_N = np.lexsort((*keys, encoded.group_N))
    tokens_T = gathered(encoded.tokens_T, encoded.lengths_N, order_N)
    group_N, lengths_N, sizes_N = (x[order_N] for x in (encoded.group_N, encoded.lengths_N, encoded.sizes_N))
    ends_N = np.cumsum(lengths_N, dtype=np.int64)
    begin, token = 0, 0
    for end in np.flatnonzero(np.append(group_N[1:] != group_N[:-1], len(group_N) > 0)) + 1:
        split, domain = encoded.groups[group_N[begin]]
        yield Group(split, domain, tokens_T[token : ends_N[end - 1]], lengths_N[begin:end], sizes_N[begin:end])
        begin, token = int(end), int(ends_N[end - 1])


def gathered(tokens_T: np.ndarray, lengths_N: np.ndarray, order_N: np.ndarray) -> np.ndarray:
    """Return the concatenated tokens of the documents `order_N`, in this order."""
    ends_N = np.cumsum(lengths_N, dtype=np.int64)
    begins_N = ends_N - lengths_N.astype(np.int64)
    parts = [tokens_T[begins_N[n] : ends_N[n]] for n in order_N]
    return np.concatenate(parts) if parts else tokens_T[:0]
