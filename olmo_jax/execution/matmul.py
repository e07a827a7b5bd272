"""Matmuls whose gradients a CPU would take in its slowest form.

The gradient of W in y = x W contracts the first dimension of both operands, x^T dy. XLA's CPU backend transposes one of
them for it, and fuses that with whatever made it: a strided loop several times as long as the matmul. Here the
transposition is a step of its own, as fast as a copy. GPUs and TPUs contract any dimension at full speed; there these
functions are the plain ones. Results agree within rounding.
"""

import jax
import jax.numpy as jnp
from jax import Array


def linear(x_BLI: Array, w_IO: Array) -> Array:
    """x W over the last dimension of x, `[B, L, I] -> [B, L, O]`, in the dtype of x."""
    w_IO = w_IO.astype(x_BLI.dtype)
    if jax.default_backend() != "cpu":
        return x_BLI @ w_IO
    return _linear(x_BLI.reshape(-1, x_BLI.shape[-1]), w_IO).reshape(*x_BLI.shape[:-1], w_IO.shape[-1])


def transposed(x: Array) -> Array:
    """The last two dimensions swapped; on a CPU by a step that no other is fused with."""
    if jax.default_backend() != "cpu":
        return jnp.swapaxes(x, -1, -2)
    return optimization_barrier(jnp.swapaxes(optimization_barrier(x), -1, -2))


def optimization_barrier(x: Array) -> Array:
    """x, computed once and as it is written, whatever reads it."""
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
