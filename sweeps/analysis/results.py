"""All statistics of a sweep, computed once for the page, the figures and the tables of a paper."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from sweeps.analysis.association import associations
from sweeps.analysis.early import predict_early
from sweeps.analysis.prediction import predict
from sweeps.analysis.saturation import Saturation, saturation_of
from sweeps.analysis.variance import variance_split
from sweeps.table.columns import FinalRows, controls_of, final_rows, geometry_columns, loss_columns

# From the table, the curves by run id and the fine-tuning curves to whatever the study reports.
StudyAnalysis = Callable[[pd.DataFrame, Mapping[str, pd.DataFrame], pd.DataFrame | None], Any]

_SIZES = ("d_model", "n_layers", "n_heads", "d_ff")
# What a table without a row still has, so that the rest needn't ask.
_LEAST = ("run_id", "configuration", "step", "final", "diverged_at")


class AnalysisResults(NamedTuple):
    """What the page and the figures are made from.

    Attributes:
      table: one row a (run, checkpoint). curves: metrics.jsonl of each run, by run id.
      final: the last rows that the statistics are of, and how many runs they leave out.
      settings: columns of the settings that differ between runs.
      associations: a row a (metric, target, method); see `associations`.
      variance: a row a (column, setting); see `variance_split`.
      prediction, importance: see `predict`. early: see `predict_early`.
      saturation: see `saturation_of`.
      courses: of fine-tuning; see sweeps.table.curves. studies: what each study says of the sweep, by its name.
    """

    table: pd.DataFrame
    curves: Mapping[str, pd.DataFrame]
    final: FinalRows
    settings: list[str]
    associations: pd.DataFrame
    variance: pd.DataFrame
    prediction: pd.DataFrame
    importance: pd.DataFrame
    early: pd.DataFrame
    saturation: Saturation
    courses: pd.DataFrame = pd.DataFrame()
    studies: Mapping[str, Any] = MappingProxyType({})


def analyze(
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    courses: pd.DataFrame | None = None,
    studies: Mapping[str, StudyAnalysis] = MappingProxyType({}),
) -> AnalysisResults:
    """Return all statistics of a sweep.

    Args:
      table: one row a (run, checkpoint); see sweeps.table.
      curves: metrics.jsonl of each run, by run id; geometry is NaN but at probe steps. A run may be lacking.
      courses: of fine-tuning; see sweeps.table.curves.
      studies: further analyses, by the names under which their results come back.
    """
    # Here and not above: the command line imports this package at each command.
    from threadpoolctl import threadpool_limits

    # The matrices are small: several threads of BLAS take longer to meet than one takes to multiply.
    with threadpool_limits(limits=1, user_api="blas"):
        return _analyze(table, curves, courses, studies)


def _analyze(
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    courses: pd.DataFrame | None,
    studies: Mapping[str, StudyAnalysis],
) -> AnalysisResults:
    if table.empty:
        table = table.reindex(columns=list(dict.fromkeys([*_LEAST, *table.columns])))
    final = final_rows(table)
    settings = controls_of(table)
    columns = [*geometry_columns(table), *loss_columns(table)]
    predicted = predict(table)
    return AnalysisResults(
        table=table,
        curves=curves,
        final=final,
        settings=settings,
        associations=associations(table),
        variance=variance_split(final.rows, columns, with_size(final.rows, controls_of(final.rows))),
        prediction=predicted.prediction,
        importance=predicted.importance,
        early=predict_early(table, curves),
        saturation=saturation_of(table),
        courses=pd.DataFrame() if courses is None else courses,
        studies={name: analysis(table, curves, courses) for name, analysis in studies.items()},
    )


def with_size(rows: pd.DataFrame, settings: list[str]) -> list[str]:
    """The settings with parameters_non_embedding in place of those that make up a model's size.

    Width, depth and heads vary together in a suite of sizes, and each alone would get a part of what size does.
    """
    of_size = [s for s in settings if s.removeprefix("config.model.") in _SIZES]
    if len(of_size) < 2 or "parameters_non_embedding" not in rows:
        return settings
    return ["parameters_non_embedding", *(s for s in settings if s not in of_size)]
