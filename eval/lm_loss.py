"""Loss by domain, Paloma's way: each validation document on its own after a BOS, every token counted once."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from eval.batches import over_batches
from olmo_jax import loss, model
from olmo_jax.config import ModelConfig
from olmo_jax.data.shards import SPLITS, TokenIndex
from olmo_jax.data.tokenizer import Tokenizer
from olmo_jax.data.windows import evaluation_windows, validation_documents
from olmo_jax.execution.members import over_members

# Windows are cut to so many lengths at most, which are eighths of the longest. Each is one more program to compile, so
# it has to save a tenth of what is read without any.
_MOST_WIDTHS, _WORTH = 4, 0.1


class Text(NamedTuple):
    """Validation documents of all domains, one after another, K of them, laid out in N windows `[N, L]`.

    `weights_NL` is 1 where a token counts and 0 on padding; `document_N` is the document of a window. Of a document:
    its domain's place in `domains`, its tokens and its bytes (UTF-8 of its text; NaN where they aren't known).
    """

    inputs_NL: np.ndarray
    targets_NL: np.ndarray
    weights_NL: np.ndarray
    document_N: np.ndarray
    domain_K: np.ndarray
    tokens_K: np.ndarray
    bytes_K: np.ndarray
    domains: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Losses:
    """Summed loss in nats of each document of `text` under each of M models, and what follows from it."""

    text: Text
    nats_MK: np.ndarray

    @functools.cached_property
    def by_domain(self) -> dict[str, np.ndarray]:
        """Nats per token, `{domain: [M]}`."""
        return {d: self._summed(d) / self.tokens[d] for d in self.text.domains}

    @functools.cached_property
    def tokens(self) -> dict[str, int]:
        """The number of tokens behind each."""
        return {d: int(self.text.tokens_K[self._of(d)].sum()) for d in self.text.domains}

    @functools.cached_property
    def bits_per_byte(self) -> dict[str, np.ndarray]:
        """Bits per byte of text, `{domain: [M]}`: comparable between tokenizers.

        Over the documents whose bytes are known; NaN where there is none.
        """
        found = {}
        for domain in self.text.domains:
            known = self._of(domain) & np.isfinite(self.text.bytes_K)
            size = self.text.bytes_K[known].sum() if known.any() else np.nan
            found[domain] = self.nats_MK[:, known].sum(axis=1) / math.log(2) / size
        return found

    def standard_errors(self, other: "Losses | None" = None) -> dict[str, np.ndarray]:
        """Of `by_domain`, or of its difference to that of `other` on the same documents; by document.

        The loss is a ratio of sums over documents, nats by tokens, drawn as pairs; its variance to first order is
        K / (K - 1) sum (nats_k - loss tokens_k)^2 / (sum tokens)^2. NaN for a single document.
        """
        nats_MK = self.nats_MK if other is None else self.nats_MK - other.nats_MK
        found = {}
        for domain in self.text.domains:
            of = self._of(domain)
            found[domain] = standard_error(nats_MK[:, of], self.text.tokens_K[of])
        return found

    def _of(self, domain: str) -> np.ndarray:
        return self.text.domain_K == self.text.domains.index(domain)

    def _summed(self, domain: str) -> np.ndarray:
        return self.nats_MK[:, self._of(domain)].sum(axis=1)


def standard_error(nats_MK: np.ndarray, tokens_K: np.ndarray) -> np.ndarray:
    """Standard error `[M]` of summed nats over summed tokens, by document; see `Losses.standard_errors`."""
    count = len(tokens_K)
    if count < 2:
        return np.full(len(nats_MK), np.nan)
    ratio_M1 = nats_MK.sum(axis=1, keepdims=True) / tokens_K.sum()
    off_MK = nats_MK - ratio_M1 * tokens_K[None]
    return np.sqrt(count / (count - 1) * (off_MK**2).sum(axis=1)) / tokens_K.sum()


def read_documents(
    index: TokenIndex, tokens_per_domain: int, learnt: Sequence[str], domains: Sequence[str] = ()
) -> dict[str, list[np.ndarray]]:
    """The first documents of every domain up to `tokens_per_domain`, by domain: the same for all models of a cohort.

    Of a domain in `learnt`, trained or fine-tuned on (all for ()), validation documents; of the others any. Of the
    domains named, or of all for (). Raises DataError for a domain that isn't there or has no documents.
    """
    chosen = domains or index.domains
    return {d: validation_documents(index, d, tokens_per_domain, _splits(d, learnt)) for d in chosen}


def _splits(domain: str, learnt: Sequence[str]) -> tuple[str, ...]:
    return ("validation",) if domain in learnt or not learnt else SPLITS


def read_bytes(
    index: TokenIndex, documents: Mapping[str, Sequence[np.ndarray]], learnt: Sequence[str], tokenizer: Tokenizer
) -> np.ndarray:
    """The bytes of text of each document that `read_documents` gave, one domain after another, `[K]`.

    Those counted when the text was tokenised. The part of a document that was cut has what its tokens stand for, if
    over the whole document that comes to just the bytes counted. NaN elsewhere. Data prepared before bytes were stored
    have what tokens stand for alone.
    """
    lengths_V = tokenizer.byte_lengths
    found: list[float] = []
    for domain, kept in documents.items():
        whole = itertools.chain.from_iterable(_with_bytes(index, s, domain) for s in _splits(domain, learnt))
        for part, (document, size) in zip(kept, whole, strict=False):
            if size is None or (len(part) < len(document) and _bytes_of(document, lengths_V) == size):
                found.append(_bytes_of(part, lengths_V))
            elif len(part) == len(document) and size > 0:  # 0: made as tokens, without a text
                found.append(size)
            else:
                found.append(math.nan)
    return np.array(found, float)


def _with_bytes(index: TokenIndex, split: str, domain: str) -> Iterator[tuple[np.ndarray, int | None]]:
    """The documents that aren't empty and the bytes stored of each, None where none are."""
    stored = index.text_bytes(split, domain)
    sizes = itertools.repeat(None) if stored is None else map(int, stored)
    return ((document, size) for document, size in zip(index.documents(split, domain), sizes) if len(document))  # noqa: B905


