"""Interventions on the unembedding W, written for one member: numbers that change its geometry on purpose.

What each does is declared in config/intervention.py. An intervention that no member of a stack has is absent from
`Intervention`, so that the stack's program doesn't contain it. A member without one that others have trains as it would
alone; where members are computed one after another (on a CPU), it skips the decompositions.

Source: methods.md section 6.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from geometry.gauge import centred, gauge_fix
from geometry.probe import METRICS, check_names
from geometry.registry import Measured
from geometry.spectrum import effective_rank
from geometry.svd import matmul, right_singular, singular_values
from olmo_jax import model
from olmo_jax.config import ConfigError, ModelConfig, TrainConfig, require
from olmo_jax.config.intervention import KINDS, PROJECTED, SUBSPACES
from olmo_jax.execution.matmul import widened

# The random subspace and the placebo's direction are the same for all members of all runs.
_FIXED_SEED = 0


class Intervention(NamedTuple):
    """The numbers of one member, scalars named as in InterventionConfig; None for what no member of the stack has.

    backward_subspace: index into SUBSPACES, present with backward_rank or update_rank.
    """

    head_rank: Any = None
    backward_rank: Any = None
    update_rank: Any = None
    backward_subspace: Any = None
    rank_penalty: Any = None
    penalty_weight: Any = None
    polar_decay: Any = None
    head_decay: Any = None
    head_rate: Any = None
    center_head: Any = None
    mean_row: Any = None


class Projections(NamedTuple):
    """Symmetric matrices `[D, D]`; None for those that no member of the stack has.

    backward_DD: what the gradient of the final states is multiplied by. update_DD: what W's update is multiplied by.
    """

    backward_DD: Array | None
    update_DD: Array | None


_DTYPES = {"head_rank": np.int32, "backward_rank": np.int32, "update_rank": np.int32, "center_head": np.bool_}


def kinds(configs: Iterable[TrainConfig]) -> tuple[str, ...]:
    """Return the names of the interventions that at least one of the runs has."""
    active = {name for config in configs for name in config.intervention.active}
    return tuple(name for name in KINDS if name in active)


def numbers_of(config: TrainConfig, present: Sequence[str]) -> Intervention:
    """Return the numbers of a run for the interventions that its stack has."""
    arm = config.intervention
    numbers = {name: _DTYPES.get(name, np.float32)(getattr(arm, name)) for name in present}
    if any(name in present for name in PROJECTED):
        numbers["backward_subspace"] = np.int32(SUBSPACES.index(arm.backward_subspace))
    return Intervention(**numbers)


def first_params(params: Any, head_rank: Array | int) -> Any:
    """Return a member's initial parameters.

    In a factored head, the rows of P from `head_rank` on are 0; a `head_rank` of 0 sets none.
    """
    if "unembedding_factor" not in params:
        return params
    factor_DD = params["unembedding_factor"]
    kept_D1 = (jnp.arange(len(factor_DD)) < jnp.where(head_rank > 0, head_rank, len(factor_DD)))[:, None]
    return params | {"unembedding_factor": jnp.where(kept_D1, factor_DD, 0.0)}


def projections(arm: Intervention, params: Any) -> Projections:
    """Return the projections onto the subspaces that backward_rank and update_rank keep, for the current W."""
    ranks = [rank for name in PROJECTED if (rank := getattr(arm, name)) is not None]
    if not ranks:
        return Projections(None, None)
    w_VD = model.unembedding(params)
    width = w_VD.shape[1]
    random_DD = np.linalg.qr(np.random.default_rng(_FIXED_SEED).normal(size=(width, width)))[0].astype(w_VD.dtype)
    restricted = functools.reduce(jnp.logical_or, [_bounds(rank, width) for rank in ranks])
    leading = restricted & (arm.backward_subspace == SUBSPACES.index("leading"))
    basis_DD = jax.lax.cond(leading, lambda: right_singular(w_VD)[1], lambda: jnp.asarray(random_DD))
    return Projections(_projection(basis_DD, arm.backward_rank), _projection(basis_DD, arm.update_rank))


def _bounds(rank: Array, width: int) -> Array:
    return (rank > 0) & (rank < width)


def _projection(basis_DD: Array, rank: Array | None) -> Array | None:
    """Return the projection onto the first `rank` columns of a basis; the identity if `rank` is 0 or all of them."""
    if rank is None:
        return None
    width = len(basis_DD)
    kept_DD = basis_DD * (jnp.arange(width) < rank)[None]
    whole_DD = jnp.eye(width, dtype=basis_DD.dtype)
    return jnp.where(_bounds(rank, width), matmul(kept_DD, basis_DD.T), whole_DD)


@jax.custom_vjp
def projected_backward(x_BLD: Array, projection_DD: Array) -> Array:
    """Return the states unchanged; their gradient is multiplied by the symmetric `projection_DD`."""
    return x_BLD


def _forward(x_BLD: Array, projection_DD: Array) -> tuple[Array, Array]:
    return x_BLD, projection_DD


def _backward(projection_DD: Array, dx_BLD: Array) -> tuple[Array, Array]:
    return matmul(dx_BLD, projection_DD.astype(dx_BLD.dtype)), jnp.zeros_like(projection_DD)


projected_backward.defvjp(_forward, _backward)


def penalties(arm: Intervention, config: TrainConfig, w_VD: Array, x_BLD: Array) -> list[Array]:
    """Return the terms to add to the objective: rank_penalty x log R of the gauge-fixed W, and penalty_weight x metric.

    The metric is penalty_metric; of the final states it is taken over all positions of the batch.
    """
    w_VD = w_VD[: config.model.vocab_size]
    terms = []
    if arm.rank_penalty is not None:

        def log_rank() -> Array:
            return jnp.log(effective_rank(singular_values(gauge_fix(w_VD, config.model.norm), "refined_gram")))

        terms.append(_weighed(arm.rank_penalty, log_rank))
    if arm.penalty_weight is not None:
        terms.append(_weighed(arm.penalty_weight, lambda: penalised(config, w_VD, x_BLD)))
    return terms


PENALISED = ("unembedding", "unembedding_gauge_fixed", "final_states")


def check_penalty(config: TrainConfig) -> None:
    """Raise ConfigError unless `intervention.penalty_metric` names a target and a metric of it that has a gradient."""
    key, value = "config.train.intervention.penalty_metric", config.intervention.penalty_metric
    if not value:
        return
    target, _, name = value.partition("/")
    require(target in PENALISED, key, value, f"needs target/metric with one of the targets {', '.join(PENALISED)}")
    try:
        check_names([name])
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    if not has_gradient(name):
        known = ", ".join(other for other in sorted(METRICS) if has_gradient(other))
        raise ConfigError(f"{key} = {value!r}: has no gradient; choose a metric that has one: {known}")


@functools.cache
def has_gradient(name: str) -> bool:
    """Return whether the gradient of a metric, evaluated at one random matrix, is finite and not zero."""
    x_ND = jnp.asarray(np.random.default_rng(_FIXED_SEED).normal(size=(96, 6)), jnp.float32)
    try:
        gradient_ND = jax.grad(lambda x_ND: METRICS[name](Measured(x_ND, n_neighbors=16)))(x_ND)
    except (TypeError, ValueError):  # a count, or a loop without a reverse-mode gradient
        return False
    return bool(jnp.isfinite(gradient_ND).all() & (gradient_ND != 0).any())


def penalised(config: TrainConfig, w_VD: Array, x_BLD: Array) -> Array:
    """Return the value of `intervention.penalty_metric` for a W without padding, and final states."""
    target, _, name = config.intervention.penalty_metric.partition("/")
    if target == "unembedding":
        x_ND = w_VD
    elif target == "unembedding_gauge_fixed":
        x_ND = gauge_fix(w_VD, config.model.norm)
    else:
        x_ND = x_BLD.reshape(-1, x_BLD.shape[-1])
    return METRICS[name](Measured(widened(x_ND), config.probe.neighbors))


def _weighed(weight: Array, value: Callable[[], Array]) -> Array:
    """Return weight x value, which isn't computed for a weight of 0 if members are computed one after another."""
    dtype = jax.eval_shape(value).dtype
    return jax.lax.cond(weight == 0, lambda: jnp.zeros((), dtype), lambda: (weight * value()).astype(dtype))


