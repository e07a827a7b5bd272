"""Fine-tuning of a stack of models on one domain, each learning rate a member beside the others."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.config import FinetuneConfig
from olmo_jax import cohort, optimizer
from olmo_jax import compute as computing
from olmo_jax.cohort import Shape
from olmo_jax.config import OptimizerConfig, TrainConfig
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.windows import train_windows


class Tuned(NamedTuple):
    """A stack of models after fine-tuning at one rate, and the step at which each turned non-finite, or -1.

    A model that did keeps its last finite parameters, which say nothing of fine-tuning: leave it out.
    """

    params_M: Any
    diverged_at_M: np.ndarray


def finetune(config: FinetuneConfig, shape: Shape, params_M: Any, index: TokenIndex) -> list[Tuned]:
    """Continues every model of a stack at every learning rate, as one cohort of models x rates.

    Args:
      shape: of the cohort that the models come from. params_M: their parameters, stacked.
      index: the prepared data; its training split of `config.domain` is read.

    Returns:
      What came out, for each learning rate in turn.
    """
    tuning = dataclasses.replace(shape, batch_size=config.batch_size, train_domains=(config.domain,))
    members = len(jax.tree.leaves(params_M)[0])
    rates = config.learning_rates
    hyper = jax.tree.map(
        lambda *xs: jnp.repeat(jnp.stack(xs), members), *(optimizer.hyper(_run(config, tuning, rate)) for rate in rates)
    )
    start = jax.tree.map(lambda x: jnp.concatenate([x] * len(rates)), params_M)
    state = jax.jit(jax.vmap(cohort.init_member))(start)
    # What else the training was told is of its machine and batch.
    compute = computing.forward(tuning.model)._replace(remat=shape.compute.remat, members=members * len(rates))
    step = jax.jit(
        lambda state, hyper, tokens_BL: cohort.over_members(
            lambda s, h: cohort.member_step(tuning, s, h, tokens_BL, compute=compute), tuning.mapping
        )(state, hyper),
        donate_argnums=0,
    )
    windows = train_windows(index, tuning.train_domains, tuning.sequence_length, tuning.batch_size, config.data_seed)
    for i in range(int(np.max(np.asarray(hyper.total_steps)))):
        state, _ = step(state, hyper, windows[i])
    tuned = Tuned(state.params, np.asarray(jax.device_get(state.diverged_at)))
    return [jax.tree.map(lambda x, r=r: x[r * members : (r + 1) * members], tuned) for r in range(len(rates))]


def _run(config: FinetuneConfig, shape: Shape, rate: float) -> TrainConfig:
    """The run that one learning rate of the fine-tuning amounts to."""
    adamw = OptimizerConfig(
        learning_rate=rate,
        weight_decay=config.weight_decay,
        warmup_fraction=config.warmup_fraction,
        final_fraction=0.0,
        schedule="linear",
    )
    base = TrainConfig(tokens=max(config.tokens, shape.tokens_per_step), data_seed=config.data_seed, optimizer=adamw)
    data = dataclasses.replace(base.data, batch_size=shape.batch_size, sequence_length=shape.sequence_length)
    return dataclasses.replace(base, data=data)
