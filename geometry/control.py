"""Conditional computation that stays cheap under vmap."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import Array

T = TypeVar("T")


def compute_if(needed: Array, compute: Callable[[], T], otherwise: T) -> T:
    """Return `compute()` if the scalar `needed` is true, else `otherwise`, which has the same shapes.

    Under vmap, `lax.cond` always computes both branches. A loop of at most one iteration computes only if some member
    of the batch needs it. Reverse-mode differentiation isn't supported, so use it for choices, such as indices, or
    inside a function with a custom derivative.
    """
    _, value = jax.lax.while_loop(lambda state: state[0], lambda _: (needed & False, compute()), (needed, otherwise))
    return value
