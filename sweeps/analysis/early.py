"""Predict the final loss early in training: from the settings, the loss so far, and the geometry so far.

Letters: N runs, L points of a curve, C columns.
"""

import functools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from sweeps.analysis.encode import in_logs_if_wide, standardised, usable
from sweeps.analysis.estimate import NotEstimableError, estimated, join_notes
from sweeps.analysis.features import (
    MAX_GEOMETRY,
    Features,
    geometry_candidates,
    joined,
    measured,
    measured_features,
    setting_features,
)
from sweeps.analysis.folds import group_codes, no_interval, out_of_fold, require_nested_folds
from sweeps.analysis.regressors import ridge
from sweeps.analysis.scores import COLUMNS as SCORE_COLUMNS
from sweeps.analysis.scores import GAIN, Row, missing_scores, score_table, scores
from sweeps.table.columns import PRIMARY_PAIR, final_rows, numbers, require_column

_OF = ("target", "share")
COLUMNS = (*_OF, *SCORE_COLUMNS)
SHARES = (0.1, 0.25, 0.5)
SETTINGS, WITH_LOSS, WITH_GEOMETRY, ALL = "settings", "settings and loss", "settings and geometry", "all"
_FEATURES = (SETTINGS, WITH_LOSS, WITH_GEOMETRY, ALL, GAIN)
SPLITS = 10

# The loss at a step is the mean over this share of the steps before it.
_SMOOTHED = 0.1
_LOSS = ("loss", "slope of loss", "loss at half")


def predict_early(
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    target: str = PRIMARY_PAIR[1],
    groups: str = "configuration",
) -> pd.DataFrame:
    """Return out-of-fold R2 of the final loss predicted from what was known at 10, 25 and 50 % of a run's steps.

    The runs are those that finished and didn't diverge; a run's steps are those of its final row. The settings are
    known from the start, including the number of training tokens. The training loss enters as its mean over the last
    tenth of the steps so far, the same at half as many steps, and its slope in log steps over the second half of the
    steps so far (with a constant batch, the slope in log tokens). Geometry is that of the last probe so far, except at
    step 0, with columns chosen as in `predict`. Nothing later than the share enters, so there is no leak even if the
    target is a run's final training loss.

    The model is a ridge regression whose penalty is chosen in inner grouped folds, where it may also leave out the last
    block, loss or geometry; outer folds are of shuffled groups, 10 splits with seeds 0 to 9; intervals as in `predict`.
    All features of one share are tested on the same runs. "geometry's gain" is R2 of all minus that of settings and
    loss: what geometry adds to the loss curve.

    Args:
      table: one row per (run, checkpoint). curves: metrics.jsonl by run id, columns step, loss and `<target>/<metric>`,
        which is NaN between probes; a run may have no curve.
      target: column of the final loss. groups: column that is equal for runs which differ only in their seeds.

    Returns:
      target, share, features ("settings", "settings and loss", "settings and geometry", "all", "geometry's gain"), r2,
      low, high, n, note. r2 is NaN with fewer than 10 groups or 8 runs, a constant target, or no such feature by then,
      and the note says why; with fewer than 14 groups, low and high are NaN. A table without columns gives no row.

    Raises:
      UnknownColumnError: no such column, except the default target, whose absence gives notes. AnalysisError: a target
      that holds something other than numbers.

    Source: [ours].
    """
    if table.columns.empty:
        return score_table([], _OF)
    require_column(table, groups)
    if target not in table.columns and target == PRIMARY_PAIR[1]:
        missing = missing_scores(_FEATURES, 0, "the table lacks the target")
        return score_table([{"target": target, "share": share, **row} for share in SHARES for row in missing], _OF)
    require_column(table, target)
    final = final_rows(table).rows
    final = final[usable(final, [groups]) & np.isfinite(numbers(final, target))].reset_index(drop=True)
    arrays = _Curves(final, curves)
    rows = [row for share in SHARES for row in _at_share(final, arrays, share, target, groups)]
    return score_table(rows, _OF)


class _Curves:
    """Curves as arrays, so that each is converted from its frame once."""

    def __init__(self, final: pd.DataFrame, curves: Mapping[str, pd.DataFrame]):
        frames = [curves.get(run, pd.DataFrame()) for run in final["run_id"]]
        self.names = geometry_candidates(dict.fromkeys(c for frame in frames for c in frame.columns))
        self.steps = final["step"].to_numpy(dtype=float)
        self.arrays = [_array(frame, ["step", "loss", *self.names]) for frame in frames]
        self.without = sum(len(curve_LC) == 0 for curve_LC in self.arrays)

    def at(self, share: float) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return each run's loss and geometry as known at a share of its steps; NaN where nothing was known."""
        names = [*_LOSS, *self.names]
        values = [_known(curve_LC, share * steps) for curve_LC, steps in zip(self.arrays, self.steps, strict=True)]
        known = pd.DataFrame(np.reshape(values, (-1, len(names))), columns=names)
        return known[list(_LOSS)], known[self.names]


