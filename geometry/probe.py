"""Compute named metrics of one matrix in one compiled program; registry.py says how a metric gets its name.

summarize(x_ND, metrics=("effective_rank", "stable_rank"))
"""

import functools
import types
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry import dimension as dimension
from geometry import isotropy as isotropy
from geometry import spectrum, svd
from geometry.gauge import centred
from geometry.registry import COUNTS as COUNTS
from geometry.registry import METRICS as METRICS
from geometry.registry import Measured as Measured
from geometry.registry import Metric as Metric
from geometry.registry import check_names as check_names
from geometry.registry import count as count
from geometry.registry import metric as metric

# The library's own metrics, whatever a user registers or defines again.
LIBRARY = types.MappingProxyType(dict(METRICS))
# Indices into the spectrum, counted from 1, about evenly spaced on a log scale, for plotting it.
SPECTRUM_PLACES = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
)

UNEMBEDDING_METRICS = ("effective_rank", "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy")


def summarize(
    x_ND: ArrayLike,
    metrics: Sequence[str] = UNEMBEDDING_METRICS,
    n_neighbors: int = 128,
    places: Sequence[int] = (),
) -> dict[str, Array]:
    """Return metrics of one matrix by name.

    The matrix is measured unchanged. For centred or gauge-fixed variants, transform it first:
    `summarize(centred(h_ND))`, `summarize(gauge_fix(w_VD, norm))`.

    Args:
      x_ND: an unembedding, or states in rows.
      metrics: names of registered metrics; static under jit and vmap.
      n_neighbors: size of the neighbourhoods of local metrics.
      places: indices of singular values to return as well, counted from 1, the largest.

    Returns:
      A scalar for each name, in the order given, then `singular_value_<place>` for each place. All spectral metrics use
      one decomposition, and all metrics are computed by one program, compiled once per shape.

    Raises:
      ValueError: an unknown metric, not a matrix, or a place beyond the spectrum.
    """
    if isinstance(metrics, str):
        raise ValueError(f"metrics = {metrics!r}: needs a sequence of names, such as ({metrics!r},)")
    check_names(metrics)
    x_ND = svd.as_matrix(x_ND)
    if beyond := [place for place in places if not 1 <= place <= min(x_ND.shape)]:
        raise ValueError(
            f"places = {beyond}: a matrix of shape {x_ND.shape} has singular values 1 to {min(x_ND.shape)}"
        )
    names = (*metrics, *(f"singular_value_{place}" for place in places))
    # The functions are part of the compiled program's key, so that a redefined metric is compiled again.
    functions = tuple(METRICS[name] for name in metrics)
    return dict(zip(names, _measure(x_ND, functions, tuple(places), n_neighbors), strict=True))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _measure(x_ND: Array, functions: tuple[Metric, ...], places: tuple[int, ...], n_neighbors: int) -> list[Array]:
    measured = Measured(x_ND, n_neighbors)
    return [*(function(measured) for function in functions), *(measured.singular_values_D[p - 1] for p in places)]


@metric
def effective_rank_percent(measured: Measured) -> Array:
    """Effective rank in percent of the number of columns D, 100 R / D."""
    return 100.0 * spectrum.effective_rank(measured.singular_values_D) / measured.x_ND.shape[1]


@metric
def alpha_req(measured: Measured) -> Array:
    """Decay of the covariance's spectrum: minus the slope of ln(eigenvalue) on ln(index), from index 11 to half."""
    centred_D = svd.singular_values(centred(measured.x_ND), "refined_gram")
    largest = jnp.max(centred_D)
    return spectrum.alpha_req(jnp.square(centred_D / jnp.where(largest == 0, 1.0, largest)))


@count
def points(measured: Measured) -> Array:
    """Number of rows, N."""
    return jnp.float32(measured.x_ND.shape[0])


@count
def rank_cap(measured: Measured) -> Array:
    """Upper bound on the rank of the centred rows, min(N - 1, D)."""
    return jnp.float32(min(measured.x_ND.shape[0] - 1, measured.x_ND.shape[1]))


@count
def duplicates(measured: Measured) -> Array:
    """Number of rows that repeat an earlier one exactly; metrics of dimension leave them out."""
    return dimension.duplicates(measured.x_ND).astype(jnp.float32)
