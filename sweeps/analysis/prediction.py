"""Does geometry help to predict a loss beyond the settings, if the prediction needn't be linear?

Letters: N rows, K regressors, E targets, X sets of columns.
"""

import functools
import re
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
from sweeps.table.columns import PRIMARY_PAIR, final_rows, loss_columns, numbers, require_column

COLUMNS = ("target", "model", "features", "r2", "low", "high", "n", "note")
IMPORTANCE_COLUMNS = ("target", "model", "feature", "importance", "low", "high")
MODELS = ("gradient boosting", "Gaussian process", "linear")
SETTINGS, BOTH, GAIN = "settings", "settings and geometry", "geometry's gain"
ALL_SETTINGS, ALL_GEOMETRY = "all settings", "all geometry"

UNUSED = "the fits leave geometry out"
SPLITS = 2

_QUANTISED = re.compile(r"(gptq|round_to_nearest)_(\d+)/in_domain")


class Prediction(NamedTuple):
    """Tables of R2, a row a (target, model, features), and of what each column is worth; see `predict`."""

    prediction: pd.DataFrame
    importance: pd.DataFrame


def predict(table: pd.DataFrame, targets: Sequence[str] | None = None, groups: str = "configuration") -> Prediction:
    """R2 out of fold of losses predicted from settings, and from settings and geometry, by three models.

    Final rows of runs that didn't diverge. Settings are those of `setting_features`; geometry is the last row's, at
    most 12 metrics of `geometry_candidates`, without constants, copies and what over 20 % of the rows lack. Both sets
    of features are tried on the same rows. Columns enter by the rule of `encode`; so does the target.

    Models: gradient boosting, a Gaussian process and, for reference, a ridge; see `regressors`. The folds are nested:
    5 outer ones of shuffled groups, 2 splits with seeds 0 and 1, and penalties are found inside the other four, in
    grouped folds or by marginal likelihood. R2 is pooled over folds and averaged over splits. "geometry's gain" is R2
    with geometry less R2 without. Each model can leave geometry out if it finds inside that it doesn't help, so that
    geometry which tells nothing comes out near 0, or at 0 exactly, which the note says. A gain under 0 is the cost of
    columns that seemed to help.

    The 95 % intervals are percentile intervals of 2,000 draws of whole groups, always the same and so paired, over the
    squared errors out of fold: how far these rows stand for others with the fits as they are.

    Importance is R2 lost, out of fold, when a column takes its values from other rows, drawn anew 5 times a split. It
    is of the model with settings and geometry. Columns that move together can stand in for each other and each seem
    unimportant; or, set apart, they make rows like no run, and each seems to be worth more than there is. The rows "all
    settings" and "all geometry" change all of either at once. R2 lost is up to 2, that of a model all of whose columns
    come from another row.

    Args:
      table: one row a (run, checkpoint). targets: loss columns, by default those of `predicted_losses`.
      groups: column that runs alike but for their seeds share.

    Returns:
      prediction: target, model, features ("settings", "settings and geometry", "geometry's gain"), r2, low, high, n,
      note. With fewer than 10 groups or 8 rows, a constant target or no geometry r2 is NaN, and the note says why; with
      fewer than 14 groups the interval is. importance: target, model, feature, importance, low, high; only for what
      could be given.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a target that holds something other than numbers.

    Source: scikit-learn's models as issue 8 asks; folds, intervals, penalties and the choice of columns are [ours].
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
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for there, alike in by_missing.items():
        found |= _predict(rows[np.frombuffer(there, dtype=bool)], alike, groups)
    return _tables([row for n in names for row in found[n][0]], [row for n in names for row in found[n][1]])


def predicted_losses(table: pd.DataFrame) -> list[str]:
    """Up to four losses that stand for the others, as far as the table has them [ours].

    The in-domain loss; the loss out of domain, or else the mean over domains; in-domain loss after quantisation to the
    fewest bits, by GPTQ ahead of rounding; loss on the fine-tuning text, at the best learning rate if that is there.
    """
    losses = loss_columns(table)
    quantised = {c: found for c in losses if (found := _QUANTISED.fullmatch(c))}
    fewest = sorted(quantised, key=lambda c: (int(quantised[c][2]), quantised[c][1]))
    tuned = [c for c in losses if c.startswith("finetune_") and c.endswith("/target")]
    choices = [
        [PRIMARY_PAIR[1]],
        ["lm_loss/out_of_domain", "lm_loss/macro"],
        fewest,
        sorted(tuned, key=lambda c: not c.endswith("_best/target")),
    ]
    return [there[0] for choice in choices if (there := [c for c in choice if c in losses])]


def _predict(
    rows: pd.DataFrame, targets: list[str], groups: str
) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows of both tables by target, of targets that are there in all of `rows`."""
    values, lacking = measured(rows, geometry_candidates(rows.columns))
    there_N = values.notna().all(axis=1).to_numpy()
    rows, values = rows[there_N], values[there_N]
    groups_N, n_groups = group_codes(rows, groups)
    note = too_few(len(rows), n_groups, groups)
    if note:
        return {
            t: ([_row(t, m, f, len(rows), note) for m in MODELS for f in (SETTINGS, BOTH, GAIN)], []) for t in targets
        }
    y_NE = standardised(in_logs_if_wide(np.stack([numbers(rows, t) for t in targets], axis=1)))
    settings, geometry = setting_features(rows), measured_features(values, MAX_GEOMETRY)
    geometry = geometry._replace(note="; ".join(filter(None, (lacking, geometry.note))))
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {t: ([], []) for t in targets}
    for model in MODELS:
        errors = _errors(model, settings, geometry, y_NE, groups_N)
        for e, target in enumerate(targets):
            of_target = [error_XNE[:, :, e] for error_XNE in errors]
            notes = (no_interval(n_groups, groups), settings.note, geometry.note)
            found[target][0].extend(_scored(target, model, of_target, y_NE[:, e], groups_N, notes))
            found[target][1].extend(_importance(target, model, settings, geometry, of_target, y_NE[:, e], groups_N))
    return found


