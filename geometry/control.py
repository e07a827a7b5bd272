"""Control flow that stays cheap under vmap."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import Array

T = TypeVar("T")


def compute_if(needed: Array, compute: Callable[[], T], otherwise: T) -> T:
    """`compute()` where the scalar `needed` is true, else `otherwise`, which has the same shapes.

    `lax.cond` under vmap computes both branches always. A loop of at most one turn computes only if some member of
    the stack needs it. Not differentiable in reverse: for what is found, not for what is measured.
    """
    _, value = jax.lax.while_loop(lambda state: state[0], lambda _: (needed & False, compute()), (needed, otherwise))
    return value
