"""Documents as tokens, in portions, and how they are put in order."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from olmo_jax.data.shards import check_tokens
from olmo_jax.data.splits import split_of_digest
from olmo_jax.data.tokenizer import Tokenizer
from olmo_jax.data.tokenizing.portions import Portion, Tally


class Encoded(NamedTuple):
    """Documents as tokens.

    Attributes:
      groups: pairs of split and domain. group_N: which of them each document belongs to, uint32.
      lengths_N: tokens of each document, eos included, uint64. sizes_N: bytes of its text in UTF-8, uint64.
      tokens_T: of all documents, one after another, each ended by eos; of the dtype that shards have.
      keys_N2: see portions.Content.
    """

    groups: tuple[tuple[str, str], ...]
    group_N: np.ndarray
    lengths_N: np.ndarray
    sizes_N: np.ndarray
    tokens_T: np.ndarray
    keys_N2: np.ndarray | None = None
    tally: Tally | None = None


class Group(NamedTuple):
    """Documents of one split and domain, in the order in which they are written; see Encoded."""

    split: str
    domain: str
    tokens_T: np.ndarray
    lengths_N: np.ndarray
    sizes_N: np.ndarray


class Encode:
    """A function of a portion that returns its documents as Encoded.

    It raises DataError for a token outside the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, validation_fraction: float, dtype: np.dtype):
        self._tokenizer, self._validation_fraction, self._dtype = tokenizer, validation_fraction, dtype

    def __call__(self, portion: Portion) -> Encoded:
        content = portion.content()
        raw = [document.text.encode() for document in content.documents]
        digests = (hashlib.sha256(text).digest() for text in raw)
        number_of: dict[tuple[str, str], int] = {}
        group = [
            number_of.setdefault((split_of_digest(digest, self._validation_fraction), document.domain), len(number_of))
            for digest, document in zip(digests, content.documents, strict=True)
        ]
        tokens = self._tokenizer.encode([document.text for document in content.documents])
        for document, tokens_L in zip(content.documents, tokens, strict=True):
            check_tokens(tokens_L, self._tokenizer.vocab_size, document.domain)
        eos = np.array([self._tokenizer.eos_id])
        parts = [part.astype(self._dtype) for tokens_L in tokens for part in (tokens_L, eos)]
        return Encoded(
            groups=tuple(number_of),
            group_N=np.array(group, np.uint32),
            lengths_N=np.array([len(tokens_L) + 1 for tokens_L in tokens], np.uint64),
            sizes_N=np.array([len(text) for text in raw], np.uint64),
            tokens_T=np.concatenate(parts) if parts else np.zeros(0, self._dtype),
            keys_N2=content.keys_N2,
            tally=content.tally,
        )


def in_groups(encoded: Encoded) -> Iterator[Group]:
    """The documents by split and domain, each group in the order of the keys, else in the order that they have."""
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
    """The tokens of some documents, in the order of the numbers given."""
    ends_N = np.cumsum(lengths_N, dtype=np.int64)
    begins_N = ends_N - lengths_N.astype(np.int64)
    parts = [tokens_T[begins_N[n] : ends_N[n]] for n in order_N]
    return np.concatenate(parts) if parts else tokens_T[:0]
