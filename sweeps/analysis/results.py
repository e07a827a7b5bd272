"""Everything that a sweep's table answers, computed once for the page, the figures and the tables of a paper."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from sweeps.analysis.association import associations
from sweeps.analysis.early import predict_early
from sweeps.analysis.prediction import predict
from sweeps.analysis.saturation import Saturation, saturation_of
from sweeps.analysis.variance import variance_split
from sweeps.studies.paper_b.claim import Claim
from sweeps.studies.paper_b.claims import claims
from sweeps.table.columns import FinalRows, controls_of, final_rows, geometry_columns, loss_columns

_SIZES = ("d_model", "n_layers", "n_heads", "d_ff")
# What a table without a row still has, so that the rest needn't ask.
_LEAST = ("run_id", "configuration", "step", "final", "diverged_at")


class Answers(NamedTuple):
    """What the page and the figures are made from.

    Attributes:
      table: one row a (run, checkpoint). curves: metrics.jsonl of each run, by run id.
      final: the last rows that the statistics are of, and how many runs they leave out.
      settings: columns of the settings that differ between runs.
      associations: a row a (metric, target, method); see `associations`.
      variance: a row a (column, setting); see `variance_split`.
      prediction, importance: see `predict`. early: see `predict_early`.
      saturation: see `saturation_of`.
      claims: see sweeps.studies.paper_b.claims. courses: of fine-tuning; see sweeps.table.curves.
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
    claims: Sequence[Claim] = ()
    courses: pd.DataFrame = pd.DataFrame()


def answer(table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None = None) -> Answers:
    """All answers of a sweep.

    Args:
      table: one row a (run, checkpoint); see sweeps.table.
      curves: metrics.jsonl of each run, by run id; geometry is NaN but at probe steps. A run may be lacking.
      courses: of fine-tuning; see sweeps.table.curves.
    """
    # Here and not above: the command line imports this package at each command.
    from threadpoolctl import threadpool_limits

    # The matrices are small: several threads of BLAS take longer to meet than one takes to multiply.
    with threadpool_limits(limits=1, user_api="blas"):
        return _answer(table, curves, courses)


def _answer(table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None) -> Answers:
    if table.empty:
        table = table.reindex(columns=list(dict.fromkeys([*_LEAST, *table.columns])))
    final = final_rows(table)
    settings = controls_of(table)
    columns = [*geometry_columns(table), *loss_columns(table)]
    predicted = predict(table)
    return Answers(
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
        claims=claims(table, curves, courses),
        courses=pd.DataFrame() if courses is None else courses,
    )


def with_size(rows: pd.DataFrame, settings: list[str]) -> list[str]:
    """The settings with parameters_non_embedding in place of those that make up a model's size.

    Width, depth and heads vary together in a suite of sizes, and each alone would get a part of what size does.
    """
    of_size = [s for s in settings if s.removeprefix("config.model.") in _SIZES]
    if len(of_size) < 2 or "parameters_non_embedding" not in rows:
        return settings
    return ["parameters_non_embedding", *(s for s in settings if s not in of_size)]
