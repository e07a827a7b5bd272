"""Compute what a metric adds to a linear prediction of a loss: cross-validated R2 with it minus that without it.

Letters: N rows, K regressors of the baseline, C metrics, E targets, X metrics and targets, G groups, S splits, B draws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.bootstrap import ROUNDING, weights_of_groups
from sweeps.analysis.clusters import MIN_DOF_BETWEEN, partial_correlation
from sweeps.analysis.correlation import by_missing
from sweeps.analysis.encode import encode, in_logs_if_wide, is_wide, standardised, usable
from sweeps.analysis.estimate import MIN_ROWS, Estimate, nothing
from sweeps.analysis.ranks import p_values
from sweeps.table.columns import as_levels, numbers, require_column

FOLDS = 5
SPLITS = 20
DRAWS = 2000
# With fewer groups bootstrap intervals are too narrow; see `correlation.spearman`.
MIN_GROUPS = MIN_DOF_BETWEEN + 2

_PAIR = ("metric", "target")
# Singular values of a baseline below this share of the largest are rounding error.
_RCOND = 1e-10


class Increment(NamedTuple):
    """What a metric adds, why a value is missing ("" where none is), and what is needed to interpret it.

    Attributes:
      variance_inflation: 1 / (1 - R2 of the metric on the baseline): the factor by which the variance of the metric's
        coefficient exceeds that with an uncorrelated baseline. inf where the baseline explains the metric completely,
        NaN where it can't be computed.
      error_reduction: out-of-fold root mean squared error of the baseline minus that with the metric, in the target's
        units; NaN where the target is in logs.
    """

    estimate: Estimate
    note: str
    variance_inflation: float
    error_reduction: float


def baseline_columns(table: pd.DataFrame) -> list[str]:
    """Return the paper's baseline, as far as the table has it: model size, training tokens and training compute.

    That is parameters_non_embedding, tokens, and training_flops, which includes the unembedding: compute as 6 N D would
    be the sum of the other two in logs, and so redundant.
    """
    return [c for c in ("parameters_non_embedding", "tokens", "training_flops") if c in table.columns]


def incremental_r2(
    table: pd.DataFrame, metric: str, target: str, baseline: Sequence[str], groups: str | None
) -> Estimate:
    """Return R2 of a linear prediction of the target from baseline and metric minus R2 from the baseline.

    Each R2 is out of fold, over 5 folds of shuffled groups and so never with a group on both sides, pooled over the
    folds (sklearn's r2_score of cross_val_predict with LinearRegression) and averaged over 20 splits with seeds 0 to
    19. So an uninformative metric has an increment slightly below 0. Columns enter by the rule of `encode`, including
    metric and target: a target that spans a decade is predicted in logs. The baseline may be of any rank.

    The 95 % interval is the percentile interval of 2,000 draws of whole groups, with a fixed seed, over the
    out-of-fold errors. It reflects the sampling of rows, conditional on the fits. In 480 null tables of 108
    configurations it lay above 0 in none, and covered the estimate's mean in 92 %; for metrics with an effect of .1, .3
    and 1 standard deviations of the noise it covered the mean in 76, 88 and 94 %.

    p_value isn't that of R2: it tests the metric's coefficient given the baseline, by the correlation of residuals with
    degrees of freedom for clustered rows as in `partial_spearman`. If it is small and the estimate is negative, the
    effect is too weak to help prediction.

    Args:
      table: rows to use; those with a missing or infinite value in a used column are dropped.
      metric, target: numeric columns.
      baseline: columns, such as those of `baseline_columns`; without any the baseline predicts the mean.
      groups: column that names the cluster of a row, or None for independent rows.

    Returns:
      An Estimate. All except n are NaN with fewer than 5 groups, a constant column, or a baseline that uses up every
      degree of freedom; the interval is NaN with fewer than 14 groups. Where the baseline explains the metric or the
      target completely, the estimate and its interval are 0 by construction and p_value is NaN.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a metric or target that holds something other than numbers.

    Source: delta-R2 of paper A (methods.md, section 1); folds by group, interval and test are [ours].
    """
    return increments(table, [metric], [target], baseline, groups)[metric, target].estimate


def increments(
    table: pd.DataFrame, metrics: Sequence[str], targets: Sequence[str], baseline: Sequence[str], groups: str | None
) -> dict[tuple[str, str], Increment]:
    """Return `incremental_r2` of every (metric, target) with its note; pairs missing in the same rows share work."""
    if not (metrics and targets):
        return {}
    baseline = list(dict.fromkeys(baseline))
    usable_N = _usable(table, [*metrics, *targets], baseline, groups)
    results = {}
    for metric_names, metrics_NC, metric_known_N in by_missing(table, list(metrics)):
        for target_names, targets_NE, target_known_N in by_missing(table, list(targets)):
            used_N = usable_N & metric_known_N & target_known_N
            rows = table[used_N]
            group_arguments = (*group_codes(rows, groups), word(groups))
            block = _block(metrics_NC[used_N], targets_NE[used_N], encode(rows, baseline), *group_arguments)
            for i, metric in enumerate(metric_names):
                for j, target in enumerate(target_names):
                    results[metric, target] = block[i][j]
    return results


def r2(
    table: pd.DataFrame,
    target: str,
    columns: Sequence[str],
    groups: str | None,
    n_folds: int = FOLDS,
    splits: int = SPLITS,
) -> float:
    """Return the out-of-fold R2 of a linear prediction of the target from columns, as in `incremental_r2`.

    NaN with fewer than 4 usable rows, fewer groups than folds or a constant target. Raises as `incremental_r2`.
    """
    columns = list(dict.fromkeys(columns))
    rows = table[_usable(table, [target], columns, groups) & np.isfinite(numbers(table, target))]
    groups_N, n_groups = group_codes(rows, groups)
    target_N1 = standardised(in_logs_if_wide(numbers(rows, target)[:, None]))
    if len(rows) < MIN_ROWS or n_groups < n_folds or not target_N1.any():
        return float("nan")
    folds_SN = shuffled_folds(groups_N, n_folds, splits)
    error_N1, _ = _out_of_fold(np.empty((len(rows), 0)), target_N1, encode(rows, columns), folds_SN)
    return float(1 - error_N1.sum() / np.sum(target_N1**2))


def group_codes(rows: pd.DataFrame, groups: str | None) -> tuple[np.ndarray, int]:
    """Return each row's group as an index in the order of names, and the number of groups; None: one per row."""
    if groups is None:
        return np.arange(len(rows)), len(rows)
    codes_N, names = pd.factorize(as_levels(rows[groups]), sort=True)
    return codes_N, len(names)


def shuffled_folds(groups_N: np.ndarray, n_folds: int = FOLDS, splits: int = SPLITS) -> np.ndarray:
    """Return the fold of each row in each split, `[S, N]`: split s assigns the groups to folds at random by seed s."""
    n_groups = int(groups_N.max()) + 1
    fold_G = np.arange(n_groups) % n_folds
    return np.stack([np.random.default_rng(seed).permutation(fold_G)[groups_N] for seed in range(splits)])


def _usable(table: pd.DataFrame, columns: Sequence[str], controls: Sequence[str], groups: str | None) -> np.ndarray:
    """Return the mask of rows with a value of all controls and of the group, `[N]`; raises for a missing column."""
    used = [*controls, *([groups] if groups else [])]
    for name in (*columns, *used):
        require_column(table, name)
    return usable(table, used)


def _block(
    metrics_NC: np.ndarray,
    targets_NE: np.ndarray,
    baseline_NK: np.ndarray,
    groups_N: np.ndarray,
    n_groups: int,
    what: str,
) -> list[list[Increment]]:
    """Return the increments of every pair, whose values are all in the N rows. `what`: the word for the groups."""
    n, shape = len(groups_N), (metrics_NC.shape[1], targets_NE.shape[1])
    why = f"fewer than {MIN_ROWS} usable rows" if n < MIN_ROWS else ""
    if n_groups < FOLDS:
        why = why or f"{n_groups} {what} are too few for {FOLDS} folds"
    if why:
        return [[_without_values(n, why)] * shape[1] for _ in range(shape[0])]

    unit_E = np.where(is_wide(targets_NE), np.nan, targets_NE.std(axis=0))
    metrics_NC, targets_NE = (standardised(in_logs_if_wide(x)) for x in (metrics_NC, targets_NE))
    r_CE, dof_CE, left_X, k, *_ = partial_correlation(metrics_NC, targets_NE, baseline_NK, groups_N)
    error_NE, gain_NCE = _out_of_fold(metrics_NC, targets_NE, baseline_NK, shuffled_folds(groups_N))
    error_E, gain_CE = error_NE.mean(axis=0), gain_NCE.mean(axis=0)
    taken_CE = (np.sqrt(error_E) - np.sqrt(np.maximum(error_E - gain_CE, 0))) * unit_E
    low_CE, high_CE = np.full((2, *shape), np.nan)
    if n_groups >= MIN_GROUPS:
        low_CE, high_CE = _interval(gain_NCE, targets_NE, groups_N)
    # A standardised target has variance 1, so the gain is that of R2.
    values_5CE = np.stack([gain_CE, low_CE, high_CE, p_values(r_CE, dof_CE), taken_CE])

    constant_X = np.all(np.concatenate([metrics_NC, targets_NE], axis=1) == 0, axis=0)
    result = []
    for i in range(shape[0]):
        row = []
        for j in range(shape[1]):
            pair = [i, shape[0] + j]
            estimate, low, high, p_value, taken = values_5CE[:, i, j].tolist()
            note = _why_not(constant_X[pair], n - 2 - k)
            if note:
                row.append(_without_values(n, note))
                continue
            row.append(_judged(Estimate(estimate, low, high, p_value, n), taken, left_X[pair], f"{n_groups} {what}"))
        result.append(row)
    return result


def _without_values(n: int, why: str) -> Increment:
    return Increment(nothing(n), why, np.nan, np.nan)


def _why_not(constant_2: np.ndarray, freedom: int) -> str:
    """Return why no increment can be computed for a metric and a target, or ""."""
    if constant_2.any():
        return f"the {_PAIR[int(constant_2.argmax())]} is the same in all rows"
    return "the baseline takes up every degree of freedom" if freedom <= 0 else ""


def _judged(values: Estimate, taken: float, left_2: np.ndarray, independent: str) -> Increment:
    """Return the increment with a note on missing values. left_2: norms of both residuals given the baseline."""
    inflation = float(left_2[0] ** -2) if left_2[0] > 0 else np.inf
    if not left_2.all():
        note = f"the baseline explains the {_PAIR[int((left_2 == 0).argmax())]} completely, so the metric adds nothing"
        bound = 0.0 if np.isfinite(values.low) else np.nan
        return Increment(Estimate(0.0, bound, bound, np.nan, values.n), note, inflation, 0.0)
    missing = [what for what, x in (("a p-value", values.p_value), ("an interval", values.low)) if np.isnan(x)]
    note = f"{independent} are too few for {' or '.join(missing)}" if missing else ""
    return Increment(values, note, inflation, taken)


def _out_of_fold(
    metrics_NC: np.ndarray, targets_NE: np.ndarray, baseline_NK: np.ndarray, folds_SN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return squared errors of the baseline `[N, E]` and their reductions by each metric `[N, C, E]`, over splits.

    The residuals of metric and target given the baseline, fitted to the other folds, are regressed on each other: the
    coefficient is that of the regression on both (Frisch & Waugh 1933), at the cost of one regression for all pairs.
    """
    n_metrics = metrics_NC.shape[1]
    columns_NX = np.concatenate([metrics_NC, targets_NE], axis=1)
    error_NE, gain_NCE = np.zeros(targets_NE.shape), np.zeros((*metrics_NC.shape, targets_NE.shape[1]))
    for fold_N in folds_SN:
        for fold in range(int(fold_N.max()) + 1):
            test_N = fold_N == fold
            centred_NX = columns_NX - columns_NX[~test_N].mean(axis=0)
            controls_NK = baseline_NK - baseline_NK[~test_N].mean(axis=0)
            fitted_KX = np.linalg.pinv(controls_NK[~test_N], rcond=_RCOND) @ centred_NX[~test_N]
            left_NX = centred_NX - controls_NK @ fitted_KX
            metric_NC, target_NE = left_NX[:, :n_metrics], left_NX[:, n_metrics:]
            squares_C = np.sum(metric_NC[~test_N] ** 2, axis=0)
            explained_C = squares_C <= ROUNDING**2 * np.sum(centred_NX[~test_N, :n_metrics] ** 2, axis=0)
            inverse_C = np.where(explained_C, 0.0, 1 / np.where(explained_C, 1.0, squares_C))
            slope_CE = inverse_C[:, None] * (metric_NC[~test_N].T @ target_NE[~test_N])
            step_MCE = metric_NC[test_N][:, :, None] * slope_CE
            error_NE[test_N] += target_NE[test_N] ** 2
            gain_NCE[test_N] += step_MCE * (2 * target_NE[test_N][:, None, :] - step_MCE)
    return error_NE / len(folds_SN), gain_NCE / len(folds_SN)


def _interval(gain_NCE: np.ndarray, targets_NE: np.ndarray, groups_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % percentile interval of sum of gains over sum of squares, over draws of whole groups."""
    n_groups = int(groups_N.max()) + 1
    weights_BN = weights_of_groups((0,) * n_groups, DRAWS)[:, groups_N]
    mean_BE = weights_BN @ targets_NE / weights_BN.sum(axis=1, keepdims=True)
    total_BE = weights_BN @ targets_NE**2 - weights_BN.sum(axis=1, keepdims=True) * mean_BE**2
    total_BE = np.where(total_BE > ROUNDING * len(groups_N), total_BE, np.nan)
    known_E = ~np.isnan(total_BE).all(axis=0)
    low_CE, high_CE = np.full((2, *gain_NCE.shape[1:]), np.nan)
    quantile = np.nanquantile if np.isnan(total_BE[:, known_E]).any() else np.quantile
    for c in range(gain_NCE.shape[1]):
        draws_BE = weights_BN @ gain_NCE[:, c] / total_BE
        low_CE[c, known_E], high_CE[c, known_E] = quantile(draws_BE[:, known_E], [0.025, 0.975], axis=0)
    return low_CE, high_CE


def word(groups: str | None) -> str:
    """Return what the groups of a column are called in a note."""
    return {None: "rows", "configuration": "configurations"}.get(groups, "groups")
