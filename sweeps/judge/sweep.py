"""Read what metrics are judged by from working directories, and metrics from files of the user's."""

import difflib
import runpy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from etils import epath

from eval.suite import BUILT_IN
from geometry.probe import METRICS
from olmo_jax.errors import brief
from sweeps.judge import kept, probing
from sweeps.judge.card import Evidence, has_interventions, observational
from sweeps.judge.matrices import (
    UNEMBEDDING,
    Matrix,
    MetricError,
    check_scalars,
    is_of_text,
    shapes,
    source_of,
    unembeddings,
)
from sweeps.judge.probe_configs import can_probe
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import AnalysisError, final_rows, geometry_columns
from sweeps.table.rates import PREFIX, is_rate, with_rates
from sweeps.table.table import read_table

_MOST_MATRICES = 12
# Kinds of columns that aren't metrics of a model but what they would predict, or what it was trained with.
_NO_METRICS = ("loss", "change", "task", "identity", "setting", "training", "count")


def column_of(metric: str, table: pd.DataFrame) -> str:
    """Return the column of a metric that is given as a column, a registered name (of the unembedding), or a file.

    `rate/` before a column or a name means its change since the checkpoint before, per ln(tokens).

    Raises MetricError for none of these, or a file that doesn't define one metric.
    """
    if is_rate(metric):
        of = metric.removeprefix(PREFIX)
        if of not in table and of in METRICS:
            of = f"unembedding/{of}"
        if of not in table:
            raise MetricError(
                f"{metric}: a rate needs a column that the table has at several checkpoints; it lacks {of}"
            )
        return f"{PREFIX}{column_of(of, table)}"
    if metric.endswith(".py"):
        return f"unembedding/{_metric_in(metric)}"
    if metric in table:
        column = catalog_of(table)[metric]
        if column.kind in _NO_METRICS or column.of.get("statistic") in ("bits_per_byte", "perplexity"):
            raise MetricError(
                f"{metric}: is {column.kind}, and what is judged is a metric of geometry; `--all` lists them"
            )
        return metric
    if can_probe(metric):
        return metric
    if metric in METRICS:
        return f"unembedding/{metric}"
    known = [*METRICS, *geometry_columns(table)]
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else "; `--all` lists those of this sweep"
    kind = metric.partition("/")[0]
    if kind in BUILT_IN and (section := BUILT_IN[kind].section):
        hint = (
            f"; results of {kind} come from `olmo-jax evaluate --only={kind}` with config.evaluation.{section}, and "
            "into the table by `olmo-jax report`"
        )
    raise MetricError(f"{metric}: is no column of the table, no registered metric and no .py file{hint}")


def _metric_in(file: str) -> str:
    if not Path(file).is_file():
        raise MetricError(f"{file}: no such file")
    before = dict(METRICS)
    try:
        runpy.run_path(file)
    except Exception as error:  # the user's own code
        raise MetricError(f"{file}: {type(error).__name__}: {brief(error)}") from error
    new = [name for name, function in METRICS.items() if before.get(name) is not function]
    if len(new) != 1:
        raise MetricError(f"{file}: defines {len(new)} metrics with @metric ({', '.join(new) or 'none'}); define one")
    return new[0]


def evidence(
    workdir: epath.Path,
    table: pd.DataFrame,
    columns: Sequence[str],
    interventions: epath.Path | None = None,
    reads_texts: bool = True,
) -> Evidence:
    """Return what the metrics in these columns are judged by; metrics that a table lacks are computed from checkpoints.

    Args:
      table: that of the working directory. interventions: the working directory of a sweep that has some.
      reads_texts: recompute metrics of states on named texts as well, for gauge and null. Local dimensions of thousands
        of states take minutes.

    Raises:
      AnalysisError: no table of interventions, or one without interventions where some are expected.
      MetricError: a metric of the unembedding that returns something other than a number, or fails on one.
      CheckpointError, DataError: a table lacks a metric, and checkpoints or data to compute it from are gone.
    """
    table = _with_values(workdir, table, columns)
    other = None
    if interventions is not None:
        other = _with_values(interventions, read_table(interventions), columns)
        if not has_interventions(other):
            raise AnalysisError(f"--interventions={interventions}: no finished run has an intervention")
    sources = {source_of(column) for column in columns} - {""}
    sources = {source for source in sources if reads_texts or not is_of_text(source)}
    runs = _some_runs(observational(table)) if sources else []
    matrices = _of_one_shape(unembeddings(workdir, runs)) if UNEMBEDDING in sources else []
    if states := sorted(sources - {UNEMBEDDING}):
        matrices += _of_one_shape(probing.states(workdir, states, runs))
    return Evidence.of(table, matrices, other)


def _of_one_shape(matrices: Sequence[Matrix]) -> list[Matrix]:
    """Return the matrices of each source that are like its first."""
    first: dict[str, Matrix] = {}
    return [matrix for matrix in matrices if matrix.is_like(first.setdefault(matrix.source, matrix))]


def _with_values(workdir: epath.Path, table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table with those of the columns that it lacks, at the last row of each finished run."""
    rates = [column for column in columns if is_rate(column) and column.removeprefix(PREFIX) in table]
    table = with_rates(table, rates) if rates else table
    lacking = [column for column in columns if column not in table and can_probe(column)]
    if not lacking:
        return table
    runs = final_rows(table).rows["run_id"].tolist()
    for matrix in unembeddings(workdir, runs[:1]):
        check_scalars(lacking, matrix)
    measured = kept.values(workdir, lacking, runs)
    is_last = table["final"].fillna(False).astype(bool)
    added = {column: table["run_id"].map(measured[column]).where(is_last) for column in lacking}
    result = table.assign(**added)
    result.attrs = table.attrs
    return result


def _some_runs(rows: pd.DataFrame) -> list[str]:
    """Return runs of the shape that most configurations have, each of another configuration if there are enough."""
    if rows.empty:
        return []
    labels = shapes(rows)
    rows = rows[labels == rows.groupby(labels)["configuration"].nunique().idxmax()]
    first = [*rows.drop_duplicates("configuration")["run_id"]]
    runs = first + [run for run in rows["run_id"] if run not in set(first)]
    if len(first) > _MOST_MATRICES:
        return [first[i] for i in np.linspace(0, len(first) - 1, _MOST_MATRICES).round().astype(int)]
    return runs[:_MOST_MATRICES]
