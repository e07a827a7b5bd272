"""AdamW and Muon with traced hyper-parameters: members that differ only in these run the same compiled program."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax import Array

from olmo_jax import intervention
from olmo_jax.config import DECAY_SHAPES, SCHEDULES, OptimizerConfig, TrainConfig
from olmo_jax.config.field import Role, declared, settings
from olmo_jax.intervention import Intervention

with epy.lazy_imports():  # saves commands that train nothing a fifth of a second
    import optax


class Hyper(NamedTuple):
    """The hyper-parameters of one member, all scalars; a cohort holds them stacked, `[M]`. Named as in OptimizerConfig.

    schedule, decay_shape: indices into SCHEDULES and DECAY_SHAPES. dropout_seed: the run's data_seed. sam_rho: None if
    no member of the stack has it. intervention: those that the stack has.
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
    decay_shape: Any
    embedding_rate: Any
    block_rate: Any
    muon_beta: Any
    warmup_steps: Any
    decay_steps: Any
    total_steps: Any
    dropout_seed: Any
    sam_rho: Any = None
    intervention: Intervention = Intervention()


# Settings given as words, and what they are indices into.
_WORDS = {"schedule": SCHEDULES, "decay_shape": DECAY_SHAPES}
# Settings that a stack's program contains only if one of its members has them.
_OPTIONAL = ("sam_rho",)


def options(configs: Iterable[TrainConfig]) -> tuple[str, ...]:
    """Return the names of the optional settings and the interventions that at least one of the runs has."""
    configs = list(configs)
    given = tuple(name for name in _OPTIONAL if any(getattr(config.optimizer, name) for config in configs))
    return given + intervention.kinds(configs)


def hyper(config: TrainConfig, present: Sequence[str] = ()) -> Hyper:
    """Return the traced hyper-parameters of a run: float32, int32 for steps and indices, uint32 for the seed.

    They are the settings of OptimizerConfig that are declared as traced, with fractions of the run converted to steps
    and words to indices.

    Args:
      present: the optional settings and interventions that the run's stack has (see options).
    """
    numbers = {key: value for key, field, value in settings(config.optimizer) if declared(field).role is Role.TRACED}
    for key in ("warmup_fraction", "decay_fraction", *(key for key in _OPTIONAL if key not in present)):
        del numbers[key]
    return Hyper(
        **{
            key: np.int32(_WORDS[key].index(value)) if key in _WORDS else np.float32(value)
            for key, value in numbers.items()
        },
        warmup_steps=np.int32(config.warmup_steps),
        decay_steps=np.int32(config.decay_steps),
        total_steps=np.int32(config.total_steps),
        dropout_seed=np.uint32(config.data_seed),
        intervention=intervention.numbers_of(config, [name for name in present if name not in _OPTIONAL]),
    )


def learning_rate(h: Hyper, step: Array | np.ndarray) -> Array:
    """Return the learning rate of update `step`, counted from 1 as in OLMo, so that the last one gets the final rate.

    Linear from warmup_from * peak to the peak at warmup_steps, then down to final_fraction * peak at total_steps:
    eta_min + (peak - eta_min) f(x), with x the share of the decay that is done and f(x) = (1 + cos(pi x)) / 2 for
    "cosine" (methods.md section 1, OLMo's schedule), 1 - x for "linear". "wsd" stays at the peak and decays over the
    last decay_steps, with f(x) = 1 - x or 1 - sqrt(x) (Haegele et al., arXiv 2405.18392). Constant afterwards.
    """
    t = jnp.asarray(step, jnp.float32)
    rise = jnp.clip(t / jnp.maximum(h.warmup_steps, 1), 0.0, 1.0)
    warm = h.learning_rate * (h.warmup_from + (1.0 - h.warmup_from) * rise)
    stable = h.schedule == SCHEDULES.index("wsd")
    start = jnp.where(stable, jnp.maximum(h.warmup_steps, h.total_steps - h.decay_steps), h.warmup_steps)
    done = jnp.clip((t - start) / jnp.maximum(h.total_steps - start, 1), 0.0, 1.0)
    root = stable & (h.decay_shape == DECAY_SHAPES.index("sqrt"))
    left = 1.0 - jnp.where(root, jnp.sqrt(done), done)
    left = jnp.where(h.schedule == SCHEDULES.index("cosine"), 0.5 * (1.0 + jnp.cos(jnp.pi * done)), left)
    lowest = h.final_fraction * h.learning_rate
    return jnp.where(t < h.warmup_steps, warm, lowest + (h.learning_rate - lowest) * left)


# Parameters with one row per token or position.
_EMBEDDINGS = ("embedding", "unembedding", "positions")


def update_rule(h: Hyper, rate: Array | float, config: OptimizerConfig) -> "optax.GradientTransformation":
    """Return clipping, Adam or Muon, decoupled weight decay and the rate as one transformation of a member's gradients.

    Args:
      h: the member's numbers. rate: the learning rate of the step. config: the static settings.
    """

    def decayed(path: Any, x: Array) -> bool:
        if path[0].key == "unembedding_factor":  # so that W, the product, decays as a single matrix would
            return False
        return config.decay_embeddings if path[0].key in _EMBEDDINGS else config.decay_norms or x.ndim > 1

    def times_rate(path: Any, update: Array) -> Array:
        if path[0].key in ("embedding", "positions"):
            return update * (-rate * h.embedding_rate)
        return update * (-rate if path[0].key in ("unembedding", "unembedding_factor") else -rate * h.block_rate)

    adam = optax.scale_by_adam(b1=h.beta1, b2=h.beta2, eps=h.eps)
    return optax.chain(
        optax.clip_by_global_norm(jnp.where(h.clip_norm > 0, h.clip_norm, jnp.inf)),
        adam if config.name == "adamw" else optax.partition({"muon": _muon(h), "adam": adam}, _muon_or_adam),
        optax.add_decayed_weights(h.weight_decay, mask=lambda params: jax.tree.map_with_path(decayed, params)),
        optax.stateless(lambda updates, params: jax.tree.map_with_path(times_rate, updates)),
    )


# RMS of an update of AdamW, which Muon's are scaled to (Liu et al., arXiv 2502.16982, section 2.2).
_ADAM_RMS = 0.2


def _muon(h: Hyper) -> "optax.GradientTransformation":
    """Return Muon (Nesterov momentum, orthogonalised by five Newton-Schulz steps) with updates of AdamW's size."""

    def as_large_as_adams(updates: Any, params: Any) -> Any:
        # An orthogonal [I, O] matrix has an RMS of 1 / sqrt(max(I, O)).
        return jax.tree.map(lambda x: x * (_ADAM_RMS * np.sqrt(max(x.shape)).astype(x.dtype)), updates)

    orthogonal = optax.contrib.scale_by_muon(
        beta=h.muon_beta,
        weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), updates),
    )
    return optax.chain(orthogonal, optax.stateless(as_large_as_adams))


def _muon_or_adam(params: Any) -> Any:
    """Return the rule of each parameter: Muon for the matrices of the blocks, Adam for all others."""

    def one(path: Any, x: Array) -> str:
        return "muon" if path[0].key.startswith("blocks_") and x.ndim == 2 else "adam"

    return jax.tree.map_with_path(one, params)


def init(params: Any, config: OptimizerConfig) -> Any:
    """Return the state of `update_rule` before its first update (counts and moments), equal for all members."""
    nothing = Hyper._make([*(0.0 for _ in Hyper._fields[:-2]), None, Intervention()])
    return update_rule(nothing, 0.0, config).init(params)


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
