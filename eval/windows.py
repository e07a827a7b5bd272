"""Windows of validation text as arrays, and the mean loss on them as a function that can be differentiated twice."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from eval.eval_data import EvalData
from eval.lm_loss import averages
from olmo_jax import loss
from olmo_jax.config import ModelConfig


class Windows(NamedTuple):
    """N windows of L tokens; `weights_NL` is 0 where a position doesn't count."""

    inputs_NL: Array
    targets_NL: Array
    weights_NL: Array


def first_windows(data: EvalData, count: int, domains: Sequence[str] = ()) -> Windows:
    """Return the first windows of some domains, in turn; () for those trained on. Fewer if there are no more."""
    text = data.text
    if not domains:
        domains = averages(text.domains, data.shape.config.data.train_domains, data.config.set_apart)["in_domain"]
    of_domain = [np.flatnonzero(text.domain_K[text.document_N] == text.domains.index(domain)) for domain in domains]
    longest = max(map(len, of_domain))
    in_turn = [rows[i] for i in range(longest) for rows in of_domain if i < len(rows)]
    rows = np.array(in_turn[:count])
    return Windows(*(jnp.asarray(x_NL[rows]) for x_NL in text[:3]))


def mean_loss(architecture: ModelConfig, params: Any, windows: Windows) -> Array:
    """Return the mean loss over the positions that count, in nats, with activations in float32."""
    return loss.mean_loss(architecture, params, windows.inputs_NL, windows.targets_NL, windows.weights_NL)