def masked_gradients(arm: Intervention, config: ModelConfig, gradients: Any) -> Any:
    """Return the gradients without those of the rows of P that a member doesn't train."""
    if not config.factored_head:
        return gradients
    rank = 0 if arm.head_rank is None else arm.head_rank
    trained_D1 = (jnp.arange(config.d_model) < rank)[:, None]
    return gradients | {"unembedding_factor": jnp.where(trained_D1, gradients["unembedding_factor"], 0.0)}


def head_updates(
    arm: Intervention,
    projection_DD: Array | None,
    weight_decay: Array | float,
    rate: Array,
    params: Any,
    updates: Any,
) -> Any:
    """Return the updates, with the unembedding's projected and given its own weight decay and learning rate.

    Weight decay isn't projected.

    Args:
      projection_DD: that of update_rank. weight_decay: the one that the unembedding's update contains.
      rate: learning rate of the step.
    """
    if projection_DD is None and arm.head_decay is None and arm.head_rate is None:
        return updates
    update_VD, w_VD = updates["unembedding"], params["unembedding"]
    if projection_DD is not None:
        decayed_VD = rate * weight_decay * w_VD
        projected_VD = matmul(update_VD + decayed_VD, projection_DD) - decayed_VD
        update_VD = jnp.where(_bounds(arm.update_rank, w_VD.shape[1]), projected_VD.astype(w_VD.dtype), update_VD)
    if arm.head_decay is not None:
        head_decay = jnp.where(arm.head_decay < 0, weight_decay, arm.head_decay)
        update_VD += rate * (weight_decay - head_decay) * w_VD
    if arm.head_rate is not None:
        update_VD *= arm.head_rate
    return updates | {"unembedding": update_VD}


