"""Measure the geometry of any weights, in one table: `olmo-jax geometry`.

Each matrix has one row and, on request, a second one without the directions that don't affect the logits.
"""

import contextlib
import dataclasses
import functools
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
from olmo_jax.hf.hub import PREFIX
from olmo_jax.weights import Model, Tensor, WeightsError
from sweeps.histories.choice import Revisions
from sweeps.histories.history import lazy_tensors, open_history

DEFAULT_METRICS = (
    "effective_rank", "effective_rank_percent", "stable_rank", "mean_cosine", "partition_isotropy", "condition_number",
    "isoscore",
)  # fmt: skip
RAW = "none"

# Names of the embedding and unembedding in our checkpoints and in those of Hugging Face, GPT-2, Llama and OLMo.
_EMBEDDINGS = re.compile(r"embed|lm_head|\bwte\b|transformer\.ff_out\.|^output\.weight$")
_NAMED_IN_ERRORS = 12


@dataclasses.dataclass(frozen=True)
class Row:
    """Metrics of one matrix, raw (gauge "none") or after `gauge_fix` for a norm, with run and step if it has them."""

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
    revisions: str = "",
) -> list[Row]:
    """Measure the matrices of any weights in float32, one after another.

    Args:
      path, run_id, step: as in `weights.models`; or hub:OWNER/NAME, of which only the bytes of the measured tensors are
        read, and rows have the revision as run_id.
      revisions: of a repository on the hub, as Revisions takes them; "" for the last one.
      pattern: the name of one tensor, or a regular expression that is searched for in names; None chooses what looks
        like an embedding or an unembedding, or every matrix if nothing does. Tensors that aren't matrices are left out.
      metrics: names of geometry.probe.METRICS.
      gauge: one of geometry.gauge.NORMS adds one row per matrix, "none" adds none. None adds one for the unembedding of
        a working directory's runs, with their norm.

    Raises:
      ConfigError: an invalid expression, metric or gauge.
      WeightsError, CheckpointError, HubError: there is nothing to read or nothing to measure.
    """
    _check(metrics, gauge)
    if str(path).startswith(PREFIX) and not (run_id is None and step is None):
        raise ConfigError(f"{path}: its checkpoints are chosen with --revisions, not with --run or --step")
    if revisions and not str(path).startswith(PREFIX):
        raise ConfigError(f"--revisions={revisions}: is for hub:OWNER/NAME; leave it out")
    rows: list[Row] = []
    models = _of_history(str(path), revisions) if str(path).startswith(PREFIX) else weights.models(path, run_id, step)
    with _progress(len(models)) as models_done:
        for i, model in enumerate(models):
            tensors = model.tensors()
            chosen = _choose(tensors, pattern)
            with _progress(len(chosen) if len(models) == 1 else 0) as tensors_done:
                for j, tensor in enumerate(chosen):
                    rows += _rows(model, tensor, metrics, gauge)
                    tensors_done(j + 1, "")
            models_done(i + 1, "")
    if not rows:
        raise WeightsError(_nothing_measured(path, tensors, pattern))
    return rows


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the rows in aligned columns with a heading, numbers to 4 significant digits, "-" for NaN."""
    of_runs = any(row.run_id is not None for row in rows)
    heading = [*(("run", "step") if of_runs else ()), "tensor", "shape", "dtype", *rows[0].metrics]
    cells = [heading]
    for row in rows:
        name = row.name if row.gauge == RAW else f"{row.name} (gauge-fixed)"
        values = ["-" if math.isnan(value) else f"{value:.4g}" for value in row.metrics.values()]
        run = (str(row.run_id), str(row.step)) if of_runs else ()
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
    """Return what `geometry --json` prints; a metric that isn't finite is null."""

    def row_json(row: Row) -> dict[str, Any]:
        metrics = {name: value if math.isfinite(value) else None for name, value in row.metrics.items()}
        return dataclasses.asdict(row) | {"metrics": metrics}

    return {"path": path, "tensors": [row_json(row) for row in rows]}


def _of_history(source: str, revisions: str) -> list[Model]:
    """Return the revisions of a repository as models."""
    checkpoints = open_history(source, Revisions(revisions or "1")).checkpoints
    return [Model(c.name, c.step, functools.partial(lazy_tensors, c)) for c in checkpoints]


def _check(metrics: Sequence[str], gauge: str | None) -> None:
    try:
        # Traced without running, to refuse unknown names before anything large is read.
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
    """Return the tensor of this name, or else those whose names match the expression."""
    if exact := [tensor for tensor in tensors if tensor.name == pattern]:
        return exact
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"--tensors={pattern}: neither a tensor's name nor a regular expression ({error}); write \\ before . [ ( *"
        ) from error
    return [tensor for tensor in tensors if expression.search(tensor.name)]


def _rows(model: Model, tensor: Tensor, metrics: Sequence[str], gauge: str | None) -> list[Row]:
    with np.errstate(over="ignore"):  # overflow gives infinities, and metrics NaN
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
            gauge=norm,
            metrics={name: float(value) for name, value in summarize(matrix_ND, metrics).items()},
        )
        for norm, matrix_ND in matrices.items()
    ]


def _nothing_measured(path: epath.PathLike, tensors: list[Tensor], pattern: str | None) -> str:
    """Return the message for weights without a matrix to measure; it lists the tensors."""
    matching = tensors if pattern is None else _matching(tensors, pattern)
    listed = [f"{tensor.name} [{_shape(tensor.shape)}] {tensor.dtype}" for tensor in matching or tensors]
    more = f" and {len(listed) - _NAMED_IN_ERRORS} more" if len(listed) > _NAMED_IN_ERRORS else ""
    names = ", ".join(listed[:_NAMED_IN_ERRORS]) + more or "none at all"
    if pattern is not None and not matching:
        return f"{path}: no tensor matches --tensors={pattern}; there are: {names}"
    condition = "" if pattern is None else f" that matches --tensors={pattern}"
    return f"{path}: no tensor{condition} is a matrix of real numbers, and only these are measured; there are: {names}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _progress(total: int) -> contextlib.AbstractContextManager[Callable[[int, str], None]]:
    """Return a progress display, which shows nothing if there is only one thing to measure."""
    return progress("geometry", total) if total > 1 else contextlib.nullcontext(lambda done, note: None)
