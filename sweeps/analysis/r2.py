"""Compute what a metric adds to a linear prediction of a loss: cross-validated R2 with it minus that without it.

Letters: N rows, K regressors of the baseline, C metrics, E targets, X metrics and targets, S splits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.blocks import PAIR, Block, Pair, of_pairs, require_freedom, require_variation
from sweeps.analysis.bootstrap import ROUNDING
from sweeps.analysis.clusters import partial_correlation
from sweeps.analysis.encode import encode, in_logs_if_wide, is_wide, standardised
from sweeps.analysis.estimate import Estimate, NotEstimableError
from sweeps.analysis.folds import DRAWS, FOLDS, group_codes, shares, shuffled_folds, word
from sweeps.analysis.ranks import p_values

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
      baseline_r2: out-of-fold R2 of the baseline; below 0 where it predicts worse than the mean.
    """

    estimate: Estimate
    note: str
    variance_inflation: float = np.nan
    error_reduction: float = np.nan
    baseline_r2: float = np.nan


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
) -> dict[Pair, Increment]:
    """Return `incremental_r2` of every (metric, target) with its note; pairs missing in the same rows share work."""
    if not (metrics and targets):
        return {}
    baseline = list(dict.fromkeys(baseline))
    used = [*baseline, *([groups] if groups else [])]
    return of_pairs(table, metrics, targets, used, lambda block: _increments(block, baseline, groups), Increment)


def _increments(block: Block, baseline: Sequence[str], groups: str | None) -> Callable[[int, int], Increment]:
    """Return a function of the indexes of a metric and a target, which returns their increment."""
    (groups_N, n_groups), what = group_codes(block.rows, groups), word(groups)
    if n_groups < FOLDS:
        raise NotEstimableError(f"{n_groups} {what} are too few for {FOLDS} folds")
    n, n_metrics = block.metrics_NC.shape
    baseline_NK = encode(block.rows, baseline)
    metrics_NC, targets_NE = (standardised(in_logs_if_wide(x)) for x in (block.metrics_NC, block.targets_NE))
    constant_X = np.all(np.concatenate([metrics_NC, targets_NE], axis=1) == 0, axis=0)
    fit = partial_correlation(metrics_NC, targets_NE, baseline_NK, groups_N)
    p_CE = p_values(fit.r_CE, fit.dof_CE)
    error_NE, gain_NCE = _out_of_fold(metrics_NC, targets_NE, baseline_NK, shuffled_folds(groups_N))
    error_E, gain_CE = error_NE.mean(axis=0), gain_NCE.mean(axis=0)
    unit_E = np.where(is_wide(block.targets_NE), np.nan, block.targets_NE.std(axis=0))
    taken_CE = (np.sqrt(error_E) - np.sqrt(np.maximum(error_E - gain_CE, 0))) * unit_E
    # A standardised target has variance 1, so a share of it is a difference of R2.
    r2_E = (1 - error_E).tolist()
    share_EC3 = [
        np.full((n_metrics, 3), np.nan) if constant else shares(gain_NCE[:, :, e].T, targets_NE[:, e], groups_N, DRAWS)
        for e, constant in enumerate(constant_X[n_metrics:])
    ]

    def of_pair(i: int, j: int) -> Increment:
        pair = [i, n_metrics + j]
        require_variation(constant_X[pair])
        require_freedom(n - 2 - fit.rank, "the baseline takes")
        estimate, low, high = share_EC3[j][i].tolist()
        inflation = float(fit.left_X[i] ** -2) if fit.left_X[i] > 0 else np.inf
        explained = [name for name, left in zip(PAIR, fit.left_X[pair], strict=True) if not left]
        if explained:
            bound = np.nan if np.isnan(low) else 0.0
            note = f"the baseline explains the {explained[0]} completely, so the metric adds nothing"
            return Increment(Estimate(0.0, bound, bound, np.nan, n), note, inflation, 0.0, r2_E[j])
        p_value = float(p_CE[i, j])
        missing = [what for what, x in (("a p-value", p_value), ("an interval", low)) if np.isnan(x)]
        note = f"{n_groups} {what} are too few for {' or '.join(missing)}" if missing else ""
        return Increment(Estimate(estimate, low, high, p_value, n), note, inflation, float(taken_CE[i, j]), r2_E[j])

    return of_pair


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
