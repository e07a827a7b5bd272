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
_EXHAUSTED = 1e-6
_BISECTIONS = 4  # of an interval from a step to twice it: to a sixteenth


@functools.partial(jax.jit, static_argnames=("loss", "draws"))
def hessian_trace(loss: Loss, params: Any, key: Array, draws: int) -> tuple[Array, Array]:
    """Return an estimate of the trace of the loss's Hessian, and its standard error.

    It is Hutchinson's: the mean of z^T H z over vectors z of independent signs. Its standard error is 0 for a diagonal
    Hessian, and missing (NaN) with one draw.

    Args:
      loss: a function of the parameters. params: where the Hessian is taken. key: of the draws.
      draws: number of vectors, each of which costs one Hessian-vector product.

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
        return _dot(z, hessian_vector(loss, params, z))

    values = jax.lax.map(draw, jax.random.split(key, draws))
    spread = jnp.std(values, ddof=1) if draws > 1 else jnp.full((), jnp.nan)
    return jnp.mean(values), spread / math.sqrt(draws)


def hessian_vector(loss: Loss, params: Any, vector: Any) -> Any:
    """Return the product of the loss's Hessian with a vector, a tree like `params`.

    Reverse over reverse, since the blocks of our models have rules of their own for reverse mode only; it costs about
    as much as two gradients.
    """
    return jax.grad(lambda w: _dot(jax.grad(loss)(w), vector))(params)


@functools.partial(jax.jit, static_argnames=("loss", "steps"))
def top_eigenvalue(loss: Loss, params: Any, key: Array, steps: int = 20) -> Array:
    """Return the largest eigenvalue of the loss's Hessian, by Lanczos from a random vector.

    It is the largest eigenvalue of the tridiagonal matrix, which approaches that of the Hessian from below. Vectors
    aren't orthogonalised again and none are kept, so that memory doesn't grow with the steps. That only makes copies of
    eigenvalues that have converged, which don't move the largest one.

    Args:
      loss, params: as for `hessian_trace`. key: of the first vector.
      steps: Hessian-vector products, at least 2; more than there are parameters add nothing.

    Raises:
      ValueError: too few steps.

    Source: Lanczos 1950; used for training at the edge of stability by Cohen et al. 2021.
    """
    if steps < 2:
        raise ValueError(f"steps = {steps}: needs 2 or more")
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    first = jax.tree.unflatten(
        structure, [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )
    zero = jax.tree.map(jnp.zeros_like, params)

    def step(state: tuple[Any, Any, Array], _: None) -> tuple[tuple[Any, Any, Array], tuple[Array, Array]]:
        before, current, beta = state
        product = hessian_vector(loss, params, current)
        alpha = _dot(current, product)
        rest = jax.tree.map(lambda p, c, b: p - alpha * c - beta * b, product, current, before)
        norm = jnp.sqrt(_dot(rest, rest))
        # Where the Krylov space is exhausted, the rest of the matrix is zero and separate from what came before.
        exhausted = norm <= _EXHAUSTED * (jnp.abs(alpha) + beta)
        following = jax.tree.map(lambda r: jnp.where(exhausted, 0.0, r / jnp.where(exhausted, 1.0, norm)), rest)
        return (current, following, jnp.where(exhausted, 0.0, norm)), (alpha, jnp.where(exhausted, 0.0, norm))

    start = jax.tree.map(lambda x: x / jnp.sqrt(_dot(first, first)), first)
    _, (alpha_K, beta_K) = jax.lax.scan(step, (zero, start, jnp.zeros(())), length=steps)
    # Padding with the first alpha, which lies within the spectrum, never exceeds the largest eigenvalue.
    alpha_K = jnp.where(jnp.cumsum(jnp.r_[0.0, beta_K[:-1] == 0]) > 0, alpha_K[0], alpha_K)
    tridiagonal_KK = jnp.diag(alpha_K) + jnp.diag(beta_K[:-1], 1) + jnp.diag(beta_K[:-1], -1)
    return jnp.linalg.eigvalsh(tridiagonal_KK)[-1]


def _dot(a: Any, b: Any) -> Array:
    return sum(
        (jnp.vdot(x, y).astype(jnp.float32) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)),
        jnp.zeros(()),
    )


@functools.partial(jax.jit, static_argnames="loss")
def critical_sharpness(loss: Loss, params: Any, direction: Any, start: float | Array = 1.0) -> Array:
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
