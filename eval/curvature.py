"""Measure the curvature of a loss around a model's parameters, in few passes."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

# A function of parameters, any tree of arrays, that returns a scalar.
Loss = Callable[[Any], Array]

_DOUBLINGS = 60
_BISECTIONS = 4  # of an interval from a step to twice it: to a sixteenth


@functools.partial(jax.jit, static_argnames=("loss", "draws"))
def hessian_trace(loss: Loss, params: Any, key: Array, draws: int) -> tuple[Array, Array]:
    """Return an estimate of the trace of the loss's Hessian, and its standard error.

    It is Hutchinson's: the mean of z^T H z over vectors z of independent signs. Its standard error is 0 for a diagonal
    Hessian, and missing (NaN) with one draw.

    Args:
      loss: a function of the parameters. params: where the Hessian is taken. key: of the draws.
      draws: number of vectors, each of which costs one Hessian-vector product, forward over reverse.

    Raises:
      ValueError: no draw.

    Source: Hutchinson 1990 (methods.md, section 8).
    """
    if draws < 1:
        raise ValueError(f"draws = {draws}: needs 1 or more")
    leaves, structure = jax.tree.flatten(params)

    def draw(key: Array) -> Array:
        keys = jax.random.split(key, len(leaves))
        signs = [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
        z = jax.tree.unflatten(structure, signs)
        _, product = jax.jvp(jax.grad(loss), (params,), (z,))
        return sum((jnp.vdot(a, b) for a, b in zip(signs, jax.tree.leaves(product), strict=True)), jnp.zeros(()))

    values = jax.lax.map(draw, jax.random.split(key, draws))
    spread = jnp.std(values, ddof=1) if draws > 1 else jnp.full((), jnp.nan)
    return jnp.mean(values), spread / math.sqrt(draws)


@functools.partial(jax.jit, static_argnames="loss")
def critical_sharpness(loss: Loss, params: Any, direction: Any, start: float = 1.0) -> Array:
    """Return 2 / eta, with eta the step along a direction beyond which the loss is higher than where it started.

    For a quadratic loss and its gradient, this is the curvature along the gradient. The step is doubled or halved from
    `start` until it brackets the change, and then bisected to a sixteenth; the middle is returned, so that eta is
    accurate to a thirty-second. With a good start, such as the last step that was found, it takes six passes.

    Args:
      loss: a function of the parameters. params: where it starts.
      direction: a tree like `params`; steps are params - eta * direction, so that a gradient descends.
      start: the first step that is tried.

    Returns:
      A scalar; 0 if the loss stays lower for steps of up to 2^60 times `start`, and NaN if it isn't lower for any step
      down to 2^-60 times it, as along a direction of ascent.

    Source: arXiv 2601.16979 (methods.md, section 8).
    """
    here = loss(params)

    def is_above(eta: Array) -> Array:
        moved = jax.tree.map(lambda w, u: w - eta.astype(w.dtype) * u, params, direction)
        return ~(loss(moved) < here)  # a loss that isn't finite is above

    first = jnp.asarray(start, jnp.float32)
    factor = jnp.where(is_above(first), 0.5, 2.0)

    def is_open(state: tuple[Array, Array, Array]) -> Array:
        eta, above, tried = state
        return (above == (factor < 1)) & (tried < _DOUBLINGS)

    def further(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        eta, _, tried = state
        return eta * factor, is_above(eta * factor), tried + 1

    eta, above, _ = jax.lax.while_loop(is_open, further, (first, factor < 1, jnp.int32(0)))
    low = jnp.where(above, eta / 2, eta)  # the loss is lower here, and higher at twice it

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bounds[0] + bounds[1]) / 2
        above_middle = is_above(middle)
        return jnp.where(above_middle, bounds[0], middle), jnp.where(above_middle, middle, bounds[1])

    bounds = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, 2 * low))
    is_bracketed = above != (factor < 1)
    unbracketed = jnp.where(factor < 1, jnp.nan, 0.0)
    return jnp.where(is_bracketed, 4.0 / (bounds[0] + bounds[1]), unbracketed)
