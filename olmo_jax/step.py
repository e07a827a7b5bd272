"""One update of one member of a cohort: loss, gradient, optimiser, and freezing of a member that diverges.

The code is written for one member; execution/members.py adds the member axis.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epy
from jax import Array
from jax.sharding import Mesh

from olmo_jax import intervention, loss, model, optimizer
from olmo_jax.cohort import Shape
from olmo_jax.config import ModelConfig, OptimizerConfig
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution import sharding
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.intervention import Intervention
from olmo_jax.optimizer import Hyper

with epy.lazy_imports():  # saves commands that train nothing a fifth of a second
    import optax


class State(NamedTuple):
    """A member's state; a cohort holds it stacked.

    `step` counts updates; `diverged_at` is the update that turned non-finite, or -1; `reason` is an index into REASONS.
    `average` is the sum of the parameters after each step with weights (1 - d) d^age, d = checkpoint.ema_decay, and so
    n steps after the start 1 - d^n times too small for a mean; None if none is kept.
    """

    params: Any
    moments: Any
    step: Array
    diverged_at: Array
    reason: Array
    average: Any = None


# Which quantity of a step turned non-finite first.
REASONS = ("", "loss", "gradient", "parameters")


class Metrics(NamedTuple):
    """Metrics of one step, float32 scalars; NaN from the step at which a member is frozen."""

    loss: Array
    grad_norm: Array
    learning_rate: Array


def init_member(params: Any, config: OptimizerConfig, averaged: bool = False) -> State:
    """Return the state of a member before its first step, from its parameters and the static optimiser settings.

    `averaged`: whether a moving average of the parameters is kept.
    """
    average = jax.tree.map(jnp.zeros_like, params) if averaged else None
    moments = optimizer.init(params, config)
    return State(params, moments, jnp.int32(0), jnp.int32(-1), jnp.int32(0), average)


def member_step(
    shape: Shape,
    state: State,
    h: Hyper,
    tokens_BL: Array,
    mesh: Mesh | None = None,
    plan: ExecutionPlan | None = None,
    weights_BL: Array | None = None,
) -> tuple[State, Metrics]:
    """Return one member's state after one update on `[B, L + 1]` tokens, and the metrics of the step.

    A member whose loss, gradient or new parameters turn non-finite is frozen as it was before the step, and the
    step is recorded; a member that has taken all its steps (0 for an inert one) is left as it is.

    Args:
      mesh: needed if parameters are fully sharded over it.
      plan: the execution plan, which changes results only by rounding; None chooses by backend.
      weights_BL: weights of the L predictions; None counts each once, and is required with microbatches.
    """

    plan = execution_plan.forward(shape.model) if plan is None else plan
    # Depends only on seed and step, so that a resumed run has the same dropout as an uninterrupted one.
    dropout_key = jax.random.fold_in(jax.random.key(h.dropout_seed), state.step) if shape.model.dropout else None
    arm = h.intervention
    kept = intervention.projections(arm, state.params)

    def gradients_at(params: Any) -> tuple[Array, Any]:
        batch_gradients = functools.partial(_gradients, shape, plan, mesh, arm, kept.backward_DD, params)
        if plan.microbatches == 1:
            entropy, gradients = batch_gradients(tokens_BL, dropout_key, weights_BL)
        else:
            entropy, gradients = _averaged(batch_gradients, tokens_BL, dropout_key, plan.microbatches)
        return entropy, intervention.masked_gradients(arm, shape.model, gradients)

    entropy, gradients = gradients_at(state.params)
    if h.sam_rho is not None:
        gradients = jax.lax.cond(
            h.sam_rho > 0,
            lambda: gradients_at(_ascended(state.params, gradients, h.sam_rho))[1],
            lambda: gradients,
        )
    rate = optimizer.learning_rate(h, state.step + 1)
    settings = shape.config.optimizer
    rule = optimizer.update_rule(h, rate, settings)
    updates, moments = rule.update(gradients, state.moments, state.params)
    decay = h.weight_decay if settings.decay_embeddings else 0.0
    updates = intervention.head_updates(arm, kept.update_DD, decay, rate, state.params, updates)
    params = optax.apply_updates(state.params, updates)
    params = intervention.after_step(arm, shape.model, rate, state.params, params)

    grad_norm = optax.tree.norm(gradients)
    checked_values = jnp.stack([entropy, grad_norm, optax.tree.norm(params)])  # in the order of REASONS
    finite = jnp.all(jnp.isfinite(checked_values))
    running = (state.diverged_at < 0) & (state.step < h.total_steps)
    updated = running & finite
    new = State(
        params=_select(updated, params, state.params),
        moments=_select(updated, moments, state.moments),
        step=state.step + updated.astype(jnp.int32),
        diverged_at=jnp.where(running & ~finite, state.step + 1, state.diverged_at),
        reason=jnp.where(running & ~finite, 1 + jnp.argmin(jnp.isfinite(checked_values)), state.reason),
        average=state.average,
    )
    if state.average is not None:
        share = 1.0 - shape.config.checkpoint.ema_decay
        moved = jax.tree.map(lambda a, w: a + (share * (w - a)).astype(a.dtype), state.average, params)
        new = new._replace(average=_select(updated, moved, state.average))
    logged = (jnp.where(updated, x, jnp.nan) for x in (entropy, grad_norm, rate))
    return new, Metrics(*logged)


def _ascended(params: Any, gradients: Any, rho: Array) -> Any:
    """Return the parameters plus rho times the unit vector of the gradient (Foret et al., arXiv 2010.01412, eq. 2)."""
    length = optax.tree.norm(gradients)
    scale = jnp.where(length > 0, rho / jnp.where(length > 0, length, 1.0), 0.0)
    return jax.tree.map(lambda w, g: w + (scale * g).astype(w.dtype), params, gradients)


def _gradients(
    shape: Shape,
    plan: ExecutionPlan,
    mesh: Mesh | None,
    arm: Intervention,
    backward_DD: Array | None,
    params: Any,
    tokens_BL: Array,
    dropout_key: Array | None,
    weights_BL: Array | None = None,
) -> tuple[Array, Any]:
    """Return the cross-entropy of a batch and the gradient of its objective."""

    def states(params: Any) -> Array:
        tokens = tokens_BL[:, :-1]
        hidden = model.hidden(shape.model, params, tokens, dropout_key=dropout_key, compute=plan, last=shape.arithmetic)
        return hidden.final_BLD

    def objective(params: Any) -> tuple[Array, Array]:
        if shape.config.mesh.fsdp and mesh is not None:
            final_BLD = sharding.gathering(mesh, states)(params)
            w_VD = model.unembedding(sharding.gathered(mesh, params))
        else:
            final_BLD, w_VD = states(params), model.unembedding(params)
        read_BLD = final_BLD if backward_DD is None else intervention.projected_backward(final_BLD, backward_DD)
        tile = len(w_VD) if plan.whole_vocabulary else None
        targets_BL = tokens_BL[:, 1:]
        if shape.arithmetic:  # only the answer is predicted
            targets_BL = targets_BL[:, -1:]
        result = loss.cross_entropy(
            read_BLD, w_VD, targets_BL, weights_BL, shape.config.optimizer.z_loss, tile=tile, members=plan.members
        )
        penalties = intervention.penalties(arm, shape.config, w_VD, final_BLD)
        return sum(penalties, result.objective), result.cross_entropy

    (_, entropy), gradients = jax.value_and_grad(objective, has_aux=True)(params)
    return entropy, gradients


def _averaged(batch_gradients: Callable[..., Any], tokens_BL: Array, dropout_key: Array | None, parts: int) -> Any:
    """Return the mean of `batch_gradients` over equal parts of a batch, computed one after another.

    Each part takes every parts-th sequence, so that it lies on all devices on which the batch lies.
    """
    tokens_nbL = jnp.moveaxis(tokens_BL.reshape(-1, parts, tokens_BL.shape[1]), 1, 0)

    def add(total: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
        i, tokens_bL = part
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, i)
        return jax.tree.map(jnp.add, total, batch_gradients(tokens_bL, key)), None

    like = jax.eval_shape(batch_gradients, tokens_nbL[0], dropout_key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    total, _ = jax.lax.scan(add, zero, (jnp.arange(parts), tokens_nbL))
    return jax.tree.map(lambda x: x / parts, total)


def _select(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


@functools.cache
def params_structs(config: ModelConfig) -> Any:
    """Return the shapes and dtypes of one model's parameters."""
    return jax.eval_shape(lambda: model.init(config, jax.random.key(0)))


def member_structs(shape: Shape) -> State:
    """Return the shapes and dtypes of one member's state."""
    return _structs(shape.model, shape.config.optimizer, shape.is_averaged)


@functools.cache
def _structs(config: ModelConfig, settings: OptimizerConfig, averaged: bool) -> State:
    return jax.eval_shape(lambda params: init_member(params, settings, averaged), params_structs(config))
