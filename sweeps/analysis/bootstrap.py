"""Compute intervals of rank correlations by a bootstrap of whole groups, as seeds of a configuration are dependent.

Letters: N rows, K ranked columns (controls, then metrics, then targets), L fixed columns, C metrics, E targets,
G groups, B draws.
"""

import functools

import numpy as np

DRAWS = 1000

# A residual under this share of its column's norm is rounding error: the column is constant, or controls explain it.
ROUNDING = 1e-7
# Elements in one chunk of draws; a few megabytes, so that a chunk fits in the cache.
_CHUNK = 1 << 16


def interval_of_groups(
    columns_NC: np.ndarray,
    n_metrics: int,
    ranked_controls_NK: np.ndarray,
    level_controls_NL: np.ndarray,
    groups_N: np.ndarray,
    k_between: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return 95 % percentile intervals of (partial) rank correlations over draws of whole groups with replacement.

    Args:
      columns_NC: metrics, then targets. ranked_controls_NK: controls that enter as ranks; level_controls_NL: those that
        enter as 0 and 1, without an intercept. groups_N: each row's group, counted from 0.
      k_between: number of controls that vary between groups.

    Returns:
      The lower and the upper ends, `[C, E]`; NaN where no draw gives a value.

    A draw is a weight for each row, the number of times that its group was drawn; ranks, correlations and regressions
    with integer weights equal those of the table with the rows repeated. Draws with too few different groups for the
    controls, or with a constant column, are left out. A draw holds 63 % of the groups on average, so if there are twice
    as many groups as the controls need, few draws are left out.
    """
    n, n_groups = len(groups_N), int(groups_N.max()) + 1
    counts_BG = weights_of_groups((0,) * n_groups, DRAWS)
    counts_BG = counts_BG[np.count_nonzero(counts_BG, axis=1) > k_between + 2]
    ranked_NK = np.concatenate([ranked_controls_NK, columns_NC], axis=1)
    fixed_NL = np.concatenate([np.ones((n, 1)), level_controls_NL], axis=1)
    contribution_GKN = _rank_contributions(ranked_NK, groups_N)
    n_controls = ranked_controls_NK.shape[1]
    chunks = np.array_split(counts_BG, max(1, len(counts_BG) * ranked_NK.size // _CHUNK))
    draws_BCE = np.concatenate([_draw(c, groups_N, contribution_GKN, fixed_NL, n_controls, n_metrics) for c in chunks])
    low_CE, high_CE = np.full((2, *draws_BCE.shape[1:]), np.nan)
    known_CE = ~np.isnan(draws_BCE).all(axis=0)
    quantile = np.nanquantile if np.isnan(draws_BCE[:, known_CE]).any() else np.quantile
    low_CE[known_CE], high_CE[known_CE] = quantile(draws_BCE[:, known_CE], [0.025, 0.975], axis=0)
    return low_CE, high_CE


@functools.lru_cache(maxsize=4)  # the same for all columns with values in the same rows
def weights_of_groups(strata_G: tuple[int, ...], n_draws: int) -> np.ndarray:
    """Return how often each group occurs in draws with replacement among the groups of its stratum: [B, G].

    The seed is fixed. Strata are numbered from 0; with a single stratum, all groups are drawn together.
    """
    rng = np.random.default_rng(0)
    counts_BG = np.zeros((n_draws, len(strata_G)))
    for stratum in range(max(strata_G) + 1):
        members = np.flatnonzero(np.asarray(strata_G) == stratum)
        counts_BG[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=n_draws)
    counts_BG.setflags(write=False)
    return counts_BG


def _rank_contributions(x_NK: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """Return what one copy of group g adds to the centred average rank of row n in column k: [G, K, N].

    It is half the number of rows of g below x minus half the number above it; so the ranks of a draw are a matrix
    product.
    """
    of_group_GN = (np.arange(groups_N.max() + 1)[:, None] == groups_N).astype(np.float32)
    above = (np.sign(x_N - x_N[:, None]).astype(np.float32) for x_N in x_NK.T)
    return np.stack([of_group_GN @ above_NN / 2 for above_NN in above], axis=1)


def _draw(
    counts_BG: np.ndarray,
    groups_N: np.ndarray,
    contribution_GKN: np.ndarray,
    fixed_NL: np.ndarray,
    n_controls: int,
    n_metrics: int,
) -> np.ndarray:
    """Return the partial correlations [B, C, E] of the draws `counts_BG`.

    Columns K are the ranked ones: controls, then metrics, then targets. Columns L are the intercept and levels. Columns
    Y are both, L first; columns X, held fixed, are the first of these, up to the ranked controls.
    """
    n_groups, n_ranked, n = contribution_GKN.shape
    # Multiples of 1/2 are exact in float32 up to some million rows.
    ranks_BKN = (counts_BG.astype(np.float32) @ contribution_GKN.reshape(n_groups, -1)).reshape(-1, n_ranked, n)
    fixed_BLN = np.broadcast_to(fixed_NL.T, (len(counts_BG), *fixed_NL.T.shape))
    columns_BYN = np.concatenate([fixed_BLN, ranks_BKN], axis=1)
    weighted_BYN = columns_BYN * counts_BG[:, groups_N][:, None, :]

    n_held = fixed_NL.shape[1] + n_controls
    held_BXY = weighted_BYN[:, :n_held] @ columns_BYN.transpose(0, 2, 1)
    first_target = n_held + n_metrics
    squares_BK = np.einsum("bkn,bkn->bk", weighted_BYN[:, n_held:], columns_BYN[:, n_held:])
    products_BCE = weighted_BYN[:, n_held:first_target] @ columns_BYN[:, first_target:].transpose(0, 2, 1)

    explained_XKB = explained(np.ascontiguousarray(held_BXY.transpose(1, 2, 0)))
    left_BK = squares_BK - np.sum(explained_XKB**2, axis=0).T
    norm_BK = np.sqrt(np.where(left_BK > ROUNDING * squares_BK, left_BK, np.nan))
    products_BCE -= np.einsum("xcb,xeb->bce", explained_XKB[:, :n_metrics], explained_XKB[:, n_metrics:])
    return np.clip(products_BCE / norm_BK[:, :n_metrics, None] / norm_BK[:, None, n_metrics:], -1, 1)


def explained(rows_XYB: np.ndarray) -> np.ndarray:
    """Return coordinates of the columns along orthonormalised controls, by Cholesky decomposition: [X, K, B].

    `rows_XYB` holds the sums of products of the X controls with themselves and then with the other columns. A control
    that earlier ones explain gets no direction, so controls may be collinear. Draws are the last axis, for long inner
    loops.
    """
    n_controls = rows_XYB.shape[0]
    scale_XB = np.sqrt(np.einsum("xxb->xb", rows_XYB[:, :n_controls]))
    scale_XB = np.where(scale_XB > 0, scale_XB, np.inf)
    rest_XYB = rows_XYB / scale_XB[:, None]
    rest_XYB[:, :n_controls] /= scale_XB
    directions = []
    for i in range(n_controls):
        pivot_B = rest_XYB[0, i]
        inverse_B = np.where(pivot_B > ROUNDING, np.maximum(pivot_B, ROUNDING) ** -0.5, 0.0)
        direction_YB = rest_XYB[0, i:] * inverse_B
        directions.append(direction_YB[n_controls - i :])
        rest_XYB = rest_XYB[1:]
        rest_XYB[:, i + 1 :] -= direction_YB[1 : n_controls - i, None] * direction_YB[None, 1:]
    return np.stack(directions)