def _bytes_of(document: np.ndarray, lengths_V: np.ndarray | None) -> float:
    return math.nan if lengths_V is None else float(lengths_V[document].sum())


def lay_out(
    documents: Mapping[str, Sequence[np.ndarray]],
    eos_id: int,
    sequence_length: int,
    tokenizer: Tokenizer | None = None,
    bytes_K: np.ndarray | None = None,
) -> Text:
    """Documents by domain as windows to be scored.

    Their bytes are those of `read_bytes`, or else what their tokens stand for; with neither they aren't known.
    """
    every = [document for of_domain in documents.values() for document in of_domain]
    domain_K = np.repeat(np.arange(len(documents)), [len(of_domain) for of_domain in documents.values()])
    windows = evaluation_windows(every, eos_id, sequence_length)
    if bytes_K is None:
        lengths_V = None if tokenizer is None else tokenizer.byte_lengths
        bytes_K = np.array([_bytes_of(document, lengths_V) for document in every], float)
    return Text(*windows, domain_K, np.array([len(d) for d in every]), bytes_K, tuple(documents))


def lm_loss(config: ModelConfig, params_M: Any, text: Text, batch_size: int) -> Losses:
    """Loss of each member of a stack on each document; independent of the batch size but for rounding.

    Windows of like length go through the models together, so that little of what these read is padding.
    """
    batches = list(_batches(text, batch_size))
    results = over_batches(
        config,
        functools.partial(_row_sums, config, params_M),
        [tuple(_rows(a_NL[rows, :width], batch_size) for a_NL in text[:3]) for rows, width in batches],
    )
    sums_MN = np.zeros((len(jax.tree.leaves(params_M)[0]), len(text.document_N)))
    for (rows, _), sums_MB in zip(batches, results, strict=True):
        sums_MN[:, rows] = sums_MB[:, : len(rows)]
    starts_K = np.searchsorted(text.document_N, np.arange(len(text.tokens_K)))  # the rows of a document lie together
    return Losses(text, np.add.reduceat(sums_MN, starts_K, axis=1))


