"""Matmuls whose gradients would otherwise be slow on a CPU.

The gradient of W in y = x W contracts the first dimension of both operands, x^T dy. XLA's CPU backend transposes one of
them for it, and fuses that with the operation that produced it: a strided loop several times as slow as the matmul.
Here the transposition is a separate step, as fast as a copy. GPUs and TPUs contract any dimension at full speed; on
these the functions do nothing special. Results agree within rounding.
"""

import jax
import jax.numpy as jnp
from jax import Array


def linear(x_BLI: Array, w_IO: Array) -> Array:
    """Return x W over the last dimension of x, `[B, L, I] -> [B, L, O]`, in the dtype of x."""
    w_IO = w_IO.astype(x_BLI.dtype)
    if jax.default_backend() != "cpu":
        return x_BLI @ w_IO
    return _linear(x_BLI.reshape(-1, x_BLI.shape[-1]), w_IO).reshape(*x_BLI.shape[:-1], w_IO.shape[-1])


def transposed(x: Array) -> Array:
    """Return x with its last two dimensions swapped; on a CPU in a step that XLA can't fuse with others."""
    if jax.default_backend() != "cpu":
        return jnp.swapaxes(x, -1, -2)
    return optimization_barrier(jnp.swapaxes(optimization_barrier(x), -1, -2))


def optimization_barrier(x: Array) -> Array:
    """Return x, computed once and not fused with the operations that read it."""
    return jax.lax.optimization_barrier(x)


@jax.custom_vjp
def _linear(x_NI: Array, w_IO: Array) -> Array:
    return x_NI @ w_IO


def _linear_forward(x_NI: Array, w_IO: Array) -> tuple[Array, tuple[Array, Array]]:
    return x_NI @ w_IO, (x_NI, w_IO)


def _linear_backward(operands: tuple[Array, Array], dy_NO: Array) -> tuple[Array, Array]:
    x_NI, w_IO = operands
    dy_NO = optimization_barrier(dy_NO)
    return dy_NO @ w_IO.T, transposed(x_NI) @ dy_NO


_linear.defvjp(_linear_forward, _linear_backward)


def widened(x: Array) -> Array:
    """Return x in float32, or in its own type if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
