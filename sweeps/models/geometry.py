"""Any weights in, a table of their geometry out: a row a matrix, and one more where what logits can't see is taken out.

The verb `olmo-jax geometry`.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from geometry.gauge import NORMS, gauge_fix
from geometry.probe import summarize
from olmo_jax import weights
from olmo_jax.config import ConfigError
from olmo_jax.console import progress
from olmo_jax.weights import Model, Tensor, WeightsError

DEFAULT_METRICS = (
    "effective_rank", "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy", "condition_number",
    "isoscore",
)  # fmt: skip
RAW = "none"

# Ours and Hugging Face's, GPT-2's, Llama's and OLMo's own names of the two matrices that are vocabulary by width.
_EMBEDDINGS = re.compile(r"embed|lm_head|\bwte\b|transformer\.ff_out\.|^output\.weight$")
_NAMED_IN_ERRORS = 12


@dataclasses.dataclass(frozen=True)
class Row:
    """Metrics of one matrix, raw (gauge "none") or after `gauge_fix` for a norm; run and step of a run of ours."""

    name: str
    run_id: str | None
    step: int | None
    shape: tuple[int, ...]
    dtype: str
    gauge: str
    metrics: dict[str, float]


def measure(
    path: epath.PathLike,
    run_id: str | None = None,
    step: int | None = None,
    pattern: str | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    gauge: str | None = None,
) -> list[Row]:
    """Measures the matrices of any weights in float32, one after another.

    Args:
      path, run_id, step: as of `weights.models`.
      pattern: a tensor's name, which takes that one alone, or a regular expression that is searched for in names; None
        takes what looks like an embedding or an unembedding, or every matrix where nothing does. What isn't a matrix
        is left out.
      metrics: names of geometry.probe.METRICS.
      gauge: one of geometry.gauge.NORMS adds a row a matrix, and "none" adds none. None adds one to the unembedding of
        our own runs, for the norm that they have.

    Raises:
      ConfigError: an expression, a metric or a gauge that is none.
      WeightsError, CheckpointError: nothing to read or nothing to measure.
    """
    _check(metrics, gauge)
    rows: list[Row] = []
    models = weights.models(path, run_id, step)
    with _shown(len(models)) as models_done:
        for i, model in enumerate(models):
            tensors = model.tensors()
            chosen = _choose(tensors, pattern)
            with _shown(len(chosen) if len(models) == 1 else 0) as tensors_done:
                for j, tensor in enumerate(chosen):
                    rows += _rows(model, tensor, metrics, gauge)
                    tensors_done(j + 1, "")
            models_done(i + 1, "")
    if not rows:
        raise WeightsError(_nothing(path, tensors, pattern))
    return rows


def lines(rows: Sequence[Row]) -> list[str]:
    """The rows in aligned columns with a heading, numbers to 4 significant digits, "-" for NaN."""
    ours = any(row.run_id is not None for row in rows)
    heading = [*(("run", "step") if ours else ()), "tensor", "shape", "dtype", *rows[0].metrics]
    cells = [heading]
    for row in rows:
        name = row.name if row.gauge == RAW else f"{row.name} (gauge-fixed)"
        values = ["-" if math.isnan(value) else f"{value:.4g}" for value in row.metrics.values()]
        run = (str(row.run_id), str(row.step)) if ours else ()
        cells.append([*run, name, _shape(row.shape), row.dtype, *values])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    texts = {"run", "tensor", "shape", "dtype"}
    left = [title in texts for title in heading]
    aligned = [
        [cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(line, widths, left, strict=True)]
        for line in cells
    ]
    return ["  ".join(line).rstrip() for line in aligned]


def as_json(path: str, rows: Sequence[Row]) -> dict[str, Any]:
    """What `geometry --json` prints; a metric that isn't finite is null."""

    def of(row: Row) -> dict[str, Any]:
        metrics = {name: value if math.isfinite(value) else None for name, value in row.metrics.items()}
        return dataclasses.asdict(row) | {"metrics": metrics}

    return {"path": path, "tensors": [of(row) for row in rows]}


def _check(metrics: Sequence[str], gauge: str | None) -> None:
    try:
        # Traced and not run: refuses unknown names before anything large is read.
        jax.eval_shape(lambda x: summarize(x, metrics), jax.ShapeDtypeStruct((2, 2), jnp.float32))
    except ValueError as error:
        raise ConfigError(f"--metrics={','.join(metrics)}: {error}") from error
    if gauge not in (None, RAW, *NORMS):
        raise ConfigError(f"--gauge={gauge}: needs one of {', '.join((RAW, *NORMS))}")


def _choose(tensors: list[Tensor], pattern: str | None) -> list[Tensor]:
    matrices = [tensor for tensor in tensors if tensor.is_matrix]
    if pattern is not None:
        return [tensor for tensor in _matching(tensors, pattern) if tensor.is_matrix]
    return [tensor for tensor in matrices if re.search(_EMBEDDINGS, tensor.name)] or matrices


def _matching(tensors: list[Tensor], pattern: str) -> list[Tensor]:
    """The tensors that an expression stands for; of one that is a tensor's name, that one alone."""
    if exact := [tensor for tensor in tensors if tensor.name == pattern]:
        return exact
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"--tensors={pattern}: no tensor's name, and not a regular expression ({error}); write \\ before . [ ( *"
        ) from error
    return [tensor for tensor in tensors if expression.search(tensor.name)]


def _rows(model: Model, tensor: Tensor, metrics: Sequence[str], gauge: str | None) -> list[Row]:
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and its metrics NaN
        x_ND = jnp.asarray(tensor.read().astype(np.float32))
    if gauge is None:
        gauge = tensor.norm or RAW
    matrices = {RAW: x_ND} | ({} if gauge == RAW else {gauge: gauge_fix(x_ND, gauge)})
    return [
        Row(
            name=tensor.name,
            run_id=model.run_id,
            step=model.step,
            shape=tensor.shape,
            dtype=tensor.dtype,
            gauge=of,
            metrics={name: float(value) for name, value in summarize(matrix_ND, metrics).items()},
        )
        for of, matrix_ND in matrices.items()
    ]


def _nothing(path: epath.PathLike, tensors: list[Tensor], pattern: str | None) -> str:
    matching = tensors if pattern is None else _matching(tensors, pattern)
    listed = [f"{tensor.name} [{_shape(tensor.shape)}] {tensor.dtype}" for tensor in matching or tensors]
    more = f" and {len(listed) - _NAMED_IN_ERRORS} more" if len(listed) > _NAMED_IN_ERRORS else ""
    there = ", ".join(listed[:_NAMED_IN_ERRORS]) + more or "none at all"
    if pattern is not None and not matching:
        return f"{path}: no tensor matches --tensors={pattern}; there are: {there}"
    of = "" if pattern is None else f" that matches --tensors={pattern}"
    return f"{path}: no tensor{of} is a matrix of real numbers, and nothing else is measured: {there}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _shown(total: int) -> contextlib.AbstractContextManager[Callable[[int, str], None]]:
    """Progress where there is more than one thing to wait for."""
    return progress("geometry", total) if total > 1 else contextlib.nullcontext(lambda done, note: None)
