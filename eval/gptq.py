"""GPTQ: weights rounded one input after the other, each making up for the errors of those before it.

Source: Frantar, Ashkboos, Hoefler & Alistarh 2023, "GPTQ: accurate post-training quantization for generative
pre-trained transformers", Algorithm 1; where the paper leaves a choice, the authors' code.
"""

import functools
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jax import Array
from jax.typing import ArrayLike

from eval.quantize import Grid, check_bits, check_scales, fit_grid

# Inputs whose errors are spread at once over the inputs after them.
BLOCK = 128


def gptq(
    w_IO: ArrayLike,
    hessian_II: ArrayLike,
    bits: int | Array,
    granularity: str = "channel",
    group_size: int | None = None,
    symmetric: bool = True,
    grid: str = "max",
    act_order: bool = False,
    damping: float = 0.01,
) -> Array:
    """Rounds the weights so that the layer's outputs on calibration inputs, not the weights, change little.

    With W the weights and Q the result, the error is tr((W - Q)^T H (W - Q)). Inputs are taken in order; each is
    rounded to the grid of `eval.quantize.round_to_nearest`, and what the rounding changed is made up for by the
    weights of the inputs to come: w_j -= (w_i - q_i) U_ij / U_ii for j > i, U the upper Cholesky factor of H^-1.

    A dead input, whose diagonal entry of H is 0, gets 1 there and the weight 0. Then `damping` times the mean of the
    diagonal is added to it. If H isn't positive definite even so, the damping is raised: to ten times as much but at
    least .01, again and again, as long as that is no more than 1.

    The scale of a column or of the matrix comes from the weights as they are given, dead inputs included. That of a
    group comes from the weights as they stand when its first input is reached, with the errors of all before spread.

    A NaN or an infinity in `hessian_II` makes NaN of the whole result; one in `w_IO`, of every weight that shares its
    scale and of those taken after it in its column.

    Args:
      w_IO: one matrix [inputs, outputs].
      hessian_II: 2 X^T X for calibration inputs X, or any positive multiple of it; taken to be symmetric.
      bits, granularity, group_size, symmetric, grid: as in `round_to_nearest`.
      act_order: take inputs by descending diagonal of H, where a dead one counts as 1 and the first of equals goes
        first. Groups are then formed in that order; the result is in the order of `w_IO` all the same.
      damping: a number, 0 or more.

    Returns:
      The rounded weights in the type of `w_IO` (whole numbers: float32), computed in at least float32. Where
      nothing is traced, one warning says so if the damping had to be raised.

    Raises:
      ValueError: an argument outside what is said above; or H is finite and no damping makes it positive definite.
        Under a transformation that isn't known: all weights are NaN instead, and `gptq_with_damping` tells the damping.

    One compiled program for each shape and each choice of the arguments after `bits`, `damping` excepted.
    """
    rounded_IO, used, definite = _gptq(
        w_IO, hessian_II, damping, bits, granularity, group_size, symmetric, grid, act_order
    )
    if isinstance(used, jax.core.Tracer):
        return rounded_IO
    shape = jnp.shape(hessian_II)
    if not definite and jnp.all(jnp.isfinite(jnp.asarray(hessian_II))):
        raise ValueError(
            f"hessian {shape} isn't positive definite even with damping {float(used):.3g} (damping = {damping:g} was "
            "asked for); raise damping or calibrate on more tokens"
        )
    if definite and used > jnp.asarray(damping, used.dtype):
        warnings.warn(
            f"hessian {shape} isn't positive definite with damping = {damping:g}: {float(used):.3g} was used; "
            "calibrate on more tokens to do with less",
            stacklevel=2,
        )
    return rounded_IO


def gptq_with_damping(
    w_IO: ArrayLike,
    hessian_II: ArrayLike,
    bits: int | Array,
    granularity: str = "channel",
    group_size: int | None = None,
    symmetric: bool = True,
    grid: str = "max",
    act_order: bool = False,
    damping: float = 0.01,
) -> tuple[Array, Array]:
    """As `gptq`, for use under jit and vmap: never warns, and of the Hessian's values refuses none.

    Returns:
      The rounded weights [I, O], and the damping that was used: NaN, like all the weights, where none sufficed.
    """
    rounded_IO, used, definite = _gptq(
        w_IO, hessian_II, damping, bits, granularity, group_size, symmetric, grid, act_order
    )
    return rounded_IO, jnp.where(definite, used, jnp.nan)


def _gptq(
    w_IO: ArrayLike, hessian_II: ArrayLike, damping: float, bits: int | Array, *choices
) -> tuple[Array, Array, Array]:
    """`_solve` with its arguments checked."""
    check_bits(bits)
    if not (damping >= 0 and math.isfinite(damping)):
        raise ValueError(f"damping = {damping!r}: needs a number that is 0 or more")
    return _solve(w_IO, hessian_II, damping, bits, *choices)


