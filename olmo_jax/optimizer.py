"""AdamW with traced hyper-parameters: members that differ only in these run the same compiled program."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax import Array

from olmo_jax.config import SCHEDULES, TrainConfig
from olmo_jax.config.field import Role, declared, settings
from olmo_jax.intervention import Intervention, numbers_of

with epy.lazy_imports():  # saves commands that train nothing a fifth of a second
    import optax


class Hyper(NamedTuple):
    """The hyper-parameters of one member, all scalars; a cohort holds them stacked, `[M]`. Named as in OptimizerConfig.

    schedule: index into SCHEDULES. dropout_seed: the run's data_seed. intervention: those that the stack has.
    """

    learning_rate: Any
    weight_decay: Any
    beta1: Any
    beta2: Any
    eps: Any
    clip_norm: Any
    warmup_from: Any
    final_fraction: Any
    schedule: Any
    warmup_steps: Any
    total_steps: Any
    dropout_seed: Any
    intervention: Intervention = Intervention()


def hyper(config: TrainConfig, present: Sequence[str] = ()) -> Hyper:
    """Return the traced hyper-parameters of a run: float32, int32 for steps, uint32 for the seed.

    `present` names the interventions that its stack has (see intervention.kinds).

    They are the settings of OptimizerConfig that are declared as traced, with fractions of the run converted to steps
    and names to indices.
    """
    numbers = {key: value for key, field, value in settings(config.optimizer) if declared(field).role is Role.TRACED}
    del numbers["warmup_fraction"]
    return Hyper(
        **{key: np.float32(value) for key, value in numbers.items() if key != "schedule"},
        schedule=np.int32(SCHEDULES.index(config.optimizer.schedule)),
        warmup_steps=np.int32(config.warmup_steps),
        total_steps=np.int32(config.total_steps),
        dropout_seed=np.uint32(config.data_seed),
        intervention=numbers_of(config, present),
    )


def learning_rate(h: Hyper, step: Array | np.ndarray) -> Array:
    """Return the learning rate of update `step`, counted from 1 as in OLMo, so that the last one gets the final rate.

    Linear from warmup_from * peak to the peak at warmup_steps, then down to final_fraction * peak at total_steps:
    eta_min + (peak - eta_min)(1 + cos(pi (t - T_w) / (T - T_w))) / 2 for "cosine" (methods.md section 1, OLMo's
    schedule), a straight line for "linear"; constant afterwards.
    """
    t = jnp.asarray(step, jnp.float32)
    rise = jnp.clip(t / jnp.maximum(h.warmup_steps, 1), 0.0, 1.0)
    warm = h.learning_rate * (h.warmup_from + (1.0 - h.warmup_from) * rise)
    done = jnp.clip((t - h.warmup_steps) / jnp.maximum(h.total_steps - h.warmup_steps, 1), 0.0, 1.0)
    left = jnp.where(h.schedule == SCHEDULES.index("cosine"), 0.5 * (1.0 + jnp.cos(jnp.pi * done)), 1.0 - done)
    lowest = h.final_fraction * h.learning_rate
    return jnp.where(t < h.warmup_steps, warm, lowest + (h.learning_rate - lowest) * left)


# Parameters with one row per token or position.
_EMBEDDINGS = ("embedding", "unembedding", "positions")


def adamw(h: Hyper, rate: Array | float, decay_embeddings: bool, decay_norms: bool) -> "optax.GradientTransformation":
    """Return clipping, Adam, decoupled weight decay and the rate as one transformation of a member's gradients."""

    def decayed(params: Any) -> Any:
        def one(path: Any, x: Array) -> bool:
            if path[0].key == "unembedding_factor":  # so that W, the product, decays as a single matrix would
                return False
            return decay_embeddings if path[0].key in _EMBEDDINGS else decay_norms or x.ndim > 1

        return jax.tree_util.tree_map_with_path(one, params)

    return optax.chain(
        optax.clip_by_global_norm(jnp.where(h.clip_norm > 0, h.clip_norm, jnp.inf)),
        optax.scale_by_adam(b1=h.beta1, b2=h.beta2, eps=h.eps),
        optax.add_decayed_weights(h.weight_decay, mask=decayed),
        optax.scale(-rate),
    )


def init(params: Any) -> Any:
    """Return the state of `adamw` before its first update: count, first and second moments, equal for all members."""
    nothing = Hyper._make([*(0.0 for _ in Hyper._fields[:-1]), Intervention()])
    return adamw(nothing, 0.0, True, True).init(params)


def cumulative_weight_decay(config: TrainConfig, step: int) -> float:
    """Return c, the sum of learning rate x weight decay up to `step`.

    A weight with no gradient shrinks by a factor of exp(-c).
    """
    h, total = hyper(config), 0.0
    for first in range(1, step + 1, _STEPS_AT_ONCE):  # in blocks of one shape, so that all budgets share one program
        rates = np.asarray(_rates(h, first + np.arange(_STEPS_AT_ONCE)), np.float64)
        total += float(np.sum(rates[: step + 1 - first]))
    return total * config.optimizer.weight_decay


_STEPS_AT_ONCE = 2**16
_rates = jax.jit(learning_rate)
