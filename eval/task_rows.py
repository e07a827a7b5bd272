"""Lay out task items in rows of tokens; continuations share their context, and short texts share a row.

A continuation is read after BOS (the eos token) and the tokens of its context. The two are encoded separately, as in
olmo_eval/tasks.py (OEEvalTask; lm-eval encodes them as one text). White space at the end of a context is moved to the
continuation, as in lm-eval, since the token of a word includes the space before it; OLMo's contexts don't end in space.
Three differences from OLMo: BOS is used with every tokenizer; it is kept when the context is truncated; and a
continuation longer than the window is scored in pieces, of which each but the last has only BOS before it.

Continuations with the same tokens before them share these: each attends only to them and to itself, at the positions
that it would have in a separate row (see attention.Spans). A context that is truncated to make room for its
continuation is shared by continuations with the same number of tokens. A row holds as many contexts as fit.

Shapes: C choices of all I items, N rows, L length, P scored positions of all rows.
"""

import bisect
import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from olmo_jax.data import DataError
from olmo_jax.data.sources.task_items import Item
from olmo_jax.data.tokenizer import Tokenizer
from olmo_jax.execution.attention import Spans

# Rows are this long, or 2, 3, 4, 6, 8, 12, ... times as long for longer texts, so that all tasks need few programs.
# Shorter rows wouldn't be faster, since attention takes a small part of the time at this length.
_SHORTEST = 128


class Piece(NamedTuple):
    """A continuation, or a part of one that is longer than the window.

    before: the tokens before it, BOS first. targets: its tokens. choice: index of the choice that it belongs to.
    """

    before: np.ndarray
    targets: np.ndarray
    choice: int


class Bucket(NamedTuple):
    """Rows of one length and, row by row, the positions whose states predict the tokens of continuations.

    `spans` says what each token attends to, `[N, L]` arrays; padding attends only to itself. `target_P` is the token
    to predict at position `place_P` of row `row_P`, and belongs to `choice_P`.
    """

    tokens_NL: np.ndarray
    spans: Spans
    row_P: np.ndarray
    place_P: np.ndarray
    target_P: np.ndarray
    choice_P: np.ndarray


class Rows(NamedTuple):
    """Items laid out to be scored.

    Per choice: its item, its index among the item's choices, and its length in tokens, characters and UTF-8 bytes,
    including the leading space. Per item: the index of the correct choice.
    """

    buckets: tuple[Bucket, ...]
    item_C: np.ndarray
    place_C: np.ndarray
    tokens_C: np.ndarray
    characters_C: np.ndarray
    bytes_C: np.ndarray
    gold_I: np.ndarray

    @property
    def single(self) -> bool:
        """Return whether every item has only one continuation."""
        return len(self.item_C) == len(self.gold_I)


class _Text(NamedTuple):
    """Tokens with the continuations that are read after them."""

    before: np.ndarray
    pieces: tuple[Piece, ...]

    @property
    def length(self) -> int:
        """Return the number of input tokens; the last token of a continuation is only predicted."""
        return len(self.before) + sum(len(piece.targets) - 1 for piece in self.pieces)


def prepare(items: Sequence[Item], tokenizer: Tokenizer, length: int) -> Rows:
    """Lay out items in rows of at most `length` tokens; contexts are truncated on the left to fit.

    Raises DataError for a choice that the tokenizer encodes to no tokens.
    """
    parts = pieces(items, tokenizer, length)
    texts = list(_texts(parts, length))
    rows: dict[int, list[list[_Text]]] = collections.defaultdict(list)
    for row_length, members in _filled([text.length for text in texts], _lengths(length)):
        rows[row_length].append([texts[i] for i in members])
    choices = [choice for item in items for choice in _choices(item)]
    item_C = np.repeat(np.arange(len(items)), [len(item.choices) for item in items])
    choice_K = np.array([piece.choice for piece in parts])
    return Rows(
        tuple(_bucket(rows[row_length], row_length, tokenizer.eos_id) for row_length in sorted(rows)),
        item_C,
        np.concatenate([np.arange(len(item.choices)) for item in items]),
        np.bincount(choice_K, weights=[len(piece.targets) for piece in parts]).astype(int),
        np.array([len(continuation) for _, continuation in choices]),
        np.array([len(continuation.encode()) for _, continuation in choices]),
        np.array([item.gold for item in items]),
    )


