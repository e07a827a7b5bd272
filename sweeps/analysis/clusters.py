"""Compute effective sample sizes of rows in groups, such as seeds of a configuration or checkpoints of a run.

Letters: N rows, C metrics, E targets, X both, K control columns, G groups.
"""

from typing import NamedTuple

import numpy as np

from sweeps.analysis.bootstrap import ROUNDING
from sweeps.analysis.ranks import unit

# With fewer degrees of freedom between groups, the correlation within groups can't be estimated and a bootstrap of
# whole groups can't be trusted; see `correlation.spearman`.
MIN_DOF_BETWEEN = 12


class Partial(NamedTuple):
    """Partial correlations and their degrees of freedom.

    Attributes:
      r_CE: correlations of the residuals given the controls. dof_CE: their degrees of freedom.
      left_X: each residual's share of its column's norm, metrics first; 0 where that is rounding error.
      rank: that of the controls, beyond the intercept. rank_between: that of their means over groups.
      n_as_copies: the number of independent rows if the rows of a group were copies.
      enough: whether there are enough groups to estimate the correlation within them, and to bootstrap them.
    """

    r_CE: np.ndarray
    dof_CE: np.ndarray
    left_X: np.ndarray
    rank: int
    rank_between: int
    n_as_copies: float
    enough: bool


def partial_correlation(
    metrics_NC: np.ndarray, targets_NE: np.ndarray, controls_NK: np.ndarray, groups_N: np.ndarray | None
) -> Partial:
    """Correlate the residuals of metrics and targets regressed on the controls; `groups_N` None: independent rows."""
    n, n_metrics = metrics_NC.shape
    controls_NK = unit(controls_NK)
    columns_NX = unit(np.concatenate([metrics_NC, targets_NE], axis=1))
    coefficients_KX, _, rank, _ = np.linalg.lstsq(controls_NK, columns_NX, rcond=1e-10)
    k = int(rank)
    residuals_NX = columns_NX - controls_NK @ coefficients_KX
    left_X = np.linalg.norm(residuals_NX, axis=0)
    left_X = np.where(left_X > ROUNDING, left_X, 0.0)
    residuals_NX = residuals_NX / np.where(left_X > 0, left_X, np.inf)
    metrics_NC, targets_NE = residuals_NX[:, :n_metrics], residuals_NX[:, n_metrics:]
    r_CE = np.clip(metrics_NC.T @ targets_NE, -1, 1)
    if groups_N is None:
        return Partial(r_CE, np.full(r_CE.shape, n - 2.0 - k), left_X, k, k, float(n), False)

    k_between, copies = rank_between(controls_NK, groups_N), rows_as_copies(groups_N)
    enough = enough_groups(copies, k_between)
    rows = effective_rows(metrics_NC, targets_NE, groups_N, k, k_between) if enough else np.full(r_CE.shape, copies)
    return Partial(r_CE, np.minimum(n - 2 - k, rows - 2 - k_between), left_X, k, k_between, copies, enough)


def enough_groups(n_as_copies: float, k_between: int) -> bool:
    """Return whether there are enough groups for the bootstrap and the correlation within groups.

    Args:
      n_as_copies: as `rows_as_copies` returns it. k_between: rank of the controls between groups.
    """
    return n_as_copies - 2 - k_between >= MIN_DOF_BETWEEN and n_as_copies >= 2 * (k_between + 2)


def rank_between(controls_NK: np.ndarray, groups_N: np.ndarray) -> int:
    """Return the rank, beyond the intercept, of the controls' means over groups."""
    if controls_NK.shape[1] == 0:
        return 0
    means_GK = sums_of_groups(controls_NK, groups_N) / np.bincount(groups_N)[:, None]
    return int(np.linalg.matrix_rank(unit(means_GK), tol=ROUNDING))


def rows_as_copies(groups_N: np.ndarray) -> float:
    """Return the effective sample size if a group's rows are copies: (sum of sizes)^2 / sum of squared sizes.

    With groups of equal size it is the number of groups (Kish 1965).
    """
    sizes_G = np.bincount(groups_N)
    return len(groups_N) ** 2 / float(np.sum(sizes_G**2))


def effective_rows(x_NC: np.ndarray, y_NE: np.ndarray, groups_N: np.ndarray, k: int, k_between: int) -> np.ndarray:
    """Return the effective sample size of the correlation of each pair of residuals: [C, E].

    Args:
      x_NC, y_NE: residuals of regressions on controls of rank k, of which k_between is between groups.

    The variance of a sum of products over clusters is that of independent rows times 1 + (m - 1) rho_x rho_y, for
    clusters of m rows with intraclass correlations rho (Moulton 1986); m is the mean size weighted by size.
    """
    size = len(groups_N) / rows_as_copies(groups_N)
    rho_C, rho_E = (intraclass_correlation(x, groups_N, k, k_between) for x in (x_NC, y_NE))
    return len(groups_N) / (1 + (size - 1) * rho_C[:, None] * rho_E[None, :])


def intraclass_correlation(x_NC: np.ndarray, groups_N: np.ndarray, k: int, k_between: int) -> np.ndarray:
    """Return the share of a column's variance between groups, by one-way analysis of variance, clipped to 0 to 1: [C].

    It is 1 where no degree of freedom is left. x_NC as in `effective_rows`.
    """
    sizes_G = np.bincount(groups_N)
    n, n_groups = len(groups_N), len(sizes_G)
    dof_between, dof_within = n_groups - 1 - k_between, n - n_groups - (k - k_between)
    if dof_between <= 0 or dof_within <= 0:
        return np.ones(x_NC.shape[1])
    centred_NC = x_NC - x_NC.mean(axis=0)
    between_C = np.sum(sums_of_groups(centred_NC, groups_N) ** 2 / sizes_G[:, None], axis=0)
    within_C = np.maximum(np.sum(centred_NC**2, axis=0) - between_C, 0) / dof_within
    between_C = between_C / dof_between
    size = (n - float(np.sum(sizes_G**2)) / n) / (n_groups - 1)
    total_C = between_C + (size - 1) * within_C
    return np.clip((between_C - within_C) / np.where(total_C > 0, total_C, 1), 0, 1)


def sums_of_groups(x_NK: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """Return the sums over the rows of each group; further axes of the array are kept."""
    sums_GK = np.zeros((groups_N.max() + 1, *x_NK.shape[1:]))
    np.add.at(sums_GK, groups_N, x_NK)
    return sums_GK
