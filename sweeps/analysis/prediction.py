"""Test whether geometry helps to predict a loss beyond the settings, with nonlinear models too.

Letters: N rows, K regressors, E targets, X sets of columns.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.blocks import by_missing
from sweeps.analysis.encode import in_logs_if_wide, standardised, usable
from sweeps.analysis.estimate import estimated, join_notes
from sweeps.analysis.features import (
    MAX_GEOMETRY,
    Features,
    geometry_candidates,
    joined,
    measured,
    measured_features,
    setting_features,
)
from sweeps.analysis.folds import DRAWS, group_codes, no_interval, out_of_fold, require_nested_folds, shares
from sweeps.analysis.regressors import boosting, gaussian_process, ridge
from sweeps.analysis.scores import COLUMNS as SCORE_COLUMNS
from sweeps.analysis.scores import GAIN, Row, missing_scores, score_table, scores
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import PRIMARY_PAIR, final_rows, loss_columns, numbers, require_column

_OF = ("target", "model")
COLUMNS = (*_OF, *SCORE_COLUMNS)
IMPORTANCE_COLUMNS = (*_OF, "feature", "importance", "low", "high")
_REGRESSIONS = {"gradient boosting": boosting, "Gaussian process": gaussian_process, "linear": ridge}
MODELS = tuple(_REGRESSIONS)
SETTINGS, BOTH = "settings", "settings and geometry"
ALL_SETTINGS, ALL_GEOMETRY = "all settings", "all geometry"
SPLITS = 2


class Prediction(NamedTuple):
    """Tables of R2, one row per (target, model, features), and of each column's importance; see `predict`."""

    prediction: pd.DataFrame
    importance: pd.DataFrame


def predict(table: pd.DataFrame, targets: Sequence[str] | None = None, groups: str = "configuration") -> Prediction:
    """Return out-of-fold R2 of losses predicted from settings, and from settings and geometry, by three models.

    The rows are final rows of runs that didn't diverge. Settings are those of `setting_features`; geometry is that of
    the last row, at most 12 metrics of `geometry_candidates`, without constants, copies and metrics missing in more
    than 20 % of the rows. Both sets of features are tested on the same rows. Columns and target are encoded by the rule
    of `encode`.

    Models: gradient boosting, a Gaussian process and, for reference, a ridge; see `regressors`. The folds are nested:
    5 outer folds of shuffled groups, 2 splits with seeds 0 and 1; penalties are chosen within the other four, in
    grouped folds or by marginal likelihood. R2 is pooled over folds and averaged over splits. "geometry's gain" is R2
    with geometry minus R2 without. Each model can leave geometry out if it doesn't help in the inner folds, so that
    uninformative geometry has a gain near 0, or of exactly 0, in which case the note says so. A negative gain is the
    cost of columns that seemed to help.

    The 95 % intervals are percentile intervals of 2,000 draws of whole groups, with a fixed seed and so paired, over
    the squared errors out of fold: they reflect the sampling of rows, conditional on the fits.

    Importance is the out-of-fold R2 lost when a column takes its values from other rows, with 5 permutations per split.
    It is that of the model with settings and geometry. Correlated columns can replace each other, so that each seems
    unimportant; or permuting one makes rows unlike any run, so that each seems too important. The rows "all settings"
    and "all geometry" permute all columns of a kind at once. At most 2 can be lost, by a model all of whose columns
    come from another row.

    Args:
      table: one row per (run, checkpoint). targets: loss columns, by default those of `predicted_losses`.
      groups: column that is equal for runs which differ only in their seeds.

    Returns:
      prediction: target, model, features ("settings", "settings and geometry", "geometry's gain"), r2, low, high, n,
      note. With fewer than 10 groups or 8 rows, a constant target or no geometry, r2 is NaN, and the note says why;
      with fewer than 14 groups, low and high are NaN. importance: target, model, feature, importance, low, high; only
      where it could be computed.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a target that holds something other than numbers.

    Source: models of scikit-learn; folds, intervals, penalties and the choice of columns are [ours].
    """
    for name in targets or ():
        require_column(table, name)
    names = predicted_losses(table) if targets is None else list(dict.fromkeys(targets))
    prediction: list[Row] = []
    importance: list[Row] = []
    if names:
        require_column(table, groups)
        rows = final_rows(table).rows
        rows = rows[usable(rows, [groups])]
        for same_rows, _, mask_N in by_missing(rows, names):
            scored, lost = _predict(rows[mask_N], same_rows, groups)
            prediction, importance = prediction + scored, importance + lost
    in_order = [sorted(part, key=lambda row: names.index(row["target"])) for part in (prediction, importance)]
    lost_table = pd.DataFrame(in_order[1], columns=list(IMPORTANCE_COLUMNS))
    return Prediction(
        score_table(in_order[0], _OF), lost_table.astype(dict.fromkeys(("importance", "low", "high"), float))
    )