def pieces(items: Sequence[Item], tokenizer: Tokenizer, length: int) -> list[Piece]:
    """Return the continuations of all items, in order, as they are scored in windows of `length` tokens.

    Raises DataError as `prepare` does.
    """
    pairs = [pair for item in items for pair in _choices(item)]
    contexts, continuations = (tokenizer.encode(texts) for texts in zip(*pairs, strict=True))
    names = [item.id for item in items for _ in item.choices]
    results: list[Piece] = []
    for c, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        if not len(continuation):
            problem = f"item {names[c]}: the tokenizer makes no tokens of {pairs[c][1]!r}"
            raise DataError(f"{problem}; change this choice")
        results += [Piece(*parts, c) for parts in _parts(context, continuation, tokenizer.eos_id, length)]
    return results


def _choices(item: Item) -> Iterator[tuple[str, str]]:
    """Yield context and continuation of each choice; white space between the two belongs to the latter."""
    for context, continuation in zip(item.contexts, item.choices, strict=True):
        kept = context.rstrip()
        yield kept, context[len(kept) :] + continuation


def _parts(
    context: np.ndarray, continuation: np.ndarray, bos: int, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of preceding and predicted tokens: one pair if the continuation fits into `length`."""
    text = np.concatenate([[bos], context, continuation]).astype(np.int32)
    for start in range(1 + len(context), len(text), length):
        stop = min(start + length, len(text))
        before = text[max(0, stop - 1 - length) : start].copy()
        before[0] = bos
        yield before, text[start:stop]


def _texts(parts: Sequence[Piece], length: int) -> Iterator[_Text]:
    """Group pieces with the same preceding tokens into texts of at most `length` tokens."""
    by_context: dict[bytes, list[Piece]] = collections.defaultdict(list)
    for piece in parts:
        by_context[piece.before.tobytes()].append(piece)
    for group in by_context.values():
        before = group[0].before
        sizes = [len(piece.targets) - 1 for piece in group]
        for _, members in _filled(sizes, (length - len(before),)):
            yield _Text(before, tuple(group[i] for i in members))


def _filled(sizes: Sequence[int], capacities: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Pack sizes into bins by best-fit decreasing; returns (capacity, indices of its sizes) per bin.

    A size that fits into no open bin opens one with the first capacity that holds it.
    """
    bins: list[tuple[int, list[int]]] = []
    with_room: dict[int, list[int]] = collections.defaultdict(list)
    rooms: list[int] = []  # free space of the open bins, ascending, without repeats
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        k = bisect.bisect_left(rooms, sizes[i])
        if k == len(rooms):
            room, b = next(n for n in capacities if n >= sizes[i]), len(bins)
            bins.append((room, []))
        else:
            room = rooms[k]
            b = with_room[room].pop()
            if not with_room[room]:
                del rooms[k]
        bins[b][1].append(i)
        left = room - sizes[i]
        if not with_room[left]:
            bisect.insort(rooms, left)
        with_room[left].append(b)
    return bins


def _lengths(longest: int) -> list[int]:
    """Return the possible lengths of rows, ascending."""
    powers = [2**k for k in range(longest.bit_length())]
    multiples = sorted({*powers, *(3 * n for n in powers)})
    return [n for n in (_SHORTEST * k for k in multiples) if n < longest] + [longest]


def _bucket(rows: Sequence[Sequence[_Text]], length: int, pad: int) -> Bucket:
    tokens_NL = np.full((len(rows), length), pad, np.int32)
    own_position_NL = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
    spans = Spans(own_position_NL, own_position_NL.copy(), own_position_NL.copy())
    scored: list[tuple[np.ndarray, ...]] = []
    for n, texts in enumerate(rows):
        end = 0
        for text in texts:
            first, after = end, end + len(text.before)
            tokens_NL[n, first:after] = text.before
            for span_NL in spans:
                span_NL[n, first:after] = first
            end = after
            for piece in text.pieces:
                start, end = end, end + len(piece.targets) - 1
                tokens_NL[n, start:end] = piece.targets[:-1]
                for span_NL, place in zip(spans, (first, after, start), strict=True):
                    span_NL[n, start:end] = place
                place_S = np.concatenate([[after - 1], np.arange(start, end)])
                of_row, of_choice = np.full(len(place_S), n), np.full(len(place_S), piece.choice)
                scored.append((of_row, place_S, piece.targets, of_choice))
    return Bucket(tokens_NL, spans, *(np.concatenate(columns) for columns in zip(*scored, strict=True)))
