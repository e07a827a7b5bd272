"""Loss by domain, Paloma's way: each validation document on its own after a BOS, every token counted once."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from olmo_jax import loss, model
from olmo_jax.cohort import over_members
from olmo_jax.config import ModelConfig
from olmo_jax.data.shards import SPLITS, TokenIndex
from olmo_jax.data.windows import evaluation_windows, validation_documents


class Text(NamedTuple):
    """Validation windows of all domains, one after another: `[N, L]` each, and the domain of each row.

    `weights_NL` is 1 where a token counts and 0 on padding.
    """

    inputs_NL: np.ndarray
    targets_NL: np.ndarray
    weights_NL: np.ndarray
    domain_N: np.ndarray
    domains: tuple[str, ...]


class Losses(NamedTuple):
    """Nats per token by domain, `{domain: [M]}`, and the number of tokens behind each."""

    by_domain: dict[str, np.ndarray]
    tokens: dict[str, int]


def read_documents(index: TokenIndex, tokens_per_domain: int, learnt: Sequence[str]) -> dict[str, list[np.ndarray]]:
    """The first documents of every domain up to `tokens_per_domain`, by domain: the same for every model.

    Of a domain in `learnt`, trained or fine-tuned on (all for ()), validation documents; of the others any.
    """
    splits = {d: ("validation",) if d in learnt or not learnt else SPLITS for d in index.domains}
    return {d: validation_documents(index, d, tokens_per_domain, splits[d]) for d in index.domains}


def lay_out(documents: Mapping[str, Sequence[np.ndarray]], eos_id: int, sequence_length: int) -> Text:
    """Documents by domain as windows to be scored."""
    parts = []
    for place, of_domain in enumerate(documents.values()):
        inputs, targets, weights, _ = evaluation_windows(of_domain, eos_id, sequence_length)
        parts.append((inputs, targets, weights, np.full(len(inputs), place)))
    inputs_NL, targets_NL, weights_NL, domain_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Text(inputs_NL, targets_NL, weights_NL, domain_N, tuple(documents))


def lm_loss(config: ModelConfig, params_M: Any, text: Text, batch_size: int) -> Losses:
    """Loss of each member of a stack on each domain; independent of the batch size but for rounding."""
    sums_MN = np.concatenate(
        [
            np.asarray(_row_sums(config, params_M, *(_rows(a, start, batch_size) for a in text[:3])))
            for start in range(0, len(text.domain_N), batch_size)
        ],
        axis=1,
    )[:, : len(text.domain_N)].astype(np.float64)
    by_domain, tokens = {}, {}
    for place, domain in enumerate(text.domains):
        rows = text.domain_N == place
        tokens[domain] = int(text.weights_NL[rows].sum())
        by_domain[domain] = sums_MN[:, rows].sum(axis=1) / tokens[domain]
    return Losses(by_domain, tokens)


def summary(losses: dict[str, float], train_domains: tuple[str, ...], set_apart: str) -> dict[str, float]:
    """The losses by domain and their macro-averages, each domain counting the same.

    `in_domain` is over the domains trained on, `out_of_domain` over all others but `set_apart` (the one that
    fine-tuning uses), `macro` over all.
    """
    trained = [d for d in losses if d in train_domains or not train_domains]
    others = [d for d in losses if d not in trained and d != set_apart]
    means = {"in_domain": trained, "out_of_domain": others, "macro": list(losses)}
    return {name: float(np.mean([losses[d] for d in ds])) for name, ds in means.items() if ds} | losses


@functools.partial(jax.jit, static_argnames="config")
def _row_sums(config: ModelConfig, params_M: Any, inputs_NL: Array, targets_NL: Array, weights_NL: Array) -> Array:
    """Summed loss of each row under each member, `[M, N]`."""

    def one(params: Any) -> Array:
        final_NLD = model.hidden(config, params, inputs_NL).final_BLD
        return (loss.token_losses(final_NLD, model.unembedding(params), targets_NL) * weights_NL).sum(axis=1)

    return over_members(one)(params_M)


def _rows(a_NL: np.ndarray, start: int, size: int) -> np.ndarray:
    """`size` rows from `start`, with rows of zeros (so of weight 0) beyond the end: one shape, one program."""
    rows = a_NL[start : start + size]
    return np.pad(rows, [(0, size - len(rows)), (0, 0)])
