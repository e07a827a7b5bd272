"""Measure loss by domain as Paloma does: each validation document separately after a BOS, each token counted once."""

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
from olmo_jax.data.windows import evaluation_windows, first_documents
from olmo_jax.execution.members import over_members

# Windows are cut to at most this many lengths, multiples of an eighth of the longest. Each length is another program to
# compile, so it has to save a tenth of the tokens that are read with one length only.
_MOST_WIDTHS, _WORTH = 4, 0.1


class Text(NamedTuple):
    """The K validation documents of all domains, laid out in N windows `[N, L]`.

    `weights_NL` is 1 where a token counts and 0 on padding; `document_N` is the document of a window. Per document:
    `domain_K` is an index into `domains`, `tokens_K` its tokens, `bytes_K` its UTF-8 bytes (NaN if unknown).
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
    """Summed loss in nats of each document of `text` under each of M models, and statistics of it."""

    text: Text
    nats_MK: np.ndarray

    @functools.cached_property
    def by_domain(self) -> dict[str, np.ndarray]:
        """Return the loss in nats per token, `{domain: [M]}`."""
        return {d: self._summed(d) / self.tokens[d] for d in self.text.domains}

    @functools.cached_property
    def tokens(self) -> dict[str, int]:
        """Return the number of tokens of each domain."""
        return {d: int(self.text.tokens_K[self._in_domain(d)].sum()) for d in self.text.domains}

    @functools.cached_property
    def bits_per_byte(self) -> dict[str, np.ndarray]:
        """Return bits per byte of text, `{domain: [M]}`, which are comparable between tokenizers.

        Over the documents whose bytes are known; NaN if there are none.
        """
        results = {}
        for domain in self.text.domains:
            known = self._in_domain(domain) & np.isfinite(self.text.bytes_K)
            size = self.text.bytes_K[known].sum() if known.any() else np.nan
            results[domain] = self.nats_MK[:, known].sum(axis=1) / math.log(2) / size
        return results

    def standard_errors(self, other: "Losses | None" = None) -> dict[str, np.ndarray]:
        """Return standard errors, by document, of `by_domain`, or of its paired difference from that of `other`.

        The loss is a ratio of sums over documents, nats by tokens, drawn as pairs; its variance to first order is
        K / (K - 1) sum (nats_k - loss tokens_k)^2 / (sum tokens)^2. NaN for a single document.
        """
        nats_MK = self.nats_MK if other is None else self.nats_MK - other.nats_MK
        results = {}
        for domain in self.text.domains:
            in_domain_K = self._in_domain(domain)
            results[domain] = standard_error(nats_MK[:, in_domain_K], self.text.tokens_K[in_domain_K])
        return results

    def _in_domain(self, domain: str) -> np.ndarray:
        return self.text.domain_K == self.text.domains.index(domain)

    def _summed(self, domain: str) -> np.ndarray:
        return self.nats_MK[:, self._in_domain(domain)].sum(axis=1)


def standard_error(nats_MK: np.ndarray, tokens_K: np.ndarray) -> np.ndarray:
    """Return the standard error `[M]` of summed nats over summed tokens, by document; see `Losses.standard_errors`."""
    count = len(tokens_K)
    if count < 2:
        return np.full(len(nats_MK), np.nan)
    ratio_M1 = nats_MK.sum(axis=1, keepdims=True) / tokens_K.sum()
    deviation_MK = nats_MK - ratio_M1 * tokens_K[None]
    return np.sqrt(count / (count - 1) * (deviation_MK**2).sum(axis=1)) / tokens_K.sum()


def read_documents(
    index: TokenIndex,
    tokens_per_domain: int,
    learnt: Sequence[str],
    domains: Sequence[str] = (),
    tokens_per_document: int = 0,
) -> dict[str, list[np.ndarray]]:
    """Return the first `tokens_per_domain` tokens of documents of each of `domains` (() for all), by domain.

    No document contributes more than its first `tokens_per_document` tokens (0: no bound).

    The domains in `learnt`, which are trained or fine-tuned on (() for all), contribute only validation documents;
    others, documents of any split. Raises DataError for a domain that doesn't exist or has no documents.
    """
    chosen = domains or index.domains
    return {d: first_documents(index, d, tokens_per_domain, _splits(d, learnt), tokens_per_document) for d in chosen}


def _splits(domain: str, learnt: Sequence[str]) -> tuple[str, ...]:
    return ("validation",) if domain in learnt or not learnt else SPLITS


def read_bytes(
    index: TokenIndex, documents: Mapping[str, Sequence[np.ndarray]], learnt: Sequence[str], tokenizer: Tokenizer
) -> np.ndarray:
    """Return the bytes of text of each document of `read_documents`, one domain after another, `[K]`.

    For a whole document, the bytes counted when the text was tokenised. For a truncated document, the bytes of its
    tokens, if for the whole document these sum to the bytes counted, else NaN. Data prepared before bytes were stored
    have only the bytes of tokens.
    """
    lengths_V = tokenizer.byte_lengths
    bytes_of_documents: list[float] = []
    for domain, kept in documents.items():
        whole = itertools.chain.from_iterable(_with_bytes(index, s, domain) for s in _splits(domain, learnt))
        for part, (document, size) in zip(kept, whole, strict=False):
            if size is None or (len(part) < len(document) and _bytes_of(document, lengths_V) == size):
                bytes_of_documents.append(_bytes_of(part, lengths_V))
            elif len(part) == len(document) and size > 0:  # 0: it was made as tokens, without a text
                bytes_of_documents.append(size)
            else:
                bytes_of_documents.append(math.nan)
    return np.array(bytes_of_documents, float)


def _with_bytes(index: TokenIndex, split: str, domain: str) -> Iterator[tuple[np.ndarray, int | None]]:
    """Yield the documents that aren't empty, with the bytes stored for each, or None."""
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
    """Lay out documents by domain in windows to be scored.

    `bytes_K` are those of `read_bytes`; without them the bytes of tokens are used and, without a tokenizer, NaN.
    """
    every = [document for of_domain in documents.values() for document in of_domain]
    domain_K = np.repeat(np.arange(len(documents)), [len(of_domain) for of_domain in documents.values()])
    windows = evaluation_windows(every, eos_id, sequence_length)
    if bytes_K is None:
        lengths_V = None if tokenizer is None else tokenizer.byte_lengths
        bytes_K = np.array([_bytes_of(document, lengths_V) for document in every], float)
    return Text(*windows, domain_K, np.array([len(d) for d in every]), bytes_K, tuple(documents))


