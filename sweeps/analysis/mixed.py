"""Estimate a metric's effect on a loss within model sizes: a linear mixed model with a random intercept per size.

Letters: N rows, K control regressors, Q columns (intercept, controls, metric, target), G configurations, B draws.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.blocks import require_freedom, require_rows, require_unexplained, require_variation
from sweeps.analysis.bootstrap import ROUNDING, explained, weights_of_groups
from sweeps.analysis.clusters import enough_groups, rank_between, rows_as_copies, sums_of_groups
from sweeps.analysis.encode import encode, in_logs_if_wide, indicators, is_wide, standardised, usable
from sweeps.analysis.estimate import Estimate, NotEstimableError, estimated, nothing
from sweeps.analysis.folds import DRAWS, group_codes
from sweeps.table.columns import numbers, require_column

# Grid of ratios of the variance between sizes to that within them; the optimum is refined between its points, and 0 is
# tried as well. Beyond its end only variation within sizes counts.
_LOG_RATIOS = np.linspace(np.log(1e-6), np.log(1e6), 57)


class MixedFit(NamedTuple):
    """A coefficient, why a value is missing ("" where none is), and what is needed to interpret it.

    Attributes:
      between_sizes: share of the residual variance given metric and controls that lies between sizes; 0 where sizes
        differ by no more than runs within them do, so that the model reduces to least squares.
      target_in_logs: whether the coefficient is in logs of the target, as it spans a decade.
    """

    estimate: Estimate
    note: str
    between_sizes: float = np.nan
    target_in_logs: bool = False


def mixed_effects(
    table: pd.DataFrame,
    metric: str,
    target: str,
    controls: Sequence[str],
    groups: str = "parameters_non_embedding",
    cluster: str = "configuration",
) -> Estimate:
    """Return the target's change per standard deviation of the metric, among runs of one size, given controls.

    The model is target = intercept + b metric + controls + u(size) + e, u and e normal, fitted by restricted maximum
    likelihood (statsmodels' MixedLM). It has one free parameter, the ratio of the variances of u and e; a
    one-dimensional search finds it, so no optimiser can fail to converge. Columns enter by the rule of `encode`, metric
    and target too; the metric is divided by its standard deviation over the rows (n - 1).

    The 95 % interval is the percentile interval of 2,000 draws, with a fixed seed, of whole configurations with
    replacement within their size, by generalised least squares at the fitted ratio; the deviations of draws from the
    estimate are scaled by sqrt(G / (G - 1 - k)), for G configurations and k as below. p_value is twice the share of
    draws on the other side of 0, plus one draw, so never below about .001. Inference is conditional on these sizes.
    In null tables of 108 configurations with one seed or three, p was under .05 in 5 to 7 %.

    With few sizes, b keeps a part of the association between sizes, the smaller the more runs a size has; a control
    that follows size removes it. In null tables of 6 sizes by 18 configurations whose metric was mostly size, intervals
    covered 0 in 88 %, and in 93 % with the size's log among the controls.

    Args:
      table: rows to use; those with a missing or infinite value in a used column are dropped.
      metric, target: numeric columns.
      controls: columns held fixed; they may be collinear, and may include the size.
      groups: column that distinguishes the sizes. cluster: column that names a row's configuration.

    Returns:
      An Estimate. All except n are NaN with one size, a constant column, or where size and controls explain the metric
      or the target completely or use up the degrees of freedom. Interval and p_value are NaN with fewer than 14 + k
      or fewer than 2 (k + 2) configurations, where k is the rank of controls and sizes between configurations.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a metric or target that holds something other than numbers.

    Source: methods.md, section 1 (paper A's mixed-effects coefficients); standardising and bootstrap are [ours].
    """
    return mixed_fit(table, metric, target, controls, groups, cluster).estimate


def mixed_fit(
    table: pd.DataFrame, metric: str, target: str, controls: Sequence[str], groups: str, cluster: str
) -> MixedFit:
    """Return `mixed_effects` with its note; arguments and errors are the same."""
    controls = list(dict.fromkeys(controls))
    for name in (metric, target, *controls, groups, cluster):
        require_column(table, name)
    pair_N2 = np.stack([numbers(table, metric), numbers(table, target)], axis=1)
    used_N = usable(table, [*controls, groups, cluster]) & np.isfinite(pair_N2).all(axis=1)
    rows, pair_N2 = table[used_N], pair_N2[used_N]
    fit = estimated(
        lambda why: MixedFit(nothing(len(rows)), why), _fit, rows, in_logs_if_wide(pair_N2), controls, groups, cluster
    )
    return fit._replace(target_in_logs=bool(is_wide(pair_N2)[1]))


def _fit(rows: pd.DataFrame, pair_N2: np.ndarray, controls: list[str], groups: str, cluster: str) -> MixedFit:
    n = len(rows)
    require_rows(n)
    sizes_N, n_sizes = group_codes(rows, groups)
    codes_N, _ = group_codes(rows, cluster)
    clusters_N = np.unique(np.stack([sizes_N, codes_N], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    controls_NK = standardised(encode(rows, controls))
    sizes_NK = indicators(sizes_N)
    held_NK = np.concatenate([sizes_NK - sizes_NK.mean(axis=0), controls_NK], axis=1)
    scaled_N2 = standardised(pair_N2)
    require_variation(np.all(scaled_N2 == 0, axis=0))
    if n_sizes < 2:
        raise NotEstimableError("all runs are of one size")
    coefficients_K2, _, rank, _ = np.linalg.lstsq(held_NK, scaled_N2, rcond=1e-10)
    require_freedom(n - 2 - int(rank), "sizes and controls take")
    left_2 = np.linalg.norm(scaled_N2 - held_NK @ coefficients_K2, axis=0) > ROUNDING * np.sqrt(n)
    require_unexplained(left_2, "sizes and controls explain")

    z_NQ = np.concatenate([np.ones((n, 1)), _basis(controls_NK), scaled_N2], axis=1)
    ratio = _variance_ratio(z_NQ, sizes_N)
    # Both columns have variance 1 in the fit; this converts to the target's units, and to a deviation with n - 1.
    scale = float(pair_N2[:, 1].std() * np.sqrt(n / (n - 1)))
    n_clusters = int(clusters_N.max()) + 1
    sums, once_1G = _sums(z_NQ, sizes_N, clusters_N), np.ones((1, n_clusters))
    b = float(_coefficients(_products(sums, once_1G, ratio))[0] * scale)
    between = ratio / (1 + ratio)

    k_between, copies = rank_between(held_NK, clusters_N), rows_as_copies(clusters_N)
    if not enough_groups(copies, k_between):
        given = f"{n_sizes} sizes" + (f" and {len(controls)} control{'s'[: len(controls) > 1]}" if controls else "")
        note = f"{n_clusters} configurations are too few for a p-value or an interval with {given}"
        return MixedFit(Estimate(b, np.nan, np.nan, np.nan, n), note, between)
    counts_BG = weights_of_groups(tuple(sums.size_G.tolist()), DRAWS)
    draws_B = _coefficients(_products(sums, counts_BG, ratio)) * scale
    # The residuals of a fit are too small, and so is the spread of draws: corrected by the degrees of freedom used.
    draws_B = b + (draws_B[np.isfinite(draws_B)] - b) * np.sqrt(n_clusters / (n_clusters - 1 - k_between))
    low, high = np.quantile(draws_B, [0.025, 0.975])
    other_side = min(np.sum(draws_B <= 0), np.sum(draws_B >= 0))
    p_value = min(1.0, 2 * (1 + other_side) / (1 + len(draws_B)))
    return MixedFit(Estimate(b, float(low), float(high), float(p_value), n), "", between)


def _basis(controls_NK: np.ndarray) -> np.ndarray:
    """Return orthogonal columns of norm sqrt(N) with the span of the controls."""
    if controls_NK.shape[1] == 0:
        return controls_NK
    u_NK, s_K, _ = np.linalg.svd(controls_NK, full_matrices=False)
    return u_NK[:, s_K > 1e-10 * max(s_K[0], 1.0)] * np.sqrt(len(controls_NK))


def _variance_ratio(z_NQ: np.ndarray, sizes_N: np.ndarray) -> float:
    """Return the ratio of the variance between sizes to that within them that maximises the restricted likelihood."""
    from scipy import optimize

    n, n_fixed = len(z_NQ), z_NQ.shape[1] - 1
    rows_J = np.bincount(sizes_N)
    sums, once_1G = _sums(z_NQ, sizes_N, sizes_N), np.ones((1, len(rows_J)))

    def criterion(ratio: float) -> float:
        """Return -2 log likelihood, up to a constant."""
        products_QQ = _products(sums, once_1G, ratio)[0]
        fixed_QQ, with_target_Q = products_QQ[:-1, :-1], products_QQ[:-1, -1]
        squares = products_QQ[-1, -1] - with_target_Q @ np.linalg.solve(fixed_QQ, with_target_Q)
        squares = max(squares, np.finfo(float).tiny)
        spread = np.sum(np.log1p(rows_J * ratio)) + np.linalg.slogdet(fixed_QQ)[1]
        return float((n - n_fixed) * np.log(squares) + spread)

    values = [criterion(np.exp(x)) for x in _LOG_RATIOS]
    best = int(np.argmin(values))
    ends = (_LOG_RATIOS[max(best - 1, 0)], _LOG_RATIOS[min(best + 1, len(_LOG_RATIOS) - 1)])
    optimum = optimize.minimize_scalar(lambda x: criterion(np.exp(x)), bounds=ends, method="bounded")
    return float(np.exp(optimum.x)) if optimum.fun < criterion(0.0) else 0.0


class _Sums(NamedTuple):
    """Sums over the rows of each cluster; a cluster lies in one size.

    Attributes:
      squares_GQQ: sums of products of columns. of_columns_GQ: sums of columns. rows_G: numbers of rows.
      size_G: index of each cluster's size.
    """

    squares_GQQ: np.ndarray
    of_columns_GQ: np.ndarray
    rows_G: np.ndarray
    size_G: np.ndarray


def _sums(z_NQ: np.ndarray, sizes_N: np.ndarray, clusters_N: np.ndarray) -> _Sums:
    squares_GQQ = sums_of_groups(z_NQ[:, :, None] * z_NQ[:, None, :], clusters_N)
    size_G = sizes_N[np.unique(clusters_N, return_index=True)[1]]
    return _Sums(squares_GQQ, sums_of_groups(z_NQ, clusters_N), np.bincount(clusters_N), size_G)


def _products(sums: _Sums, counts_BG: np.ndarray, ratio: float) -> np.ndarray:
    """Return Z' V^-1 Z of draws in which cluster g occurs counts_BG[b, g] times, `[B, Q, Q]`.

    V is I + ratio 11' within a size, and its inverse I - ratio / (1 + m ratio) 11' for m rows.
    """
    n_clusters, n_columns = sums.of_columns_GQ.shape
    products_BQQ = (counts_BG @ sums.squares_GQQ.reshape(n_clusters, -1)).reshape(-1, n_columns, n_columns)
    for size in range(int(sums.size_G.max()) + 1):
        of_size_G = sums.size_G == size
        of_size_BG = counts_BG[:, of_size_G]
        sums_BQ, rows_B = of_size_BG @ sums.of_columns_GQ[of_size_G], of_size_BG @ sums.rows_G[of_size_G]
        shrunk_BQ = sums_BQ * (ratio / (1 + rows_B * ratio))[:, None]
        products_BQQ -= shrunk_BQ[:, :, None] * sums_BQ[:, None, :]
    return products_BQQ


def _coefficients(products_BQQ: np.ndarray) -> np.ndarray:
    """Return the metric's coefficient given intercept and controls, from sums of products, NaN if they explain it."""
    explained_X2B = explained(np.ascontiguousarray(products_BQQ[:, :-2].transpose(1, 2, 0)))
    squares_B = products_BQQ[:, -2, -2]
    left_B = squares_B - np.sum(explained_X2B[:, 0] ** 2, axis=0)
    left_B = np.where(left_B > ROUNDING * squares_B, left_B, np.nan)
    return (products_BQQ[:, -2, -1] - np.sum(explained_X2B[:, 0] * explained_X2B[:, 1], axis=0)) / left_B
