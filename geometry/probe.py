"""Compute named metrics of one matrix in one compiled program.

A metric is a function of `Measured`; its decorator registers it under the function's name:

    @metric
    def row_norm(measured):
        return jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

    summarize(x_ND, metrics=("row_norm", "stable_rank"))
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from geometry import dimension, isotropy, spectrum, svd
from geometry.counts import COUNTS as COUNTS


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A matrix to measure, with intermediate results that metrics share, each computed once, when it is first used.

    Attributes:
      x_ND: the matrix, in float32 or wider.
      n_neighbors: size of the neighbourhoods of local metrics.
    """

    x_ND: Array
    n_neighbors: int = 128

    @functools.cached_property
    def singular_values_D(self) -> Array:
        """Return the min(N, D) singular values, descending; as accurate as by QR, and efficient for sharded rows."""
        tall = self.x_ND.shape[0] >= self.x_ND.shape[1]
        return self.right_singular[0] if tall else svd.singular_values(self.x_ND, "refined_gram")

    @functools.cached_property
    def right_singular(self) -> tuple[Array, Array]:
        """Return the singular values and the eigenvectors of X^T X."""
        return svd.right_singular(self.x_ND)

    @functools.cached_property
    def local_dimension(self) -> dimension.Distribution:
        """Return the distribution of local TwoNN dimensions in paper B's form: skdim's F, regression, 10 % cut."""
        return dimension.distribution(dimension.local_two_nn(self.x_ND, self.n_neighbors, convention="skdim034"))


Metric = Callable[[Measured], Array]

METRICS: dict[str, Metric] = {}

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


def metric(function: Metric) -> Metric:
    """Register a scalar function of `Measured` under its name.

    Raises ValueError if another function has that name. The same function defined again (a notebook cell run twice, a
    configuration file read twice) replaces the earlier one.
    """
    name, known = function.__name__, METRICS.get(function.__name__)
    if known is not None and not _same_origin(known, function):
        raise ValueError(
            f"metric {name!r} of {function.__module__} is already defined in {known.__module__}; rename it"
        )
    METRICS[name] = function
    return function


def count(function: Metric) -> Metric:
    """Register, as `metric` does, a number that describes the measurement, such as the number of points."""
    COUNTS.add(function.__name__)
    return metric(function)


def check_names(metrics: Sequence[str]) -> None:
    """Raise ValueError for a name that isn't registered, suggesting the nearest one."""
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)
            raise ValueError(f"no metric {name!r}; the nearest is {near[0]!r}, and all are: {', '.join(METRICS)}")


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


def _same_origin(one: Metric, other: Metric) -> bool:
    if one.__qualname__ != other.__qualname__:
        return False
    return one.__module__ == other.__module__ or inspect.getfile(one) == inspect.getfile(other)


@metric
def effective_rank(measured: Measured) -> Array:
    return spectrum.effective_rank(measured.singular_values_D)


@metric
def effective_rank_percent(measured: Measured) -> Array:
    """100 R / D, D the columns."""
    return 100.0 * effective_rank(measured) / measured.x_ND.shape[1]


@metric
def stable_rank(measured: Measured) -> Array:
    return spectrum.stable_rank(measured.singular_values_D)


@metric
def participation_ratio(measured: Measured) -> Array:
    return spectrum.participation_ratio(measured.singular_values_D)


@metric
def singular_entropy(measured: Measured) -> Array:
    return spectrum.singular_entropy(measured.singular_values_D)


@metric
def condition_number(measured: Measured) -> Array:
    return spectrum.condition_number(measured.singular_values_D)


@metric
def power_law_alpha(measured: Measured) -> Array:
    return spectrum.power_law_alpha(measured.singular_values_D)


@metric
def mean_cosine(measured: Measured) -> Array:
    return isotropy.mean_cosine(measured.x_ND)


@metric
def partition_isotropy(measured: Measured) -> Array:
    return isotropy.isotropy_along(measured.x_ND, measured.right_singular[1])


@metric
def isoscore(measured: Measured) -> Array:
    return isotropy.isoscore(measured.x_ND)


@metric
def per(measured: Measured) -> Array:
    return spectrum.per(measured.singular_values_D)


@metric
def rankme(measured: Measured) -> Array:
    return spectrum.rankme(measured.singular_values_D)


@metric
def spectral_norm(measured: Measured) -> Array:
    return spectrum.spectral_norm(measured.singular_values_D)


@metric
def nuclear_norm(measured: Measured) -> Array:
    return spectrum.nuclear_norm(measured.singular_values_D)


@metric
def frobenius_norm(measured: Measured) -> Array:
    return spectrum.frobenius_norm(measured.singular_values_D)


@metric
def energy_top_1(measured: Measured) -> Array:
    return spectrum.energy_top(measured.singular_values_D, 1)


@metric
def energy_top_10(measured: Measured) -> Array:
    return spectrum.energy_top(measured.singular_values_D, 10)


@metric
def mean_norm_ratio(measured: Measured) -> Array:
    return isotropy.mean_norm_ratio(measured.x_ND)


@metric
def row_norm_spread(measured: Measured) -> Array:
    return isotropy.row_norm_spread(measured.x_ND)


@metric
def two_nn(measured: Measured) -> Array:
    return dimension.two_nn(measured.x_ND)


@metric
def two_nn_mle(measured: Measured) -> Array:
    return dimension.two_nn(measured.x_ND, estimator="mle")


@metric
def levina_bickel(measured: Measured) -> Array:
    return dimension.levina_bickel(measured.x_ND)


@metric
def local_two_nn(measured: Measured) -> Array:
    """Paper B's metric: the mean over points of the dimension around each."""
    return measured.local_dimension.mean


@metric
def local_two_nn_std(measured: Measured) -> Array:
    return measured.local_dimension.std


@metric
def local_two_nn_q10(measured: Measured) -> Array:
    return measured.local_dimension.q10


@metric
def local_two_nn_median(measured: Measured) -> Array:
    return measured.local_dimension.median


@metric
def local_two_nn_q90(measured: Measured) -> Array:
    return measured.local_dimension.q90


@metric
def local_two_nn_q5(measured: Measured) -> Array:
    return measured.local_dimension.q5


@metric
def local_two_nn_q25(measured: Measured) -> Array:
    return measured.local_dimension.q25


@metric
def local_two_nn_q75(measured: Measured) -> Array:
    return measured.local_dimension.q75


@metric
def local_two_nn_q95(measured: Measured) -> Array:
    return measured.local_dimension.q95


@count
def points(measured: Measured) -> Array:
    """N, the rows."""
    return jnp.float32(measured.x_ND.shape[0])


@count
def rank_cap(measured: Measured) -> Array:
    """What no rank of the centred rows can exceed, min(N - 1, D)."""
    return jnp.float32(min(measured.x_ND.shape[0] - 1, measured.x_ND.shape[1]))


@count
def duplicates(measured: Measured) -> Array:
    """Rows that repeat an earlier one exactly; metrics of dimension leave them out."""
    return dimension.duplicates(measured.x_ND).astype(jnp.float32)