def _array(curve: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Return the columns of a curve, sorted by the first, NaN for missing ones: [L, C]."""
    if names[0] not in curve.columns:
        return np.zeros((0, len(names)))
    curve = curve.sort_values(names[0], kind="stable")
    missing_L = np.full(len(curve), np.nan)
    return np.stack([numbers(curve, c) if c in curve.columns else missing_L for c in names], axis=1)


def _known(curve_LC: np.ndarray, until: float) -> list[float]:
    """Return the loss, its slope in log steps, the loss at half of the steps, and geometry, as of step `until`."""
    curve_LC = curve_LC[(curve_LC[:, 0] > 0) & (curve_LC[:, 0] <= until)]
    step_L, loss_L = curve_LC[np.isfinite(curve_LC[:, 1]), :2].T
    second_L = step_L > until / 2
    log_L = np.log(step_L[second_L])
    log_L = log_L - (log_L.mean() if len(log_L) else 0)
    slope = float(log_L @ loss_L[second_L] / (log_L @ log_L)) if log_L.any() else np.nan
    return [_smoothed(step_L, loss_L, until), slope, _smoothed(step_L, loss_L, until / 2), *_last(curve_LC[:, 2:])]


def _smoothed(step_L: np.ndarray, loss_L: np.ndarray, until: float) -> float:
    """Return the mean loss over the tenth of the steps before `until`, or the last loss if none was logged in these."""
    before_L = step_L <= until
    if not before_L.any():
        return float("nan")
    last_L = before_L & (step_L > (1 - _SMOOTHED) * until)
    return float(loss_L[last_L].mean() if last_L.any() else loss_L[before_L][-1])


def _last(probe_LC: np.ndarray) -> np.ndarray:
    """Return the last finite value of each column; NaN without one."""
    known_LC = np.isfinite(probe_LC)
    if not len(probe_LC):
        return np.full(probe_LC.shape[1], np.nan)
    last_C = len(probe_LC) - 1 - known_LC[::-1].argmax(axis=0)
    return np.where(known_LC.any(axis=0), probe_LC[last_C, np.arange(probe_LC.shape[1])], np.nan)


def _at_share(final: pd.DataFrame, arrays: _Curves, share: float, target: str, groups: str) -> list[Row]:
    loss, geometry = arrays.at(share)
    loss, no_loss = measured(loss, loss.columns)
    geometry, no_geometry = measured(geometry, geometry.columns)
    known_N = (loss.notna().all(axis=1) & geometry.notna().all(axis=1)).to_numpy()
    rows, by_when = final[known_N], f"by {100 * share:.0f} % of training"

    def fitted() -> list[Row]:
        groups_N, n_groups = group_codes(rows, groups)
        require_nested_folds(len(rows), n_groups, groups)
        y_N1 = standardised(in_logs_if_wide(numbers(rows, target)[:, None]))
        if not y_N1.any():
            raise NotEstimableError("the target is the same in all runs")
        settings, losses = setting_features(rows), measured_features(loss[known_N])
        metrics = measured_features(geometry[known_N], MAX_GEOMETRY)
        about = {SETTINGS: settings.note, WITH_LOSS: join_notes(no_loss, losses.note), ALL: "", GAIN: ""}
        about[WITH_GEOMETRY] = join_notes(no_geometry, metrics.note)

        with_loss, with_geometry = (losses, f"no training loss {by_when}"), (metrics, f"no geometry {by_when}")
        sets = {SETTINGS: [], WITH_LOSS: [with_loss], WITH_GEOMETRY: [with_geometry], ALL: [with_loss, with_geometry]}
        errors: dict[str, np.ndarray | str] = {
            name: estimated(str, _errors, settings, added, about[name], y_N1, groups_N) for name, added in sets.items()
        }
        left = f"{arrays.without} runs have no curve" if arrays.without else ""
        if not known_N.all():
            left = f"{int((~known_N).sum())} runs lack a curve or a probe {by_when}"
        common = join_notes(no_interval(n_groups, groups), left)
        notes = {name: join_notes(common, note) for name, note in about.items()}
        return scores(errors, (WITH_LOSS, ALL), notes, y_N1[:, 0], groups_N)

    scored = estimated(functools.partial(missing_scores, _FEATURES, len(rows)), fitted)
    return [{"target": target, "share": share, **row} for row in scored]


def _errors(
    settings: Features, added: list[tuple[Features, str]], about: str, y_N1: np.ndarray, groups_N: np.ndarray
) -> np.ndarray:
    """Return squared errors [N]; raise NotEstimableError, with the reason, for added features without a column."""
    for part, why in added:
        if not part.names:
            raise NotEstimableError(join_notes(why, about))
    parts = [settings, *(part for part, _ in added)]
    regress = functools.partial(ridge, n_first=sum(part.x_NK.shape[1] for part in parts[:-1]))
    return out_of_fold(regress, joined(*parts).x_NK, y_N1, groups_N, SPLITS)[0, :, 0]
