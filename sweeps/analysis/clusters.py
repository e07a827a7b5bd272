"""How much rows that come in groups are worth: seeds of a configuration, checkpoints of a run.

Letters: N rows, C columns, K control columns, G groups.
"""

import numpy as np

from sweeps.analysis.bootstrap import ROUNDING
from sweeps.analysis.ranks import unit


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
