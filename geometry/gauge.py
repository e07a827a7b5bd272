"""Remove the part of an unembedding that doesn't affect the model's predictions."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry.norms import NORMS as NORMS
from geometry.svd import as_matrix


def gauge_fix(w_VD: ArrayLike, norm: str) -> Array:
    """Return the unembedding without its components in the directions that don't affect the predictions.

    Many unembeddings give the same predictions; this picks one of them. With a final state h the logits are W h, and a
    constant added to all of them doesn't change the softmax.

    Rows. (W + 1 c^T) h = W h + (c.h) 1 for every h and c: adding the same vector to every row of W changes no
    prediction, whatever the norm. Subtracting the mean row picks the equivalent W whose columns sum to 0.

    Columns. LayerNorm without parameters gives states whose components sum to zero, 1.h = 0, so that
    (W + a 1^T) h = W h + (1.h) a = W h: adding a constant a_i to all entries of row i, for each row, changes no logit.
    Subtracting each row's mean picks the equivalent W whose rows sum to 0. It removes one direction: the rank is at
    most D - 1. A LayerNorm with parameters gives h = g n + b with 1.n = 0; then the ones direction does affect the
    logits. (With a gain and no bias the direction without effect is 1/g; fold the gain into the weights, W diag(g), to
    get the case without parameters.) With RMSNorm every direction of the columns affects the logits.

    The two projections commute, so their order doesn't matter, and applying them again changes nothing.

    Args:
      w_VD: the unembedding, without the padding rows of the vocabulary.
      norm: the norm that gives the final states: "layer_norm" (without parameters, OLMo-1), "affine_layer_norm" (with
        gain or bias, GPT-NeoX) or "rms_norm" (OLMo-2).

    Returns:
      The gauge-fixed matrix, [V, D], in float32 or wider.

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
    """Return the matrix without its mean row; its rank is at most N - 1.

    The first row is subtracted before the mean, so that equal rows give exact zeros instead of rounding errors.
    """
    x_ND = as_matrix(x_ND)
    x_ND = x_ND - x_ND[:1]
    return x_ND - jnp.mean(x_ND, axis=0, keepdims=True)
