"""The matrices of a sweep's runs, on which tests of gauge and null recompute a metric."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from etils import epath
from jax import Array

from geometry.gauge import centred, gauge_fix
from geometry.probe import COUNTS, METRICS, Metric, summarize
from olmo_jax import weights
from olmo_jax.console import say
from olmo_jax.errors import CheckpointError, UserError, WeightsError, brief
from sweeps.judge.finding import Finding, untold

UNEMBEDDING = "unembedding"
# Of the probe's documents, or after a dot of a named text, which has no variants.
_STATES = re.compile(r"((?:final_states|layer_\d+)(\..+)?)(?:_centred)?")
# A matrix as the probe measures it, by the suffix of the target: a function of the matrix and of the final norm.
_VARIANTS: dict[str, Callable[[Array, str], Array]] = {
    "": lambda x_ND, norm: x_ND,
    "_centred": lambda x_ND, norm: centred(x_ND),
    "_gauge_fixed": gauge_fix,
}


def variant(target: str, x_ND: Array, norm: str) -> Array:
    """Return the matrix that a target of the probe stands for, made from its source."""
    return _VARIANTS[target.removeprefix(_source(target))](x_ND, norm)


def _source(target: str) -> str:
    """Return what a target is measured of: "unembedding", "final_states", "layer_0.train" and so on; "" for others."""
    if target in {UNEMBEDDING + suffix for suffix in _VARIANTS}:
        return UNEMBEDDING
    states = _STATES.fullmatch(target)
    return states[1] if states else ""


def source_of(column: str) -> str:
    """Return what matrix a column's metric is recomputed from; "" for a column that isn't recomputed."""
    target, _, name = column.rpartition("/")
    return _source(target) if name in METRICS and name not in COUNTS else ""


def is_of_text(target: str) -> bool:
    """Return whether a target is of states on a named text, as layer_0.train is."""
    states = _STATES.fullmatch(target)
    return states is not None and states[2] is not None


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
class Matrix:
    """A run's unembedding or states, in float32, one per row.

    Attributes:
      norm, norm_at: as in ModelConfig. source: see `source_of`. neighbors: those of local dimensions.
    """

    run_id: str
    x_ND: np.ndarray
    norm: str
    source: str = UNEMBEDDING
    norm_at: str = "before"
    neighbors: int = 128

    def is_like(self, other: "Matrix") -> bool:
        """Return whether all but the run and the numbers are the same, so that one compiled program measures both."""
        return (self.x_ND.shape, self.settings) == (other.x_ND.shape, other.settings)

    @property
    def settings(self) -> tuple[str, str, str, int]:
        return self.source, self.norm, self.norm_at, self.neighbors


def unembeddings(workdir: epath.Path, runs: Sequence[str]) -> list[Matrix]:
    """Return the unembeddings at the last checkpoints of runs, without padding; of runs that have one."""
    found = []
    for run in runs:
        try:
            (model,) = weights.models(workdir, run)
            tensors = [tensor for tensor in model.tensors() if tensor.norm is not None]
            found += [Matrix(run, tensor.read().astype(np.float32), str(tensor.norm)) for tensor in tensors]
        except (WeightsError, CheckpointError) as error:
            say(f"{run}: {error}; its unembedding is left out")
    return found


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Metrics of one source as a function of it, for models of one norm.

    Attributes:
      source, norm, norm_at, neighbors: as in Matrix. functions: those of the names, so that a redefined metric is
        compiled again.
    """

    columns: tuple[str, ...]
    source: str
    norm: str
    norm_at: str
    neighbors: int
    functions: tuple[Metric, ...]

    @classmethod
    def of(cls, columns: Iterable[str], matrix: Matrix) -> "Metrics":
        """Return those among the columns that are metrics of what the matrix, and those like it, are."""
        found = tuple(column for column in columns if source_of(column) == matrix.source)
        return cls(found, *matrix.settings, tuple(METRICS[column.rpartition("/")[2]] for column in found))

    @property
    def by_target(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the metrics of each target."""
        names: dict[str, tuple[str, ...]] = {}
        for column in self.columns:
            target, _, name = column.rpartition("/")
            names[target] = (*names.get(target, ()), name)
        return names

    def __call__(self, x_ND: Array) -> dict[str, Array]:
        """Return the metrics by column."""
        return {
            f"{target}/{name}": value
            for target, names in self.by_target.items()
            for name, value in summarize(variant(target, x_ND, self.norm), names, self.neighbors).items()
        }


def not_recomputed(test: str, column: str) -> Finding:
    """Return the finding of a test that recomputes a metric, where it can't."""
    if not source_of(column):
        return untold(test, "only metrics of the unembedding and of states are recomputed, and this isn't one")
    if is_of_text(source_of(column)):
        return untold(
            test, "on a text it is recomputed only if it is named in the command, and if checkpoint and text are left"
        )
    return untold(test, "neither checkpoint nor text is left to recompute it from")


def check_scalars(columns: Iterable[str], matrix: Matrix) -> None:
    """Raise MetricError unless each metric of an unembedding returns a scalar for a matrix of this shape."""
    shape = " x ".join(map(str, matrix.x_ND.shape))
    for column in Metrics.of(columns, matrix).columns:
        one = Metrics.of([column], matrix)
        try:
            struct = jax.eval_shape(one, jax.ShapeDtypeStruct(matrix.x_ND.shape, jnp.float32))[column]
        except Exception as error:  # the metric is the user's own code
            raise MetricError(
                f"{column}: fails on an unembedding of {shape}: {type(error).__name__}: {brief(error)}"
            ) from error
        if struct.shape != ():
            raise MetricError(
                f"{column}: returns an array of shape {struct.shape} for an unembedding of {shape}; return one number"
            )