def after_step(arm: Intervention, config: ModelConfig, rate: Array, before: Any, after: Any) -> Any:
    """Return the parameters after a step's update, with polar_decay, center_head and mean_row applied to them."""
    if arm.polar_decay is None and arm.center_head is None and arm.mean_row is None:
        return after
    w_VD = after["unembedding"]
    if arm.polar_decay is not None:
        shrink = rate * arm.polar_decay
        w_VD = jax.lax.cond(
            arm.polar_decay > 0,
            lambda: (w_VD - shrink * polar_factor(before["unembedding"])).astype(w_VD.dtype),
            lambda: w_VD,
        )
    if arm.center_head is not None or arm.mean_row is not None:
        w_VD = _with_mean_row(arm, config, w_VD)
    return after | {"unembedding": w_VD}


def _with_mean_row(arm: Intervention, config: ModelConfig, w_VD: Array) -> Array:
    """Return W with its mean row (over the vocabulary, without padding) removed, or replaced by the placebo's."""
    real_VD = w_VD[: config.vocab_size]
    centred_VD = centred(real_VD)
    moved_D = centred_VD[0] - real_VD[0]  # padding rows move too, since their logits are part of the softmax
    if arm.mean_row is not None:
        length = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(centred_VD), axis=1)))
        moved_D += arm.mean_row * length * _direction(config.d_model, w_VD.dtype)
    wanted = False if arm.center_head is None else arm.center_head
    wanted = wanted | (False if arm.mean_row is None else arm.mean_row > 0)
    return jnp.where(wanted, w_VD + moved_D[None], w_VD)


def _direction(width: int, dtype: Any) -> Array:
    """Return the placebo's unit vector.

    Its components sum to 0: LayerNorm's states do too, so a part along (1, ..., 1) would have no effect.
    """
    draw_D = np.random.default_rng(_FIXED_SEED).normal(size=width)
    draw_D -= draw_D.mean()
    return jnp.asarray(draw_D / np.linalg.norm(draw_D), dtype)


def polar_factor(w_VD: Array) -> Array:
    """Return U V^T of W = U S V^T, `[V, D]`; directions whose singular value is 0 are left out."""
    s_D, v_DD = right_singular(w_VD)
    inverse_D = jnp.where(s_D > 0, 1.0 / jnp.where(s_D > 0, s_D, 1.0), 0.0)
    return matmul(w_VD, matmul(v_DD * inverse_D[None], v_DD.T))
