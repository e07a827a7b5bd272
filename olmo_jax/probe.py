"""Geometry of a member while it trains: its unembedding, raw and gauge-fixed, and its states on fixed documents."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from geometry.gauge import gauge_fix
from geometry.probe import summarize
from olmo_jax import model
from olmo_jax.config import ModelConfig, ProbeConfig

_OF_UNEMBEDDING = ("effective_rank", "effective_rank_percent", "mean_cosine", "partition_isotropy")
_OF_STATES = ("effective_rank", "effective_rank_percent", "mean_cosine")


class Documents(NamedTuple):
    """Fixed validation documents: tokens after a BOS, padded on the right, and the place of each one's last token."""

    tokens_NL: np.ndarray
    last_N: np.ndarray


def choose_documents(config: ProbeConfig, documents: list[np.ndarray], bos: int) -> Documents:
    """The first `config.documents` documents of more than one token, each cut to `config.document_tokens`.

    The same for every run of a data set. Where there are fewer documents N is smaller.
    """
    chosen = [d[: config.document_tokens - 1] for d in documents if len(d) > 1][: config.documents]
    tokens_NL = np.full((len(chosen), config.document_tokens), bos, np.int32)
    for row, document in zip(tokens_NL, chosen, strict=True):
        row[1 : 1 + len(document)] = document
    return Documents(tokens_NL, np.array([len(d) for d in chosen], np.int32))


def measure(config: ModelConfig, vocabulary: int, documents: Documents, params: Any) -> dict[str, Array]:
    """Metrics of one member, float32 scalars named "target/metric".

    Targets: `unembedding`, W without the rows that pad the vocabulary; `unembedding_gauge_fixed`, the same less what
    the logits can't see (methods.md section 2); `final_states`, paper A's H: the last token of each document.
    """
    w_VD = params["unembedding"][:vocabulary]
    final_NLD = model.hidden(config, params, jnp.asarray(documents.tokens_NL)).final_BLD
    h_ND = final_NLD[jnp.arange(len(documents.last_N)), documents.last_N].astype(jnp.float32)
    measured = {
        "unembedding": summarize(w_VD, metrics=_OF_UNEMBEDDING),
        "unembedding_gauge_fixed": summarize(gauge_fix(w_VD, "layer_norm"), metrics=_OF_UNEMBEDDING),
        "final_states": summarize(h_ND, metrics=_OF_STATES),
    }
    return {f"{target}/{name}": value for target, values in measured.items() for name, value in values.items()}


def make_probe(config: ModelConfig, vocabulary: int, documents: Documents) -> Any:
    """`probe(params_M) -> {name: [M]}`, one compiled program over the stack."""
    return jax.jit(jax.vmap(functools.partial(measure, config, vocabulary, documents)))
