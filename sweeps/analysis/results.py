"""Compute all statistics of a sweep, once for the page, the figures and the tables of a paper."""

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

# A function of the table, the curves by run id and the fine-tuning curves that returns what the study reports.
StudyAnalysis = Callable[[pd.DataFrame, Mapping[str, pd.DataFrame], pd.DataFrame | None], Any]

_SIZES = ("d_model", "n_layers", "n_heads", "d_ff")
# Columns added to an empty table, so that the analyses needn't check for them.
_LEAST = ("run_id", "configuration", "step", "final", "diverged_at")


class AnalysisResults(NamedTuple):
    """The results from which the page and the figures are made.

    Attributes:
      table: one row per (run, checkpoint). curves: metrics.jsonl of each run, by run id.
      final: the last rows, which the statistics use, and how many runs they leave out.
      settings: columns of the settings that differ between runs.
      associations: one row per (metric, target, method); see `associations`.
      variance: one row per (column, setting); see `variance_split`.
      prediction, importance: see `predict`. early: see `predict_early`.
      saturation: see `saturation_of`.
      courses: fine-tuning curves; see sweeps.table.curves. studies: the result of each study, by its name.
      joined: what each study made of a published table, by its name; see `Study.join`.
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
    joined: Mapping[str, pd.DataFrame] = MappingProxyType({})


def analyze(
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    courses: pd.DataFrame | None = None,
    studies: Mapping[str, StudyAnalysis] = MappingProxyType({}),
) -> AnalysisResults:
    """Return all statistics of a sweep.

    Args:
      table: one row per (run, checkpoint); see sweeps.table.
      curves: metrics.jsonl of each run, by run id; geometry is NaN except at probe steps. Runs may be missing.
      courses: fine-tuning curves; see sweeps.table.curves.
      studies: further analyses, by the names under which their results are returned.
    """
    # Imported late, as every command imports this package.
    from threadpoolctl import threadpool_limits

    # The matrices are so small that synchronising several BLAS threads takes longer than multiplying with one.
    with threadpool_limits(limits=1, user_api="blas"):
        if table.empty:
            table = table.reindex(columns=list(dict.fromkeys([*_LEAST, *table.columns])))
        final, predicted = final_rows(table), predict(table)
        columns = [*geometry_columns(table), *loss_columns(table)]
        return AnalysisResults(
            table=table,
            curves=curves,
            final=final,
            settings=controls_of(table),
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
    """Return the settings with parameters_non_embedding instead of those that determine a model's size.

    Width, depth and heads vary together in a suite of sizes, so each would get a part of the effect of size.
    """
    size_settings = [s for s in settings if s.removeprefix("config.model.") in _SIZES]
    if len(size_settings) < 2 or "parameters_non_embedding" not in rows:
        return settings
    return ["parameters_non_embedding", *(s for s in settings if s not in size_settings)]
