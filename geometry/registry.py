"""Register metrics by name, each where it is defined.

A custom metric is a function of `Measured`; the decorator registers it under the function's name:

    @metric
    def row_norm(measured):
        return jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

One function may return several values, each registered as a separate metric, here row_norm and row_norm_std:

    @metric(values={"": "Mean norm of the rows.", "_std": "Standard deviation of the norms of the rows."})
    def row_norm(measured):
        norm_N = jnp.linalg.norm(measured.x_ND, axis=1)
        return jnp.mean(norm_N), jnp.std(norm_N)
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

from jax import Array

from geometry import svd
from geometry.counts import COUNTS as COUNTS

T = TypeVar("T", bound=Callable[..., Any])


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

    def once(self, function: Callable[["Measured"], Any]) -> Any:
        """Return `function(self)`, computed on the first call only."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]

    @functools.cached_property
    def _results(self) -> dict[Callable[["Measured"], Any], Any]:
        return {}


Metric = Callable[[Measured], Array]

METRICS: dict[str, Metric] = {}


@overload
def metric(function: T) -> T: ...


@overload
def metric(*, values: Mapping[str, str] | None = None, name: str = "") -> Callable[[T], T]: ...


def metric(
    function: T | None = None, *, values: Mapping[str, str] | None = None, name: str = ""
) -> T | Callable[[T], T]:
    """Register a function of `Measured`, which returns a scalar or, with `values`, a tuple of scalars, under its name.

    Args:
      values: for each item of the tuple, the suffix that is added to the name, and a sentence on its meaning.
      name: the metric's name, if it isn't the function's.

    Raises ValueError if another function has that name. The same function defined again (a notebook cell run twice, a
    configuration file read twice) replaces the earlier one.
    """

    def register(function: T) -> T:
        first = name or function.__name__
        if values is None:
            _add(first, function, function)
            return function
        for i, (suffix, meaning) in enumerate(values.items()):
            _add(f"{first}{suffix}", _item(function, i, meaning), function)
        return function

    return register if function is None else register(function)


def metric_of(part: str, name: str = "", meaning: str = "", **arguments: Any) -> Callable[[T], T]:
    """Register a function of a part of `Measured`, such as "singular_values_D", and return it unchanged.

    Args:
      part: the attribute of Measured that is the function's first argument. arguments: its other arguments.
      name, meaning: those of the metric, if they aren't the function's name and docstring.
    """

    def register(function: T) -> T:
        def measure(measured: Measured) -> Array:
            return function(getattr(measured, part), **arguments)

        measure.__doc__ = meaning or function.__doc__
        _add(name or function.__name__, measure, function)
        return function

    return register


def count(function: T) -> T:
    """Register, as `metric` does, a number that describes the measurement, such as the number of points."""
    COUNTS.add(function.__name__)
    return metric(function)


def check_names(metrics: Sequence[str]) -> None:
    """Raise ValueError for a name that isn't registered, suggesting the nearest one."""
    for name in metrics:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)
            raise ValueError(f"no metric {name!r}; the nearest is {near[0]!r}, and all are: {', '.join(METRICS)}")


_ORIGINS: dict[str, Callable[..., Any]] = {}


def _add(name: str, measure: Metric, origin: Callable[..., Any]) -> None:
    known = _ORIGINS.get(name)
    if name in METRICS and known is not None and not _same(known, origin):
        raise ValueError(f"metric {name!r} of {origin.__module__} is already defined in {known.__module__}; rename it")
    METRICS[name], _ORIGINS[name] = measure, origin


def _same(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    if one.__qualname__ != other.__qualname__:
        return False
    return one.__module__ == other.__module__ or len({inspect.getfile(inspect.unwrap(f)) for f in (one, other)}) == 1


def _item(function: Callable[[Measured], Any], i: int, meaning: str) -> Metric:
    def measure(measured: Measured) -> Array:
        return measured.once(function)[i]

    measure.__doc__ = meaning
    return measure