def lm_loss(config: ModelConfig, params_M: Any, text: Text, batch_size: int) -> Losses:
    """Return the loss of each member of a stack on each document; independent of the batch size up to rounding.

    Windows of similar length are batched together, to reduce padding.
    """
    batch_size = min(batch_size, len(text.document_N))  # rows that pad a batch cost as much as others
    batches = list(_batches(text, batch_size))
    results = over_batches(
        config,
        functools.partial(_row_sums, config, params_M),
        [tuple(_rows(a_NL[rows, :width], batch_size) for a_NL in text[:3]) for rows, width in batches],
    )
    sums_MN = np.zeros((len(jax.tree.leaves(params_M)[0]), len(text.document_N)))
    for (rows, _), sums_MB in zip(batches, results, strict=True):
        sums_MN[:, rows] = sums_MB[:, : len(rows)]
    starts_K = np.searchsorted(text.document_N, np.arange(len(text.tokens_K)))  # the rows of a document are adjacent
    return Losses(text, np.add.reduceat(sums_MN, starts_K, axis=1))


def _batches(text: Text, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the indices of each batch's windows, and the number of positions to read, which covers all that count."""
    length_N = text.weights_NL.sum(axis=1).astype(int)
    widths = _widths(length_N, text.inputs_NL.shape[1], batch_size)
    width_N = np.array(widths)[np.searchsorted(widths, length_N)]
    for width in widths:
        of_width = np.flatnonzero(width_N == width)
        yield from ((of_width[i : i + batch_size], width) for i in range(0, len(of_width), batch_size))


def _widths(length_N: np.ndarray, longest: int, batch_size: int) -> tuple[int, ...]:
    """Return the few lengths, ascending, that minimise the cost of reading; the last is `longest`."""
    eighths = sorted({-(-longest * share // 8) for share in range(1, 8)} - {longest})

    def cost(widths: tuple[int, ...]) -> float:
        width_N = np.array(widths)[np.searchsorted(widths, length_N)]
        rows = [-(-int((width_N == width).sum()) // batch_size) * batch_size for width in widths]
        return sum(map(operator.mul, rows, widths)) + len(widths) * _WORTH * len(length_N) * longest

    some = itertools.chain.from_iterable(itertools.combinations(eighths, n) for n in range(_MOST_WIDTHS))
    return min(((*widths, longest) for widths in some), key=cost)


def averages(domains: Sequence[str], train_domains: Sequence[str], set_apart: Sequence[str]) -> dict[str, list[str]]:
    """Return the domains of each macro-average that is over at least one domain.

    `in_domain` is over the trained domains, `out_of_domain` over all others except `set_apart` (those that
    fine-tuning uses), `macro` over all.
    """
    trained = [d for d in domains if d in train_domains or not train_domains]
    others = [d for d in domains if d not in trained and d not in set_apart]
    means = {"in_domain": trained, "out_of_domain": others, "macro": list(domains)}
    return {name: chosen for name, chosen in means.items() if chosen}


def summary(by_domain: Mapping[str, float], train_domains: Sequence[str], set_apart: Sequence[str]) -> dict[str, float]:
    """Return macro-averages, with equal weight for each domain, followed by the values by domain."""
    means = averages(list(by_domain), train_domains, set_apart)
    return {name: float(np.mean([by_domain[d] for d in chosen])) for name, chosen in means.items()} | dict(by_domain)


def summary_of_errors(
    by_domain: Mapping[str, float], train_domains: Sequence[str], set_apart: Sequence[str]
) -> dict[str, float]:
    """Return standard errors of macro-averages, with domains independent, followed by those by domain."""
    means = averages(list(by_domain), train_domains, set_apart)
    return {n: math.sqrt(sum(by_domain[d] ** 2 for d in chosen)) / len(chosen) for n, chosen in means.items()} | dict(
        by_domain
    )


@functools.partial(jax.jit, static_argnames="config")
def _row_sums(config: ModelConfig, params_M: Any, inputs_NL: Array, targets_NL: Array, weights_NL: Array) -> Array:
    """Return the summed loss of each row under each member, `[M, N]`."""

    def one(params: Any) -> Array:
        final_NLD = model.hidden(config, params, inputs_NL).final_BLD
        return (loss.token_losses(final_NLD, model.unembedding(params), targets_NL) * weights_NL).sum(axis=1)

    return over_members(one)(params_M)


def _rows(a_NL: np.ndarray, size: int) -> np.ndarray:
    """Pad with rows of zeros, which have weight 0, to `size` rows, so that all batches share a program."""
    return np.pad(a_NL, [(0, size - len(a_NL)), (0, 0)])
