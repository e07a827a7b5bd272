"""Every geometry metric against every loss by every method, in one tidy table, corrected together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.correlation import Form, many, partial_slopes
from sweeps.analysis.estimate import Estimate, nothing
from sweeps.analysis.mixed import mixed_table
from sweeps.analysis.r2 import baseline_columns, increments
from sweeps.analysis.seed_noise import seed_deviations
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

# A mixed model takes a fit a pair: these metrics of the first targets, against the loss and fine-tuning's.
_OF_MIXED_MODELS = ("effective_rank_percent", "mean_cosine", "partition_isotropy", "isoscore")
_LOSSES_OF_MIXED_MODELS = 6


class _Found(NamedTuple):
    """One association. `effect` is the change of the target that goes with it, in the target's units."""

    estimate: Estimate
    note: str
    effect: float = np.nan
    variance_inflation: float = np.nan


def associations(table: pd.DataFrame, groups: str = "configuration") -> pd.DataFrame:
    """Every geometry metric against every loss, over the final rows of the runs that didn't diverge.

    Methods: "raw", Spearman; "partial rank" and "partial factor", Spearman given the settings that vary; "incremental
    R2" over size, compute and tokens; "mixed effects", for a few metrics against in-domain loss and fine-tuning's,
    given the settings, with size as group.

    Returns:
      A row a (metric, target, method), PRIMARY_PAIR first:
      estimate, low, high, p_value, n, note: as the functions of each method say; the note says why a value is missing.
      q_value: p_value corrected by Benjamini and Hochberg over all rows but those of PRIMARY_PAIR, which was declared
        beforehand and has none.
      seed_sds: how much the target changes, in its standard deviations over seeds: for correlations with one standard
        deviation of what the controls leave of the metric, by least squares; for R2 the fall of the root mean squared
        error; for mixed effects with one standard deviation of the metric. NaN without replicates.
      variance_inflation: of the metric given the baseline of R2.
      with_diverged: the estimate with the last rows of diverged runs in; NaN where none diverged.
      left_out: runs that diverged or didn't finish.
    """
    if table.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    final = final_rows(table)
    controls = controls_of(final.rows)
    found = _associations(final.rows, controls, groups)
    diverged = _associations(last_rows(table), controls, groups) if final.diverged else {}
    deviations = seed_deviations(final.rows, loss_columns(table), groups)
    rows = []
    for (metric, target, method), one in found.items():
        deviation = deviations[target]
        row = {"metric": metric, "target": target, "method": method, **one.estimate._asdict(), "note": one.note}
        row["seed_sds"] = one.effect / deviation if deviation > 0 else np.nan
        row["variance_inflation"] = one.variance_inflation
        with_them = diverged.get((metric, target, method))
        row["with_diverged"] = with_them.estimate.estimate if with_them else np.nan
        rows.append(row | {"left_out": final.diverged + final.unfinished})
    result = pd.DataFrame(rows, columns=[c for c in COLUMNS if c != "q_value"])
    result.insert(COLUMNS.index("q_value"), "q_value", corrected(result))
    primary = (result["metric"] == PRIMARY_PAIR[0]) & (result["target"] == PRIMARY_PAIR[1])
    return pd.concat([result[primary], result[~primary]], ignore_index=True)


def corrected(found: pd.DataFrame) -> np.ndarray:
    """q-values of rows with metric, target and p_value: Benjamini and Hochberg's, over all but PRIMARY_PAIR."""
    from scipy import stats

    p_N = found["p_value"].to_numpy(dtype=float)
    primary_N = ((found["metric"] == PRIMARY_PAIR[0]) & (found["target"] == PRIMARY_PAIR[1])).to_numpy(dtype=bool)
    tested_N = np.isfinite(p_N) & ~primary_N
    q_N = np.full(len(p_N), np.nan)
    if tested_N.any():
        q_N[tested_N] = stats.false_discovery_control(p_N[tested_N])
    return q_N


def _associations(rows: pd.DataFrame, controls: Sequence[str], groups: str) -> dict[tuple[str, str, str], _Found]:
    rows = missing_as_level(rows, controls)
    metrics, targets = geometry_columns(rows), loss_columns(rows)
    by_method = {name: _correlations(rows, metrics, targets, controls, name, groups) for name in FORMS}
    by_method["incremental R2"] = _increments(rows, metrics, targets, groups)
    by_method["mixed effects"] = _mixed(rows, metrics, targets, controls, groups)
    pairs = [(metric, target) for target in targets for metric in metrics]
    return {(*pair, m): found[pair] for pair in pairs for m, found in by_method.items() if pair in found}


def _correlations(
    rows: pd.DataFrame, metrics: list[str], targets: list[str], controls: Sequence[str], name: str, groups: str
) -> dict[tuple[str, str], _Found]:
    used = () if name == "raw" else tuple(controls)
    found = many(rows, metrics, targets, used, FORMS[name], groups)
    if name != "raw" and not controls:
        why = "no setting varies, so there is nothing to control for"
        return {pair: _Found(nothing(estimate.n), why) for pair, (estimate, _) in found.items()}
    slopes = partial_slopes(rows, metrics, targets, used, FORMS[name])
    return {pair: _Found(estimate, note, slopes[pair]) for pair, (estimate, note) in found.items()}


def _increments(
    rows: pd.DataFrame, metrics: list[str], targets: list[str], groups: str
) -> dict[tuple[str, str], _Found]:
    found = increments(rows, metrics, targets, baseline_columns(rows), groups)
    return {
        pair: _Found(one.estimate, one.note, one.error_taken, one.variance_inflation) for pair, one in found.items()
    }


def _mixed(
    rows: pd.DataFrame, metrics: list[str], targets: list[str], controls: Sequence[str], groups: str
) -> dict[tuple[str, str], _Found]:
    size = "parameters_non_embedding"
    if size not in rows:
        return {}
    few = [m for m in metrics if target_of(m) in FIRST_TARGETS and m.rpartition("/")[2] in _OF_MIXED_MODELS]
    losses = [t for t in targets if t == PRIMARY_PAIR[1] or (t.startswith("finetune") and t.endswith("/target"))]
    pairs = [(metric, target) for target in losses[:_LOSSES_OF_MIXED_MODELS] for metric in few]
    fits = mixed_table(rows, pairs, controls, size, groups)
    return {
        (fit.metric, fit.target): _Found(
            Estimate(fit.estimate, fit.low, fit.high, fit.p_value, int(fit.n)),
            fit.note,
            np.nan if fit.target_in_logs else fit.estimate,
        )
        for fit in fits.itertuples(index=False)
    }
