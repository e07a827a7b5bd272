"""The matrices of a sweep's runs, on which tests of gauge and null recompute a metric."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from etils import epath
from jax import Array

from geometry.gauge import centred, gauge_fix
from geometry.probe import METRICS, Metric, summarize
from olmo_jax import weights
from olmo_jax.console import say
from olmo_jax.errors import CheckpointError, UserError, WeightsError, brief
from sweeps.judge.finding import Finding, untold

# The unembedding as the probe measures it, by target.
VARIANTS: dict[str, Callable[[Array, str], Array]] = {
    "unembedding": lambda w_VD, norm: w_VD,
    "unembedding_centred": lambda w_VD, norm: centred(w_VD),
    "unembedding_gauge_fixed": gauge_fix,
}


class MetricError(UserError):
    """A metric that can't be computed; the message says why."""

    exit_code = 2


# What runs of one shape of unembedding share.
_SHAPE = ("config.model.d_model", "config.model.norm", "config.data.bpe_vocab_size", "config.model.vocab_size")


def shapes(rows: pd.DataFrame) -> pd.Series:
    """Return a label per run that is equal for runs whose unembeddings have one shape and norm."""
    known = [c for c in _SHAPE if c in rows]
    return rows[known].astype(str).agg(" ".join, axis=1) if known else pd.Series("", rows.index)


@dataclasses.dataclass(frozen=True)
class Unembedding:
    """A run's unembedding, in float32, and its final norm."""

    run_id: str
    w_VD: np.ndarray
    norm: str

    def is_like(self, other: "Unembedding") -> bool:
        """Return whether shape and norm are the same, so that one compiled program measures both."""
        return (self.w_VD.shape, self.norm) == (other.w_VD.shape, other.norm)


def unembeddings(workdir: epath.Path, runs: Sequence[str]) -> list[Unembedding]:
    """Return the unembeddings at the last checkpoints of runs, without padding; of runs that have one."""
    found = []
    for run in runs:
        try:
            (model,) = weights.models(workdir, run)
            tensors = [tensor for tensor in model.tensors() if tensor.norm is not None]
            found += [Unembedding(run, tensor.read().astype(np.float32), str(tensor.norm)) for tensor in tensors]
        except (WeightsError, CheckpointError) as error:
            say(f"{run}: {error}; its unembedding is left out")
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

    @property
    def by_target(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the metrics of each target."""
        names: dict[str, tuple[str, ...]] = {}
        for column in self.columns:
            target, _, name = column.rpartition("/")
            names[target] = (*names.get(target, ()), name)
        return names

    def __call__(self, w_VD: Array) -> dict[str, Array]:
        """Return the metrics by column."""
        return {
            f"{target}/{name}": value
            for target, names in self.by_target.items()
            for name, value in summarize(VARIANTS[target](w_VD, self.norm), names).items()
        }


def not_recomputed(test: str, column: str) -> Finding:
    """Return the finding of a test that recomputes a metric, where it can't."""
    if split(column) is None:
        return untold(test, "only metrics of the unembedding are recomputed, and this isn't one")
    return untold(test, "no checkpoint has an unembedding to recompute it from")


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