def predicted_losses(table: pd.DataFrame) -> list[str]:
    """Return up to four losses that represent the others, as far as the table has them [ours].

    The in-domain loss; the out-of-domain loss, or else the mean over domains; in-domain loss after quantisation to the
    fewest bits, by GPTQ rather than rounding; loss on the fine-tuning text, at the best learning rate if available.
    """
    catalog, losses = catalog_of(table), loss_columns(table)
    quantised = catalog.select(kind="loss", after="quantize", scope="blocks", domain="in_domain")
    fewest = sorted(quantised, key=lambda c: [catalog[c].of.get(key, 0) for key in ("bits", "group", "method")])
    tuned = catalog.select(kind="loss", after="finetune", domain="target")
    choices = [
        [PRIMARY_PAIR[1]],
        ["lm_loss/out_of_domain", "lm_loss/macro"],
        fewest,
        sorted(tuned, key=lambda c: catalog[c].of["rate"] != "best"),
    ]
    return [available[0] for choice in choices if (available := [c for c in choice if c in losses])]


def _predict(rows: pd.DataFrame, targets: list[str], groups: str) -> tuple[list[Row], list[Row]]:
    """Return rows of both tables for targets with a value in all of `rows`."""
    values, lacking = measured(rows, geometry_candidates(rows.columns))
    complete_N = values.notna().all(axis=1).to_numpy()
    rows, values = rows[complete_N], values[complete_N]

    def none(why: str) -> tuple[list[Row], list[Row]]:
        return [row for target in targets for model in MODELS for row in _missing(target, model, len(rows), why)], []

    return estimated(none, _fitted, rows, values, lacking, targets, groups)


def _missing(target: str, model: str, n: int, why: str) -> list[Row]:
    return [{"target": target, "model": model, **row} for row in missing_scores((SETTINGS, BOTH, GAIN), n, why)]


def _fitted(
    rows: pd.DataFrame, values: pd.DataFrame, lacking: str, targets: list[str], groups: str
) -> tuple[list[Row], list[Row]]:
    groups_N, n_groups = group_codes(rows, groups)
    require_nested_folds(len(rows), n_groups, groups)
    y_NE = standardised(in_logs_if_wide(np.stack([numbers(rows, t) for t in targets], axis=1)))
    settings, geometry = setting_features(rows), measured_features(values, MAX_GEOMETRY)
    few, about_geometry = no_interval(n_groups, groups), join_notes(lacking, geometry.note)
    notes = {SETTINGS: join_notes(few, settings.note), BOTH: join_notes(few, about_geometry), GAIN: few}
    prediction, importance = [], []
    for model in MODELS:
        without_NE, with_XNE = _errors(model, settings, geometry, y_NE, groups_N)
        for e, target in enumerate(targets):
            of, y_N = {"target": target, "model": model}, y_NE[:, e]
            if not y_N.any():
                prediction += _missing(target, model, len(rows), "the target is the same in all runs")
                continue
            # Where no setting varies, "settings" predicts the mean, with an R2 of about 0.
            errors: dict[str, np.ndarray | str] = {SETTINGS: without_NE[:, e]}
            errors[BOTH] = join_notes("no geometry metric varies", about_geometry)
            if len(with_XNE):
                errors[BOTH] = with_XNE[0, :, e]
                lost_X3 = shares(with_XNE[1:, :, e] - with_XNE[0, :, e], y_N, groups_N, DRAWS)
                names = [*settings.names, *geometry.names, *[ALL_SETTINGS] * bool(settings.names), ALL_GEOMETRY]
                for name, (lost, low, high) in zip(names, lost_X3.tolist(), strict=True):
                    importance.append({**of, "feature": name, "importance": lost, "low": low, "high": high})
            prediction += [of | row for row in scores(errors, (SETTINGS, BOTH), notes, y_N, groups_N)]
    return prediction, importance


def _errors(
    model: str, settings: Features, geometry: Features, y_NE: np.ndarray, groups_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return squared errors from settings [N, E], and from both, also with each column permuted [X, N, E].

    The latter are none without geometry.
    """
    n_settings = settings.x_NK.shape[1]
    regress = functools.partial(_REGRESSIONS[model], n_first=n_settings)
    without_NE = out_of_fold(regress, settings.x_NK, y_NE, groups_N, SPLITS)[0]
    if not geometry.names:
        return without_NE, np.empty((0, *y_NE.shape))
    both = joined(settings, geometry)
    changed = [np.flatnonzero(both.owner_K == i) for i in range(len(both.names))]
    changed += [part for part in np.split(np.arange(len(both.owner_K)), [n_settings]) if len(part)]
    return without_NE, out_of_fold(regress, both.x_NK, y_NE, groups_N, SPLITS, changed)
