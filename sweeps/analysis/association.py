"""Associate every geometry metric with every loss by every method, in one tidy table, with one correction for all."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.blocks import Pair
from sweeps.analysis.correlation import Form, many, partial_slopes
from sweeps.analysis.estimate import Estimate, nothing
from sweeps.analysis.mixed import mixed_fit
from sweeps.analysis.r2 import baseline_columns, increments
from sweeps.analysis.ranks import q_values
from sweeps.analysis.seed_noise import seed_deviations
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import (
    FIRST_TARGETS,
    PRIMARY_PAIR,
    controls_of,
    final_rows,
    geometry_columns,
    last_rows,
    loss_columns,
    missing_as_level,
    target_of,
)

FORMS: dict[str, Form] = {"raw": "rank", "partial rank": "rank", "partial factor": "factor"}
METHODS = (*FORMS, "incremental R2", "mixed effects")
COLUMNS = (
    "metric", "target", "method", *Estimate._fields[:-1], "q_value", "n", "seed_sds", "variance_inflation",
    "with_diverged", "left_out", "note",
)  # fmt: skip

# A mixed model needs one fit per pair, so only these metrics of the first targets are fitted, with the in-domain loss
# and the fine-tuning losses.
_MIXED_METRICS = ("effective_rank_percent", "mean_cosine", "partition_isotropy", "isoscore")
_MIXED_LOSSES = 6
_SIZE = "parameters_non_embedding"


class _Association(NamedTuple):
    """One association. `effect` is the corresponding change of the target, in its units."""

    estimate: Estimate
    note: str
    effect: float = np.nan
    variance_inflation: float = np.nan


def associations(table: pd.DataFrame, groups: str = "configuration") -> pd.DataFrame:
    """Return the associations of every geometry metric with every loss, over final rows of runs that didn't diverge.

    Methods: "raw", Spearman; "partial rank" and "partial factor", Spearman given the settings that vary; "incremental
    R2" over size, compute and tokens; "mixed effects", for a few metrics with in-domain loss and fine-tuning losses,
    given the settings, with size as group.

    Returns:
      One row per (metric, target, method), PRIMARY_PAIR first:
      estimate, low, high, p_value, n, note: as in the functions of each method; the note says why a value is missing.
      q_value: p_value corrected by Benjamini and Hochberg over all rows except those of PRIMARY_PAIR, which was
        declared beforehand and has none.
      seed_sds: the change of the target, in units of its standard deviation over seeds: for correlations, per standard
        deviation of the metric's residual given the controls, by least squares; for R2, the reduction of the root mean
        squared error; for mixed effects, per standard deviation of the metric. NaN without replicates.
      variance_inflation: that of the metric given the baseline of R2.
      with_diverged: the estimate that includes the last rows of diverged runs; NaN where none diverged.
      left_out: number of runs that diverged or didn't finish.
    """
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    final = final_rows(table)
    controls = controls_of(final.rows)
    results = _associations(final.rows, controls, groups)
    with_diverged = _associations(last_rows(table), controls, groups) if final.diverged else {}
    deviations = seed_deviations(final.rows, loss_columns(table), groups)
    deviations = deviations.where(deviations > 0)
    rows = [
        {
            **dict(zip(("metric", "target", "method"), key, strict=True)),
            **result.estimate._asdict(),
            "seed_sds": result.effect / deviations[key[1]],
            "variance_inflation": result.variance_inflation,
            "with_diverged": with_diverged[key].estimate.estimate if key in with_diverged else np.nan,
            "left_out": final.diverged + final.unfinished,
            "note": result.note,
        }
        for key, result in results.items()
    ]
    tidy = pd.DataFrame(rows, columns=list(COLUMNS))
    tidy["q_value"] = corrected(tidy)
    primary = _is_primary(tidy)
    return pd.concat([tidy[primary], tidy[~primary]], ignore_index=True)


def corrected(tests: pd.DataFrame) -> np.ndarray:
    """Return Benjamini and Hochberg's q-values of rows with metric, target, p_value, over all except PRIMARY_PAIR."""
    return q_values(tests["p_value"].mask(_is_primary(tests)).to_numpy(dtype=float))


def _is_primary(rows: pd.DataFrame) -> pd.Series:
    return (rows["metric"] == PRIMARY_PAIR[0]) & (rows["target"] == PRIMARY_PAIR[1])


def _associations(rows: pd.DataFrame, controls: Sequence[str], groups: str) -> dict[tuple[str, str, str], _Association]:
    rows = missing_as_level(rows, controls)
    metrics, targets = geometry_columns(rows), loss_columns(rows)
    results: dict[tuple[str, str, str], _Association] = {}
    for method, form in FORMS.items():
        used = () if method == "raw" else tuple(controls)
        slopes = partial_slopes(rows, metrics, targets, used, form)
        for pair, (estimate, note) in many(rows, metrics, targets, used, form, groups).items():
            results[*pair, method] = _Association(estimate, note, slopes[pair])
            if method != "raw" and not controls:
                why = "no setting varies, so there is nothing to control for"
                results[*pair, method] = _Association(nothing(estimate.n), why)
    for pair, r in increments(rows, metrics, targets, baseline_columns(rows), groups).items():
        results[*pair, "incremental R2"] = _Association(r.estimate, r.note, r.error_reduction, r.variance_inflation)
    for pair in _mixed_pairs(rows, metrics, targets):
        fit = mixed_fit(rows, *pair, controls, _SIZE, groups)
        effect = np.nan if fit.target_in_logs else fit.estimate.estimate
        results[*pair, "mixed effects"] = _Association(fit.estimate, fit.note, effect)
    in_order = itertools.product(targets, metrics, METHODS)
    return {key: results[key] for t, m, method in in_order if (key := (m, t, method)) in results}


def _mixed_pairs(rows: pd.DataFrame, metrics: list[str], targets: list[str]) -> list[Pair]:
    if _SIZE not in rows:
        return []
    selected = [m for m in metrics if target_of(m) in FIRST_TARGETS and m.rpartition("/")[2] in _MIXED_METRICS]
    tuned = catalog_of(rows).select(kind="loss", after="finetune", domain="target")
    losses = [t for t in targets if t == PRIMARY_PAIR[1] or t in tuned]
    return [(metric, target) for target in losses[:_MIXED_LOSSES] for metric in selected]