def _batches(text: Text, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Which windows go together, and how many of their places are read, at least as many as count in each."""
    length_N = text.weights_NL.sum(axis=1).astype(int)
    widths = _widths(length_N, text.inputs_NL.shape[1], batch_size)
    width_N = np.array(widths)[np.searchsorted(widths, length_N)]
    for width in widths:
        of_width = np.flatnonzero(width_N == width)
        yield from ((of_width[i : i + batch_size], width) for i in range(0, len(of_width), batch_size))


def _widths(length_N: np.ndarray, longest: int, batch_size: int) -> tuple[int, ...]:
    """The few lengths, ascending, that windows are best cut to; the last is `longest`."""
    eighths = sorted({-(-longest * share // 8) for share in range(1, 8)} - {longest})

    def cost(widths: tuple[int, ...]) -> float:
        width_N = np.array(widths)[np.searchsorted(widths, length_N)]
        rows = [-(-int((width_N == width).sum()) // batch_size) * batch_size for width in widths]
        return sum(map(operator.mul, rows, widths)) + len(widths) * _WORTH * len(length_N) * longest

    some = itertools.chain.from_iterable(itertools.combinations(eighths, n) for n in range(_MOST_WIDTHS))
    return min(((*widths, longest) for widths in some), key=cost)


def averages(domains: Sequence[str], train_domains: Sequence[str], set_apart: Sequence[str]) -> dict[str, list[str]]:
    """The domains behind each macro-average, those that are over any.

    `in_domain` is over the domains trained on, `out_of_domain` over all others but `set_apart` (those that fine-tuning
    uses), `macro` over all.
    """
    trained = [d for d in domains if d in train_domains or not train_domains]
    others = [d for d in domains if d not in trained and d not in set_apart]
    means = {"in_domain": trained, "out_of_domain": others, "macro": list(domains)}
    return {name: of for name, of in means.items() if of}


def summary(by_domain: Mapping[str, float], train_domains: Sequence[str], set_apart: Sequence[str]) -> dict[str, float]:
    """Numbers by domain after their macro-averages, each domain counting the same."""
    means = averages(list(by_domain), train_domains, set_apart)
    return {name: float(np.mean([by_domain[d] for d in of])) for name, of in means.items()} | dict(by_domain)


def summary_of_errors(
    by_domain: Mapping[str, float], train_domains: Sequence[str], set_apart: Sequence[str]
) -> dict[str, float]:
    """Standard errors by domain after those of the macro-averages, of which domains are independent parts."""
    means = averages(list(by_domain), train_domains, set_apart)
    return {n: math.sqrt(sum(by_domain[d] ** 2 for d in of)) / len(of) for n, of in means.items()} | dict(by_domain)


@functools.partial(jax.jit, static_argnames="config")
def _row_sums(config: ModelConfig, params_M: Any, inputs_NL: Array, targets_NL: Array, weights_NL: Array) -> Array:
    """Summed loss of each row under each member, `[M, N]`."""

    def one(params: Any) -> Array:
        final_NLD = model.hidden(config, params, inputs_NL).final_BLD
        return (loss.token_losses(final_NLD, model.unembedding(params), targets_NL) * weights_NL).sum(axis=1)

    return over_members(one)(params_M)


def _rows(a_NL: np.ndarray, size: int) -> np.ndarray:
    """The rows with rows of zeros (so of weight 0) up to `size`: one shape, one program."""
    return np.pad(a_NL, [(0, size - len(a_NL)), (0, 0)])
