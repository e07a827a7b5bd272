"""Test whether geometry helps to predict a loss beyond the settings, with nonlinear models too.

Letters: N rows, K regressors, E targets, X sets of columns.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.encode import in_logs_if_wide, standardised, usable
from sweeps.analysis.features import (
    MAX_GEOMETRY,
    Features,
    geometry_candidates,
    joined,
    measured,
    measured_features,
    setting_features,
)
from sweeps.analysis.folds import Regression, no_interval, out_of_fold, shares, too_few
from sweeps.analysis.r2 import group_codes
from sweeps.analysis.regressors import boosting, gaussian_process, ridge
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import PRIMARY_PAIR, final_rows, loss_columns, numbers, require_column

COLUMNS = ("target", "model", "features", "r2", "low", "high", "n", "note")
IMPORTANCE_COLUMNS = ("target", "model", "feature", "importance", "low", "high")
MODELS = ("gradient boosting", "Gaussian process", "linear")
SETTINGS, BOTH, GAIN = "settings", "settings and geometry", "geometry's gain"
ALL_SETTINGS, ALL_GEOMETRY = "all settings", "all geometry"

UNUSED = "the fits leave geometry out"
SPLITS = 2


class Prediction(NamedTuple):
    """Tables of R2, one row per (target, model, features), and of each column's importance; see `predict`."""

    prediction: pd.DataFrame
    importance: pd.DataFrame


def predict(table: pd.DataFrame, targets: Sequence[str] | None = None, groups: str = "configuration") -> Prediction:
    """Return out-of-fold R2 of losses predicted from settings, and from settings and geometry, by three models.

    Final rows of runs that didn't diverge. Settings are those of `setting_features`; geometry is that of the last row,
    at most 12 metrics of `geometry_candidates`, without constants, copies and metrics missing in over 20 % of the rows.
    Both sets of features are tested on the same rows. Columns and target are encoded by the rule of `encode`.

    Models: gradient boosting, a Gaussian process and, for reference, a ridge; see `regressors`. The folds are nested:
    5 outer folds of shuffled groups, 2 splits with seeds 0 and 1; penalties are chosen within the other four, in
    grouped folds or by marginal likelihood. R2 is pooled over folds and averaged over splits. "geometry's gain" is R2
    with geometry minus R2 without. Each model can leave geometry out if it doesn't help in the inner folds, so that
    uninformative geometry has a gain near 0, or exactly 0, which the note says. A negative gain is the cost of columns
    that seemed to help.

    The 95 % intervals are percentile intervals of 2,000 draws of whole groups, with a fixed seed and so paired, over
    the squared errors out of fold: they reflect the sampling of rows, conditional on the fits.

    Importance is the out-of-fold R2 lost when a column takes its values from other rows, with 5 permutations per split.
    It is that of the model with settings and geometry. Correlated columns can replace each other, so that each seems
    unimportant; or permuting one makes rows unlike any run, so that each seems too important. The rows "all settings"
    and "all geometry" permute all of either at once. At most 2 can be lost, by a model all of whose columns come from
    another row.

    Args:
      table: one row per (run, checkpoint). targets: loss columns, by default those of `predicted_losses`.
      groups: column that is equal for runs which differ only in their seeds.

    Returns:
      prediction: target, model, features ("settings", "settings and geometry", "geometry's gain"), r2, low, high, n,
      note. With fewer than 10 groups or 8 rows, a constant target or no geometry r2 is NaN, and the note says why; with
      fewer than 14 groups the interval is. importance: target, model, feature, importance, low, high; only where it
      could be computed.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a target that holds something other than numbers.

    Source: models of scikit-learn; folds, intervals, penalties and the choice of columns are [ours].
    """
    for name in targets or ():
        require_column(table, name)
    names = predicted_losses(table) if targets is None else list(dict.fromkeys(targets))
    if not names:
        return _tables([], [])
    require_column(table, groups)
    rows = final_rows(table).rows
    rows = rows[usable(rows, [groups])]
    by_missing: dict[bytes, list[str]] = {}
    for name in names:
        by_missing.setdefault(np.isfinite(numbers(rows, name)).tobytes(), []).append(name)
    by_target: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for mask, same_rows in by_missing.items():
        by_target |= _predict(rows[np.frombuffer(mask, dtype=bool)], same_rows, groups)
    return _tables([row for n in names for row in by_target[n][0]], [row for n in names for row in by_target[n][1]])


def predicted_losses(table: pd.DataFrame) -> list[str]:
    """Return up to four losses that represent the others, as far as the table has them [ours].

    The in-domain loss; the out-of-domain loss, or else the mean over domains; in-domain loss after quantisation to the
    fewest bits, by GPTQ rather than rounding; loss on the fine-tuning text, at the best learning rate if available.
    """
    catalog, losses = catalog_of(table), loss_columns(table)
    quantised = catalog.select(kind="loss", after="quantize", scope="blocks", domain="in_domain")
    fewest = sorted(quantised, key=lambda c: (catalog[c].of["bits"], catalog[c].of["method"]))
    tuned = catalog.select(kind="loss", after="finetune", domain="target")
    choices = [
        [PRIMARY_PAIR[1]],
        ["lm_loss/out_of_domain", "lm_loss/macro"],
        fewest,
        sorted(tuned, key=lambda c: catalog[c].of["rate"] != "best"),
    ]
    return [available[0] for choice in choices if (available := [c for c in choice if c in losses])]


