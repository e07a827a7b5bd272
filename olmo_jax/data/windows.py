"""Token windows for training, and the layout of documents for evaluation."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from olmo_jax.data import DataError
from olmo_jax.data.shards import TokenIndex, map_numbers

if TYPE_CHECKING:
    import grain


def train_windows(
    index: TokenIndex, domains: Sequence[str], sequence_length: int, batch_size: int, data_seed: int
) -> "grain.MapDataset":
    """Return the training batches: element `step` is the batch of that step, int32 [batch_size, sequence_length + 1].

    Window i covers tokens [i L, (i + 1) L] of the training shards of `domains` (() for all), joined in order of their
    names. Its last token is the first of the next window, so that every token is predicted once. Each epoch is
    shuffled anew. The dataset is infinite and a pure function of its arguments; the order of the windows is the same
    for every batch size.

    Raises DataError for an unknown domain, and if there are too few tokens for one window.
    """
    windows = _training_windows(index, domains, sequence_length)
    return in_order(windows, batch_size, data_seed)


def window_order(
    index: TokenIndex, domains: Sequence[str], sequence_length: int, batch_size: int, data_seed: int
) -> "grain.MapDataset":
    """Return the window numbers of `train_windows`, int64 [batch_size] per step: window i begins at token i L."""
    windows = _training_windows(index, domains, sequence_length)
    return in_order(range(len(windows)), batch_size, data_seed)


def training_tokens(index: TokenIndex, domains: Sequence[str]) -> list[np.ndarray]:
    """Return the arrays that, concatenated, hold the tokens of the training windows of `domains`."""
    return [index.tokens("train", d) for d in _names(index, domains)]


def _training_files(index: TokenIndex, domains: Sequence[str]) -> list[tuple[Path, np.dtype]]:
    return [index.token_file("train", d) for d in _names(index, domains)]


def _training_windows(index: TokenIndex, domains: Sequence[str], sequence_length: int) -> "_TokenWindows":
    windows = _TokenWindows(_training_files(index, domains), sequence_length)
    if not len(windows):
        raise DataError(too_few_tokens(index, domains, sequence_length))
    return windows


def in_order(source: Any, batch_size: int, data_seed: int) -> "grain.MapDataset":
    """Return batches of a random-access source: infinite, and shuffled anew each epoch.

    The dataset is a pure function of its arguments.
    """
    import grain

    # grain shuffles epoch e with seed + e, so neighbouring seeds would repeat each other's epochs.
    hashed_seed = int.from_bytes(hashlib.sha256(f"windows {data_seed}".encode()).digest()[:4], "big")
    return grain.MapDataset.source(source).shuffle(hashed_seed).repeat().batch(batch_size)


def epochs(index: TokenIndex, domains: Sequence[str], sequence_length: int, tokens: int) -> float:
    """Return how many times training on `tokens` tokens passes over the training windows of `domains`."""
    windows = _TokenWindows(_training_files(index, domains), sequence_length)
    return tokens / (len(windows) * sequence_length)


def too_few_tokens(index: TokenIndex, domains: Sequence[str], sequence_length: int) -> str:
    """Return the error message for a training split shorter than one window; "" if it isn't."""
    names = _names(index, domains)
    total = sum(index.shard("train", d).tokens for d in names)
    if total > sequence_length:
        return ""
    return (
        f"data.sequence_length = {sequence_length}: the training split of {', '.join(names)} has {total} tokens, fewer "
        "than one window and the token after it; add text or shorten the sequence"
    )


class EvaluationWindows(NamedTuple):
    """Documents laid out in N rows of length L, to be scored by predicting `targets_NL` from `inputs_NL`.

    Attributes:
      inputs_NL, targets_NL: tokens, int32.
      weights_NL: 1 for targets that count, 0 for padding; float32.
      document_N: index of each row's document in the list, int32.
    """

    inputs_NL: np.ndarray
    targets_NL: np.ndarray
    weights_NL: np.ndarray
    document_N: np.ndarray


