"""The matrices of a sweep's runs, on which tests of gauge and null recompute a metric."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from geometry.gauge import centred, gauge_fix
from geometry.probe import METRICS, Metric, summarize
from olmo_jax import weights
from olmo_jax.errors import UserError, WeightsError, brief

# The unembedding as the probe measures it, by target.
VARIANTS: dict[str, Callable[[Array, str], Array]] = {
    "unembedding": lambda w_VD, norm: w_VD,
    "unembedding_centred": lambda w_VD, norm: centred(w_VD),
    "unembedding_gauge_fixed": gauge_fix,
}


class MetricError(UserError):
    """A metric that can't be computed; the message says why."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Unembedding:
    """A run's unembedding, in float32, and its final norm."""

    run_id: str
    w_VD: np.ndarray
    norm: str


def unembeddings(workdir: epath.Path, runs: Sequence[str]) -> list[Unembedding]:
    """Return the unembeddings at the last checkpoints of runs, without padding; of runs that have one."""
    found = []
    for run in runs:
        try:
            (model,) = weights.models(workdir, run)
        except WeightsError:
            continue
        for tensor in model.tensors():
            if tensor.norm is not None:
                found.append(Unembedding(run, tensor.read().astype(np.float32), tensor.norm))
    return found


def split(column: str) -> tuple[str, str] | None:
    """Return the target and name of a column that holds a metric of the unembedding; None for others."""
    target, _, name = column.rpartition("/")
    return (target, name) if target in VARIANTS and name in METRICS else None


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Metrics of the unembedding as a function of it, for models of one norm.

    Attributes:
      functions: those of the names, so that programs are compiled again for a redefined metric.
    """

    columns: tuple[str, ...]
    norm: str
    functions: tuple[Metric, ...]

    @classmethod
    def of(cls, columns: Iterable[str], norm: str) -> "Metrics":
        """Return those among the columns that are metrics of the unembedding."""
        found = tuple(column for column in columns if split(column))
        return cls(found, norm, tuple(METRICS[column.rpartition("/")[2]] for column in found))

    def __call__(self, w_VD: Array) -> dict[str, Array]:
        """Return the metrics by column."""
        names: dict[str, list[str]] = {}
        for column in self.columns:
            target, _, name = column.rpartition("/")
            names.setdefault(target, []).append(name)
        return {
            f"{target}/{name}": value
            for target, of_target in names.items()
            for name, value in summarize(VARIANTS[target](w_VD, self.norm), tuple(of_target)).items()
        }


def check_scalars(metrics: Metrics, shape_VD: tuple[int, ...]) -> None:
    """Raise MetricError unless each metric returns a scalar for a matrix of this shape."""
    shape = " x ".join(map(str, shape_VD))
    for column in metrics.columns:
        one = Metrics.of([column], metrics.norm)
        try:
            struct = jax.eval_shape(one, jax.ShapeDtypeStruct(shape_VD, jnp.float32))[column]
        except Exception as error:  # the metric is the user's own code
            raise MetricError(
                f"{column}: fails on an unembedding of {shape}: {type(error).__name__}: {brief(error)}"
            ) from error
        if struct.shape != ():
            raise MetricError(
                f"{column}: returns an array of shape {struct.shape} for an unembedding of {shape}; return one number"
            )
