"""A metric of your own: one decorated function of a matrix.

It is measured while models train, and appears in metrics.jsonl, results.parquet and the report as
unembedding/longest_row.
"""

import jax.numpy as jnp

from geometry.probe import metric


@metric
def longest_row(measured):
    """Length of the longest row, over the root mean square length."""
    lengths_N = jnp.linalg.norm(measured.x_ND, axis=1)
    return jnp.max(lengths_N) / jnp.sqrt(jnp.mean(jnp.square(lengths_N)))
