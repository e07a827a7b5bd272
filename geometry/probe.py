"""Metrics of one matrix by name, as one compiled program.

A metric is one decorated function of what is `Measured`; the decorator alone makes it known under its own name:

    @metric
    def row_norm(measured):
        return jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

    summarize(x_ND, metrics=("row_norm", "stable_rank"))
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence

import jax
from jax import Array
from jax.typing import ArrayLike

from geometry import isotropy, spectrum


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """A matrix under measurement, and what its metrics share.

    Attributes:
      x_ND: the matrix, of at least float32.
    """

    x_ND: Array

    @functools.cached_property
    def singular_values_D(self) -> Array:
        """Descending, by QR; computed where the first metric asks, and once."""
        return spectrum.singular_values(self.x_ND)


Metric = Callable[[Measured], Array]

METRICS: dict[str, Metric] = {}

UNEMBEDDING_METRICS = ("effective_rank", "effective_rank_percent", "mean_cosine", "partition_isotropy")


def metric(function: Metric) -> Metric:
    """Registers a scalar function of `Measured` under its own name.

    Raises ValueError if another function has that name. The same one defined again (a notebook cell run twice)
    takes its own place.
    """
    name, origin = function.__name__, (function.__module__, function.__qualname__)
    known = METRICS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != origin:
        raise ValueError(
            f"metric {name!r} of {function.__module__} is already defined in {known.__module__}; rename it"
        )
    METRICS[name] = function
    return function


def summarize(x_ND: ArrayLike, metrics: Sequence[str] = UNEMBEDDING_METRICS) -> dict[str, Array]:
    """Measures one matrix.

    The matrix is measured as it is given. Centred and gauge-fixed variants are those of another matrix:
    `summarize(centred(h_ND))`, `summarize(gauge_fix(w_VD, norm))`.

    Args:
      x_ND: an unembedding, or states in rows.
      metrics: names of registered metrics; static under jit and vmap.

    Returns:
      A scalar for each name, in the order given. The spectral ones come from one set of singular values, and all of
      them from one program, compiled once a shape.

    Raises:
      ValueError: an unknown metric, or not a matrix.
    """
    if isinstance(metrics, str):
        raise ValueError(f"metrics = {metrics!r}: needs a sequence of names, such as ({metrics!r},)")
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)
            raise ValueError(f"no metric {name!r}; the nearest is {near[0]!r}, and all are: {', '.join(METRICS)}")
    # The functions are part of the key of the compiled program, so that one defined again is compiled again.
    return dict(zip(metrics, _measure(spectrum.as_matrix(x_ND), tuple(METRICS[name] for name in metrics)), strict=True))


@functools.partial(jax.jit, static_argnums=1)
def _measure(x_ND: Array, functions: tuple[Metric, ...]) -> list[Array]:
    measured = Measured(x_ND)
    return [function(measured) for function in functions]


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
    return isotropy.partition_isotropy(measured.x_ND)


@metric
def isoscore(measured: Measured) -> Array:
    return isotropy.isoscore(measured.x_ND)