@functools.partial(jax.jit, static_argnames=("granularity", "group_size", "symmetric", "grid", "act_order"))
def _solve(
    w_IO: ArrayLike,
    hessian_II: ArrayLike,
    damping: ArrayLike,
    bits: Array,
    granularity: str,
    group_size: int | None,
    symmetric: bool,
    grid: str,
    act_order: bool,
) -> tuple[Array, Array, Array]:
    """Rounded weights, the last damping that was tried, and whether H was positive definite with it."""
    w_IO, h_II = jnp.asarray(w_IO), jnp.asarray(hessian_II)
    check_scales(w_IO.shape, granularity, group_size)
    if h_II.shape != (len(w_IO), len(w_IO)):
        raise ValueError(f"expected a hessian [inputs, inputs] for a weight {w_IO.shape}, got shape {h_II.shape}")
    kept = w_IO.dtype if jnp.issubdtype(w_IO.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    dtype = jnp.promote_types(jnp.promote_types(kept, h_II.dtype), jnp.float32)
    w_IO, h_II = w_IO.astype(dtype), h_II.astype(dtype)

    fit = functools.partial(fit_grid, bits=bits, symmetric=symmetric, grid=grid)
    levels = fit(w_IO, axis=(0, 1) if granularity == "tensor" else 0)
    dead_I = jnp.diagonal(h_II) == 0
    h_II = h_II + jnp.diag(dead_I.astype(dtype))
    w_IO = jnp.where(dead_I[:, None], 0, w_IO)
    if act_order:
        order_I = jnp.argsort(-jnp.diagonal(h_II), stable=True)
        w_IO, h_II = w_IO[order_I], h_II[order_I[:, None], order_I[None, :]]
    spread_II, used, definite = _spread(h_II, jnp.asarray(damping, dtype))
    rounded_IO = _round_in_order(w_IO, spread_II, levels, group_size, fit)
    if act_order:
        rounded_IO = jnp.zeros_like(rounded_IO).at[order_I].set(rounded_IO)
    return jnp.where(definite, rounded_IO, jnp.nan).astype(kept), used, definite


def _spread(h_II: Array, damping: Array) -> tuple[Array, Array, Array]:
    """U_ij / U_ii, with U upper and U^T U = (H, dampened)^-1; the damping it took, and whether any did."""
    identity_II = jnp.eye(len(h_II), dtype=h_II.dtype)

    def factor(damping: Array) -> Array:
        h = h_II + damping * jnp.mean(jnp.diagonal(h_II)) * identity_II
        return jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]  # R upper, R R^T = H; NaN if there is none

    def raised(damping: Array) -> Array:
        return jnp.maximum(10 * damping, 0.01)

    def unfinished(state: tuple[Array, Array]) -> Array:
        damping, r_II = state
        return ~jnp.all(jnp.isfinite(r_II)) & (raised(damping) < 1.001)  # 1, give or take its rounding

    used, r_II = jax.lax.while_loop(
        unfinished, lambda state: (raised(state[0]), factor(raised(state[0]))), (damping, factor(damping))
    )
    # U = R^-1: the inverse of H, which would have the square of R's condition, isn't formed.
    u_II = jsp.linalg.solve_triangular(r_II, identity_II, lower=False)
    return u_II / jnp.diagonal(u_II)[:, None], used, jnp.all(jnp.isfinite(r_II))


def _round_in_order(
    w_IO: Array, spread_II: Array, levels: Grid, group_size: int | None, fit: Callable[..., Grid]
) -> Array:
    """One block of inputs after the other. Errors reach the inputs after a block by one product, once it's rounded.

    Without groups, weights of 0 fill up the last block. A block never begins in one group and ends in the next: so
    the weights of a group that is entered have all errors from before it.
    """
    inputs, outputs = w_IO.shape
    block = _block(inputs, group_size)
    blocks = -(-inputs // block)
    fill = blocks * block - inputs
    w_IO = jnp.pad(w_IO, ((0, fill), (0, 0)))
    spread_II = jnp.pad(spread_II, ((0, fill), (0, fill)))

    def round_block(state, start):
        w_IO, scale, zero = state
        if group_size is not None:
            fitted = fit(jax.lax.dynamic_slice_in_dim(w_IO, start, group_size), axis=0)
            entered = start % group_size == 0
            scale, zero = jnp.where(entered, fitted.scale, scale), jnp.where(entered, fitted.zero, zero)
        w_BO = jax.lax.dynamic_slice_in_dim(w_IO, start, block)
        spread_BI = jax.lax.dynamic_slice_in_dim(spread_II, start, block)
        spread_BB = jax.lax.dynamic_slice_in_dim(spread_BI, start, block, axis=1)
        rounded_BO, error_BO = _round_block(w_BO, spread_BB, levels._replace(scale=scale, zero=zero))
        # Also changes inputs that are done with, which nothing reads any more.
        w_IO = w_IO - jnp.matmul(spread_BI.T, error_BO, precision=jax.lax.Precision.HIGHEST)
        return (w_IO, scale, zero), rounded_BO

    starts = block * jnp.arange(blocks)
    _, rounded_NBO = jax.lax.scan(round_block, (w_IO, levels.scale, levels.zero), starts)
    return rounded_NBO.reshape(blocks * block, outputs)[:inputs]


def _round_block(w_BO: Array, spread_BB: Array, levels: Grid) -> tuple[Array, Array]:
    """The rounded weights of one block, and what rounding took from each; errors spread within the block alone."""

    def round_input(error_BO, this):
        i, w_O, spread_B = this
        # The errors of inputs to come are still 0. Reading all of them is less work than writing all weights to come.
        w_1O = w_O[None, :] - jnp.matmul(spread_B[None, :], error_BO, precision=jax.lax.Precision.HIGHEST)
        rounded_1O = levels.snap(w_1O)
        return jax.lax.dynamic_update_slice_in_dim(error_BO, w_1O - rounded_1O, i, axis=0), rounded_1O[0]

    inputs = (jnp.arange(len(w_BO)), w_BO, spread_BB.T)
    error_BO, rounded_BO = jax.lax.scan(round_input, jnp.zeros_like(w_BO), inputs)
    return rounded_BO, error_BO


def _block(inputs: int, group_size: int | None) -> int:
    """Inputs in a block, BLOCK at most: the greatest number that divides a group, or blocks of nearly equal size."""
    if group_size is None:
        return -(-inputs // -(-inputs // BLOCK))
    return next(size for size in range(min(group_size, BLOCK), 0, -1) if group_size % size == 0)