def evaluation_windows(documents: Sequence[np.ndarray], eos_id: int, sequence_length: int) -> EvaluationWindows:
    """Return documents laid out in rows to be scored separately, each after a BOS (the eos token), as in Paloma.

    A document longer than L continues in further rows without overlap. Every token is a target once; BOS and padding
    (eos, weight 0) never are. An empty document has no row. Source: Magnusson et al. 2023 (Paloma), section 3.
    """
    L = sequence_length
    lengths = np.array([len(d) for d in documents], np.int64)
    rows = -(-lengths // L)
    N = int(rows.sum())
    document_N = np.repeat(np.arange(len(documents), dtype=np.int32), rows)
    inputs_NL = np.full((N, L), eos_id, np.int32)
    targets_NL = np.full((N, L), eos_id, np.int32)
    weights_NL = np.zeros((N, L), np.float32)
    # The rows of a document are consecutive, so the flattened array contains each document in one piece.
    starts = np.cumsum(rows) - rows
    for tokens, start in zip(documents, starts * L, strict=True):
        inputs_NL.reshape(-1)[start + 1 : start + len(tokens)] = tokens[:-1]
        targets_NL.reshape(-1)[start : start + len(tokens)] = tokens
        weights_NL.reshape(-1)[start : start + len(tokens)] = 1
    return EvaluationWindows(inputs_NL, targets_NL, weights_NL, document_N)


def first_documents(
    index: TokenIndex,
    domain: str,
    max_tokens: int,
    splits: Sequence[str] = ("validation",),
    most_per_document: int = 0,
) -> list[np.ndarray]:
    """Return the tokens of the first documents of a domain, by default of its validation split; int32, without eos.

    Documents are stored in the order of a hash, so the first ones are a random sample.

    Args:
      max_tokens: the total; the last document is cut.
      splits: where documents are taken from, in this order. For a domain that no run trains on, `shards.SPLITS` adds
        the training documents.
      most_per_document: longer documents are cut to this many tokens; 0 takes whole documents.

    Raises DataError if there are none.
    """
    chosen = []
    remaining = max_tokens
    for document in itertools.chain.from_iterable(index.documents(split, domain) for split in splits):
        if remaining <= 0:
            break
        if len(document):
            chosen.append(np.array(document[: min(remaining, most_per_document or remaining)], np.int32))
            remaining -= len(chosen[-1])
    if not chosen:
        raise DataError(
            f"{index.directory}: domain {domain!r} has no {' or '.join(splits)} text; "
            + ("raise data.validation_fraction or add text" if tuple(splits) == ("validation",) else "add text")
        )
    return chosen


def unigram_loss(index: TokenIndex, domains: Sequence[str], documents: Sequence[np.ndarray]) -> float:
    """Return the cross-entropy of a unigram model on `documents`, in nats per token.

    The model's frequencies are those of the training split of `domains` (() for all), with one added to each count.
    """
    counts_V = np.ones(index.vocab_size, np.int64)
    for domain in _names(index, domains):
        counts_V += _count(index.tokens("train", domain), index.vocab_size)
    log_p_V = np.log(counts_V) - np.log(counts_V.sum())
    tokens = np.concatenate(documents)
    return float(-log_p_V[tokens].mean())


class _TokenWindows:
    """A random-access source of windows that overlap by one, over the concatenated tokens of several files."""

    def __init__(self, files: Sequence[tuple[Path, np.dtype]], sequence_length: int):
        self._files = files
        self._arrays = [a for a in (map_numbers(path, dtype) for path, dtype in files) if len(a)]
        self._length = sequence_length
        self._ends = np.cumsum([len(a) for a in self._arrays], dtype=np.int64)

    def __reduce__(self) -> tuple:
        # Memory-mapped arrays would be pickled whole for every worker process, so pickle their paths.
        return _TokenWindows, (self._files, self._length)

    def __len__(self) -> int:
        total = int(self._ends[-1]) if len(self._ends) else 0
        return max(0, (total - 1) // self._length)

    def __getitem__(self, i: int) -> np.ndarray:
        begin, end = i * self._length, (i + 1) * self._length + 1
        parts = []
        for k in range(int(np.searchsorted(self._ends, begin, side="right")), len(self._arrays)):
            start = int(self._ends[k]) - len(self._arrays[k])
            if start >= end:
                break
            parts.append(self._arrays[k][max(0, begin - start) : end - start])
        return np.concatenate(parts).astype(np.int32)


def _names(index: TokenIndex, domains: Sequence[str]) -> list[str]:
    return sorted(set(domains)) if domains else list(index.domains)


def _count(tokens: np.ndarray, vocab_size: int, at_once: int = 1 << 24) -> np.ndarray:
    counts_V = np.zeros(vocab_size, np.int64)
    for begin in range(0, len(tokens), at_once):
        counts_V += np.bincount(tokens[begin : begin + at_once], minlength=vocab_size)
    return counts_V
