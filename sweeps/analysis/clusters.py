"""How much rows that come in groups are worth: seeds of a configuration, checkpoints of a run.

Letters: N rows, C metrics, E targets, X both, K control columns, G groups.
"""

from typing import NamedTuple

import numpy as np

from sweeps.analysis.bootstrap import ROUNDING
from sweeps.analysis.ranks import unit

# Below so many degrees of freedom between groups, how alike a group's rows are can't be estimated, nor can draws of
# whole groups stand for new ones; see `correlation.spearman`.
MIN_DOF_BETWEEN = 12


class Partial(NamedTuple):
    """Partial correlations and what they are worth.

    Attributes:
      r_CE: correlations of what the controls leave. dof_CE: their degrees of freedom.
      left_X: the share of each column's norm that is left, metrics first; 0 where that is rounding.
      rank: of the controls, beyond the intercept. rank_between: of their means over groups.
      alone: how many independent rows there would be if those of a group were copies.
      enough: whether there are groups enough to estimate how alike their rows are, and to draw whole ones.
    """

    r_CE: np.ndarray
    dof_CE: np.ndarray
    left_X: np.ndarray
    rank: int
    rank_between: int
    alone: float
    enough: bool


def partial_correlation(
    metrics_NC: np.ndarray, targets_NE: np.ndarray, controls_NK: np.ndarray, groups_N: np.ndarray | None
) -> Partial:
    """Correlations of what least squares on the controls leaves of metrics and targets; `groups_N` None: rows alone."""
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

    k_between, alone = rank_between(controls_NK, groups_N), groups_alone(groups_N)
    enough = enough_groups(alone, k_between)
    rows = effective_rows(metrics_NC, targets_NE, groups_N, k, k_between) if enough else np.full(r_CE.shape, alone)
    return Partial(r_CE, np.minimum(n - 2 - k, rows - 2 - k_between), left_X, k, k_between, alone, enough)


def enough_groups(alone: float, k_between: int) -> bool:
    """Whether so many groups, given controls of rank `k_between` between them, can be drawn and their likeness told."""
    return alone - 2 - k_between >= MIN_DOF_BETWEEN and alone >= 2 * (k_between + 2)


def rank_between(controls_NK: np.ndarray, groups_N: np.ndarray) -> int:
    """Rank, beyond the intercept, of the controls' means over groups."""
    if controls_NK.shape[1] == 0:
        return 0
    means_GK = _sums(controls_NK, groups_N) / np.bincount(groups_N)[:, None]
    return int(np.linalg.matrix_rank(unit(means_GK), tol=ROUNDING))


def groups_alone(groups_N: np.ndarray) -> float:
    """How many independent rows there are if those of a group are copies: (sum of sizes)^2 / sum of squared sizes.

    The number of groups where they are of one size (Kish 1965).
    """
    sizes_G = np.bincount(groups_N)
    return len(groups_N) ** 2 / float(np.sum(sizes_G**2))


def effective_rows(x_NC: np.ndarray, y_NE: np.ndarray, groups_N: np.ndarray, k: int, k_between: int) -> np.ndarray:
    """How many independent rows the correlation of each two residuals rests on, from as alike as a group's are: [C, E].

    Args:
      x_NC, y_NE: residuals of regressions on controls of rank k, k_between of it between groups.

    The variance of a sum of products over clusters is that of independent rows times 1 + (m - 1) rho_x rho_y, for
    clusters of m rows (Moulton 1986), m the mean size weighted by size where sizes differ.
    """
    size = len(groups_N) / groups_alone(groups_N)
    alike_C, alike_E = (intraclass_correlation(x, groups_N, k, k_between) for x in (x_NC, y_NE))
    return len(groups_N) / (1 + (size - 1) * alike_C[:, None] * alike_E[None, :])


def intraclass_correlation(x_NC: np.ndarray, groups_N: np.ndarray, k: int, k_between: int) -> np.ndarray:
    """Share of a column's variance that lies between groups, by one-way analysis of variance, kept in 0 to 1: [C].

    1 where there is no degree of freedom to tell. x_NC as in `effective_rows`.
    """
    sizes_G = np.bincount(groups_N)
    n, n_groups = len(groups_N), len(sizes_G)
    dof_between, dof_within = n_groups - 1 - k_between, n - n_groups - (k - k_between)
    if dof_between <= 0 or dof_within <= 0:
        return np.ones(x_NC.shape[1])
    centred_NC = x_NC - x_NC.mean(axis=0)
    between_C = np.sum(_sums(centred_NC, groups_N) ** 2 / sizes_G[:, None], axis=0)
    within_C = np.maximum(np.sum(centred_NC**2, axis=0) - between_C, 0) / dof_within
    between_C = between_C / dof_between
    size = (n - float(np.sum(sizes_G**2)) / n) / (n_groups - 1)
    total_C = between_C + (size - 1) * within_C
    return np.clip((between_C - within_C) / np.where(total_C > 0, total_C, 1), 0, 1)


def _sums(x_NK: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    sums_GK = np.zeros((groups_N.max() + 1, x_NK.shape[1]))
    np.add.at(sums_GK, groups_N, x_NK)
    return sums_GK
