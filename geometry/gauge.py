"""The part of an unembedding that its logits can't see, and how to take it out."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry.norms import NORMS as NORMS
from geometry.svd import as_matrix


def gauge_fix(w_VD: ArrayLike, norm: str) -> Array:
    """The one member of a family of equivalent unembeddings that has no part in the directions the softmax ignores.

    With a final state h the logits are W h, and the softmax is blind to a constant added to all of them.

    Rows. (W + 1 c^T) h = W h + (c.h) 1 for every h and c: the same vector added to every row of W changes no
    prediction, whatever the norm. Subtracting the mean row picks the one W of that family with columns that sum to 0.

    Columns. LayerNorm without parameters gives states whose components sum to zero, 1.h = 0, so that
    (W + a 1^T) h = W h + (1.h) a = W h: a multiple of ones added to each row, each its own, changes no logit.
    Subtracting each row's own mean picks the one with rows that sum to 0. It spends a direction: the rank is D - 1 at
    most. A LayerNorm with parameters gives h = g n + b with 1.n = 0; there the ones direction is seen. (With a gain
    alone the hidden direction is 1/g; fold the gain, W diag(g), and it is the case without parameters.) RMSNorm
    hides no direction.

    The two projections commute, so the order is of no matter, and fixing twice is fixing once.

    Args:
      w_VD: the unembedding, without the padding rows of the vocabulary.
      norm: of the final states: "layer_norm" (without parameters, OLMo-1), "affine_layer_norm" (with gain or bias,
        GPT-NeoX) or "rms_norm" (OLMo-2).

    Returns:
      The fixed matrix, [V, D], of at least float32.

    Raises:
      ValueError: an unknown norm, or not a matrix.
    """
    if norm not in NORMS:
        raise ValueError(f"norm = {norm!r}: needs one of {', '.join(NORMS)}")
    fixed_VD = centred(w_VD)
    if norm == "layer_norm":
        fixed_VD = fixed_VD - jnp.mean(fixed_VD, axis=1, keepdims=True)
    return fixed_VD


def centred(x_ND: ArrayLike) -> Array:
    """The matrix without its mean row; a metric of this is the metric's centred variant, and its rank is N - 1 at most.

    The first row is taken off before the mean is, so that equal rows leave zeros and not rounding.
    """
    x_ND = as_matrix(x_ND)
    x_ND = x_ND - x_ND[:1]
    return x_ND - jnp.mean(x_ND, axis=0, keepdims=True)