def _predict(
    rows: pd.DataFrame, targets: list[str], groups: str
) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Return rows of both tables by target, for targets with a value in all of `rows`."""
    values, lacking = measured(rows, geometry_candidates(rows.columns))
    complete_N = values.notna().all(axis=1).to_numpy()
    rows, values = rows[complete_N], values[complete_N]
    groups_N, n_groups = group_codes(rows, groups)
    note = too_few(len(rows), n_groups, groups)
    if note:
        return {
            t: ([_row(t, m, f, len(rows), note) for m in MODELS for f in (SETTINGS, BOTH, GAIN)], []) for t in targets
        }
    y_NE = standardised(in_logs_if_wide(np.stack([numbers(rows, t) for t in targets], axis=1)))
    settings, geometry = setting_features(rows), measured_features(values, MAX_GEOMETRY)
    geometry = geometry._replace(note="; ".join(filter(None, (lacking, geometry.note))))
    by_target: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {t: ([], []) for t in targets}
    for model in MODELS:
        errors = _errors(model, settings, geometry, y_NE, groups_N)
        for e, target in enumerate(targets):
            target_errors = [error_XNE[:, :, e] for error_XNE in errors]
            notes = (no_interval(n_groups, groups), settings.note, geometry.note)
            by_target[target][0].extend(_scored(target, model, target_errors, y_NE[:, e], groups_N, notes))
            lost = _importance(target, model, settings, geometry, target_errors, y_NE[:, e], groups_N)
            by_target[target][1].extend(lost)
    return by_target


def _errors(
    model: str, settings: Features, geometry: Features, y_NE: np.ndarray, groups_N: np.ndarray
) -> list[np.ndarray]:
    """Return squared errors from settings, and, if there is geometry, from both, also with each column permuted."""
    n_settings = settings.x_NK.shape[1]
    by_name: dict[str, Regression] = {
        "gradient boosting": functools.partial(boosting, n_first=n_settings),
        "Gaussian process": functools.partial(gaussian_process, n_first=n_settings),
        "linear": functools.partial(ridge, n_first=n_settings),
    }
    errors = [out_of_fold(by_name[model], settings.x_NK, y_NE, groups_N, SPLITS)]
    if geometry.names:
        both = joined(settings, geometry)
        is_setting_K = np.arange(len(both.owner_K)) < n_settings
        changed = [np.flatnonzero(both.owner_K == i) for i in range(len(both.names))]
        changed += [np.flatnonzero(is_setting_K), np.flatnonzero(~is_setting_K)]
        errors.append(out_of_fold(by_name[model], both.x_NK, y_NE, groups_N, SPLITS, changed))
    return errors


def _scored(
    target: str,
    model: str,
    errors: list[np.ndarray],
    y_N: np.ndarray,
    groups_N: np.ndarray,
    notes: tuple[str, str, str],
) -> list[dict[str, Any]]:
    few, settings_note, geometry_note = notes
    n = len(y_N)
    if not y_N.any():
        return [_row(target, model, f, n, "the target is the same in all runs") for f in (SETTINGS, BOTH, GAIN)]
    # Where no setting varies, "settings" predicts the mean, with an R2 of about 0.
    note = "; ".join(filter(None, (few, settings_note)))
    r2_3 = 1 + shares(-errors[0][:1], y_N, groups_N)[0]
    result = [_row(target, model, SETTINGS, n, note, r2_3)]
    if len(errors) == 1:
        why = "; ".join(filter(None, ("no geometry metric varies", geometry_note)))
        return result + [_row(target, model, f, n, why) for f in (BOTH, GAIN)]
    with_geometry = "; ".join(filter(None, (few, geometry_note)))
    r2_3 = 1 + shares(-errors[1][:1], y_N, groups_N)[0]
    gain_1N = errors[0][:1] - errors[1][:1]
    gain_3 = shares(gain_1N, y_N, groups_N)[0]
    unused = "" if gain_1N.any() else UNUSED
    return [
        *result,
        _row(target, model, BOTH, n, with_geometry, r2_3),
        _row(target, model, GAIN, n, unused or few, gain_3),
    ]


def _importance(
    target: str,
    model: str,
    settings: Features,
    geometry: Features,
    errors: list[np.ndarray],
    y_N: np.ndarray,
    groups_N: np.ndarray,
) -> list[dict[str, Any]]:
    if len(errors) == 1 or not y_N.any():
        return []
    lost_X3 = shares(errors[1][1:] - errors[1][:1], y_N, groups_N)
    names = [*settings.names, *geometry.names, ALL_SETTINGS, ALL_GEOMETRY]
    return [
        {"target": target, "model": model, "feature": name, "importance": lost, "low": low, "high": high}
        for name, (lost, low, high) in zip(names, lost_X3.tolist(), strict=True)
        if name != ALL_SETTINGS or settings.names
    ]


def _row(target: str, model: str, features: str, n: int, note: str, r2_3: np.ndarray | None = None) -> dict[str, Any]:
    r2, low, high = (np.nan,) * 3 if r2_3 is None else r2_3.tolist()
    row = {"target": target, "model": model, "features": features, "r2": r2, "low": low, "high": high}
    return row | {"n": n, "note": note}


def _tables(prediction: list[dict[str, Any]], importance: list[dict[str, Any]]) -> Prediction:
    scored = pd.DataFrame(prediction, columns=list(COLUMNS))
    lost = pd.DataFrame(importance, columns=list(IMPORTANCE_COLUMNS))
    numeric = dict.fromkeys(("r2", "low", "high"), float) | {"n": int}
    return Prediction(scored.astype(numeric), lost.astype(dict.fromkeys(("importance", "low", "high"), float)))
