"""Predict out of fold, with folds that never split a group, and compute intervals from the errors.

Letters: N rows, K regressors, E targets, P permutations, X sets of columns, V versions of a fold's rows, M rows of a
fold, B draws, G groups.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from sweeps.analysis.bootstrap import ROUNDING, weights_of_groups
from sweeps.analysis.clusters import MIN_DOF_BETWEEN
from sweeps.analysis.estimate import NotEstimableError
from sweeps.table.columns import as_levels

FOLDS = 5
SPLITS = 20
DRAWS = 2000
# With fewer groups bootstrap intervals are too narrow; see `correlation.spearman`.
MIN_GROUPS = MIN_DOF_BETWEEN + 2
# The fewest groups and rows for nested folds.
LEAST_GROUPS, LEAST_ROWS = 10, 8
# Permutations per split of columns whose importance is measured.
PERMUTATIONS = 5

# A function of x_NK, y_NE, groups_N and x_MK that returns the prediction [M, E].
Regression = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


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


def out_of_fold(
    regress: Regression,
    x_NK: np.ndarray,
    y_NE: np.ndarray,
    groups_N: np.ndarray,
    splits: int,
    changed: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Return squared errors of out-of-fold predictions, averaged over splits: [1 + X, N, E].

    The first are those with unchanged columns. For each of the X others, the columns with the indexes in `changed` are
    taken from another row, by a permutation of all rows: within a small fold, few configurations would swap values.
    """
    n = len(x_NK)
    error_XNE = np.zeros((1 + len(changed), n, y_NE.shape[1]))
    for split, fold_N in enumerate(shuffled_folds(groups_N, FOLDS, splits)):
        other_PN = np.random.default_rng(split).permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)
        for fold in range(FOLDS):
            test_N = fold_N == fold
            versions = [x_NK[test_N]]
            for columns in changed:
                for other_N in other_PN:
                    versions.append(x_NK[test_N])
                    versions[-1][:, columns] = x_NK[np.ix_(other_N[test_N], columns)]
            if x_NK.shape[1]:
                predicted_ME = regress(x_NK[~test_N], y_NE[~test_N], groups_N[~test_N], np.concatenate(versions))
            else:
                predicted_ME = np.tile(y_NE[~test_N].mean(axis=0), (len(versions) * int(test_N.sum()), 1))
            square_VME = (predicted_ME.reshape(len(versions), -1, y_NE.shape[1]) - y_NE[test_N]) ** 2
            error_XNE[0, test_N] += square_VME[0] / splits
            changed_XPME = square_VME[1:].reshape(len(changed), PERMUTATIONS, *square_VME.shape[1:])
            error_XNE[1:, test_N] += changed_XPME.mean(axis=1) / splits
    return error_XNE


def shares(part_XN: np.ndarray, y_N: np.ndarray, groups_N: np.ndarray, n_draws: int) -> np.ndarray:
    """Return sums of `part` divided by the target's sum of squares about its mean, with 95 % intervals: [X, 3].

    The intervals are percentiles over draws of whole groups, and NaN with fewer than 14 groups.
    """
    n_groups = int(groups_N.max()) + 1
    result_X3 = np.full((len(part_XN), 3), np.nan)
    result_X3[:, 0] = part_XN.sum(axis=1) / np.sum((y_N - y_N.mean()) ** 2)
    if n_groups < MIN_GROUPS:
        return result_X3
    weights_BN = weights_of_groups((0,) * n_groups, n_draws)[:, groups_N]
    rows_B = weights_BN.sum(axis=1)
    total_B = weights_BN @ y_N**2 - (weights_BN @ y_N) ** 2 / rows_B
    valid_B = total_B > ROUNDING * rows_B * y_N.var()
    drawn_BX = weights_BN[valid_B] @ part_XN.T / total_B[valid_B, None]
    result_X3[:, 1:] = np.quantile(drawn_BX, [0.025, 0.975], axis=0).T
    return result_X3


def require_nested_folds(n: int, n_groups: int, groups: str) -> None:
    """Raise NotEstimableError if n rows in n_groups groups allow no out-of-fold prediction."""
    if n == 0:
        raise NotEstimableError("no finished run has the target")
    if n < LEAST_ROWS:
        raise NotEstimableError(f"fewer than {LEAST_ROWS} usable runs")
    if n_groups < LEAST_GROUPS:
        raise NotEstimableError(f"{n_groups} {word(groups)} are too few for nested folds, which need {LEAST_GROUPS}")


def no_interval(n_groups: int, groups: str) -> str:
    """Return why there is no interval, or "" if there is one."""
    return f"{n_groups} {word(groups)} are too few for an interval" if n_groups < MIN_GROUPS else ""


def word(groups: str | None) -> str:
    """Return what the groups of a column are called in a note."""
    return {None: "rows", "configuration": "configurations"}.get(groups, "groups")
