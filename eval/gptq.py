"""GPTQ: round weights one input after another, and let later inputs compensate for the errors of earlier ones.

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

# Number of inputs whose errors are propagated to later inputs in one matrix product.
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
    """Round the weights so that the layer's outputs on calibration inputs change little, instead of the weights.

    With W the weights and Q the result, the error is tr((W - Q)^T H (W - Q)). Inputs are taken in order; each is
    rounded to the grid of `eval.quantize.round_to_nearest`, and the weights of later inputs compensate for the
    rounding error: w_j -= (w_i - q_i) U_ij / U_ii for j > i, U the upper Cholesky factor of H^-1.

    A dead input, whose diagonal entry of H is 0, gets 1 there and the weight 0. Then `damping` times the mean of the
    diagonal is added to it. While H still isn't positive definite, the damping is raised to ten times its value, but at
    least .01, up to 1.

    The scale of a column or of the matrix comes from the original weights, including dead inputs. That of a group
    comes from its weights when its first input is reached, updated with the errors of all earlier inputs.

    A NaN or an infinity in `hessian_II` makes the whole result NaN; one in `w_IO` makes NaN of every weight that shares
    its scale, and of the later weights of its column.

    Args:
      w_IO: one matrix [inputs, outputs].
      hessian_II: 2 X^T X for calibration inputs X, or any positive multiple of it; assumed symmetric.
      bits, granularity, group_size, symmetric, grid: as in `round_to_nearest`.
      act_order: process inputs by descending diagonal of H, where a dead input counts as 1; the sort is stable. Groups
        are formed in that order; the result keeps the order of `w_IO`.
      damping: a non-negative number.

    Returns:
      The rounded weights in the dtype of `w_IO` (float32 for integers), computed in float32 or wider. Outside of
      transformations, a warning is given if the damping had to be raised.

    Raises:
      ValueError: an invalid argument; or H is finite and no damping makes it positive definite. Under jit or vmap all
        weights are NaN instead, and `gptq_with_damping` returns the damping.

    There is one compiled program per shape and choice of the arguments after `bits`, except `damping`.
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
            "calibrate on more tokens to need less",
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
    """Round as `gptq` does, under jit and vmap too: without warnings, or errors for the Hessian's values.

    Returns:
      The rounded weights [I, O], and the damping that was used; both are NaN if no damping sufficed.
    """
    rounded_IO, used, definite = _gptq(
        w_IO, hessian_II, damping, bits, granularity, group_size, symmetric, grid, act_order
    )
    return rounded_IO, jnp.where(definite, used, jnp.nan)


def _gptq(
    w_IO: ArrayLike, hessian_II: ArrayLike, damping: float, bits: int | Array, *choices
) -> tuple[Array, Array, Array]:
    """Check the arguments and call `_solve`."""
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
    """Return the rounded weights, the last damping tried, and whether H was positive definite with it."""
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
    """Return U_ij / U_ii, with U upper and U^T U the inverse of the damped H; the damping, and whether it sufficed."""
    identity_II = jnp.eye(len(h_II), dtype=h_II.dtype)

    def factor(damping: Array) -> Array:
        h = h_II + damping * jnp.mean(jnp.diagonal(h_II)) * identity_II
        return jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]  # R upper, R R^T = H; NaN if there is none

    def raised(damping: Array) -> Array:
        return jnp.maximum(10 * damping, 0.01)

    def unfinished(state: tuple[Array, Array]) -> Array:
        damping, r_II = state
        return ~jnp.all(jnp.isfinite(r_II)) & (raised(damping) < 1.001)  # 1, with a margin for rounding

    used, r_II = jax.lax.while_loop(
        unfinished, lambda state: (raised(state[0]), factor(raised(state[0]))), (damping, factor(damping))
    )
    # U = R^-1; the inverse of H isn't formed, since its condition number is the square of R's.
    u_II = jsp.linalg.solve_triangular(r_II, identity_II, lower=False)
    return u_II / jnp.diagonal(u_II)[:, None], used, jnp.all(jnp.isfinite(r_II))


def _round_in_order(
    w_IO: Array, spread_II: Array, levels: Grid, group_size: int | None, fit: Callable[..., Grid]
) -> Array:
    """Round one block of inputs after another; each block's errors reach later inputs by one matrix product.

    Without groups, the last block is padded with zeros. A block never spans two groups, so that at the start of a group
    its weights include the errors of all earlier inputs.
    """
    inputs, outputs = w_IO.shape
    block = _block(inputs, group_size)
    blocks = -(-inputs // block)
    padding = blocks * block - inputs
    w_IO = jnp.pad(w_IO, ((0, padding), (0, 0)))
    spread_II = jnp.pad(spread_II, ((0, padding), (0, padding)))

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
        # This also changes inputs that are already rounded, which aren't read again.
        w_IO = w_IO - jnp.matmul(spread_BI.T, error_BO, precision=jax.lax.Precision.HIGHEST)
        return (w_IO, scale, zero), rounded_BO

    starts = block * jnp.arange(blocks)
    _, rounded_NBO = jax.lax.scan(round_block, (w_IO, levels.scale, levels.zero), starts)
    return rounded_NBO.reshape(blocks * block, outputs)[:inputs]


def _round_block(w_BO: Array, spread_BB: Array, levels: Grid) -> tuple[Array, Array]:
    """Return the rounded weights of one block and their rounding errors, propagated only within the block."""

    def round_input(error_BO, current):
        i, w_O, spread_B = current
        # The errors of later inputs are still 0. Reading all errors is cheaper than updating all later weights.
        w_1O = w_O[None, :] - jnp.matmul(spread_B[None, :], error_BO, precision=jax.lax.Precision.HIGHEST)
        rounded_1O = levels.snap(w_1O)
        return jax.lax.dynamic_update_slice_in_dim(error_BO, w_1O - rounded_1O, i, axis=0), rounded_1O[0]

    inputs = (jnp.arange(len(w_BO)), w_BO, spread_BB.T)
    error_BO, rounded_BO = jax.lax.scan(round_input, jnp.zeros_like(w_BO), inputs)
    return rounded_BO, error_BO


def _block(inputs: int, group_size: int | None) -> int:
    """Return the block size, at most BLOCK: the largest divisor of a group, or for blocks of nearly equal size."""
    if group_size is None:
        return -(-inputs // -(-inputs // BLOCK))
    return next(size for size in range(min(group_size, BLOCK), 0, -1) if group_size % size == 0)