def _errors(
    model: str, settings: Features, geometry: Features, y_NE: np.ndarray, groups_N: np.ndarray
) -> list[np.ndarray]:
    """Squared errors from settings, and from both if there is geometry, these also with each column changed."""
    n_settings = settings.x_NK.shape[1]
    by_name: dict[str, Regression] = {
        "gradient boosting": functools.partial(boosting, n_first=n_settings),
        "Gaussian process": functools.partial(gaussian_process, n_first=n_settings),
        "linear": functools.partial(ridge, n_first=n_settings),
    }
    errors = [out_of_fold(by_name[model], settings.x_NK, y_NE, groups_N, SPLITS)]
    if geometry.names:
        both = joined(settings, geometry)
        of_settings_K = np.arange(len(both.owner_K)) < n_settings
        changed = [np.flatnonzero(both.owner_K == i) for i in range(len(both.names))]
        changed += [np.flatnonzero(of_settings_K), np.flatnonzero(~of_settings_K)]
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
    few, of_settings, of_geometry = notes
    n = len(y_N)
    if not y_N.any():
        return [_row(target, model, f, n, "the target is the same in all runs") for f in (SETTINGS, BOTH, GAIN)]
    # "settings" is the mean where none varies; then it has an R2 too, about 0.
    alone = "; ".join(filter(None, (few, of_settings)))
    r2_3 = 1 + shares(-errors[0][:1], y_N, groups_N)[0]
    result = [_row(target, model, SETTINGS, n, alone, r2_3)]
    if len(errors) == 1:
        why = "; ".join(filter(None, ("no geometry metric varies", of_geometry)))
        return result + [_row(target, model, f, n, why) for f in (BOTH, GAIN)]
    with_geometry = "; ".join(filter(None, (few, of_geometry)))
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
