"""Compute rank correlations between columns of the table, with intervals and p-values that respect its clusters.

Letters: N rows, C metrics, E targets, X both, K control columns.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.blocks import Block, Pair, of_pairs, require_freedom, require_unexplained, require_variation
from sweeps.analysis.bootstrap import ROUNDING, interval_of_groups
from sweeps.analysis.clusters import partial_correlation
from sweeps.analysis.encode import indicators
from sweeps.analysis.estimate import Estimate, Noted
from sweeps.analysis.ranks import fisher_interval, p_values, ranks, unit
from sweeps.table.columns import AnalysisError, as_levels, numbers

Form = Literal["rank", "factor"]


def spearman(table: pd.DataFrame, metric: str, target: str, groups: str | None = None) -> Estimate:
    """Return Spearman's rank correlation of two columns.

    Rows with a missing or infinite value in a used column are dropped. Ties take their average rank.

    Without groups: p by Student's t with n - 2 degrees of freedom, as scipy.stats.spearmanr; a 95 % interval by
    Fisher's z with the variance (1 + r^2/2) / (n - 3) (Bonett & Wright 2000).

    With groups, whose rows may be correlated [ours]: n rows count as n / (1 + (m - 1) rho_x rho_y) independent ones, m
    the sum of squared group sizes over n, rho the share of a column's variance that lies between groups (intraclass
    correlation of its residuals by analysis of variance). So copies count once (Kish 1965), and rows uncorrelated
    within groups count fully. p is by t with the effective number of rows minus 2 degrees of freedom. The 95 % interval
    is the percentile interval of 1,000 draws of whole groups with a fixed seed. With fewer than 14 groups rho can't be
    estimated and the bootstrap interval is too narrow (6 groups of 2: it covered 0 in 89 to 93 % of 150 null tables,
    and in 74 to 80 % given two controls): then rho is taken as 1, and the interval is Fisher's z for n / m rows.

    Args:
      table: the rows to use.
      metric, target: numeric columns; the result is the same with the two swapped.
      groups: column that names the cluster of a row, or None for independent rows.

    Returns:
      An Estimate. All except n are NaN with fewer than 4 usable rows or a constant column; p_value and the interval are
      NaN where no degree of freedom is left for them (as with fewer than 3, or 4, groups).

    Raises:
      UnknownColumnError: no such column. AnalysisError: a column that holds something other than numbers.
    """
    return partial_spearman(table, metric, target, (), "rank", groups)


def partial_spearman(
    table: pd.DataFrame,
    metric: str,
    target: str,
    controls: list[str] | tuple[str, ...],
    form: Form = "rank",
    groups: str | None = None,
) -> Estimate:
    """Return Spearman's correlation of metric and target given the controls.

    Metric and target are ranked, regressed on the controls by least squares, and their residuals correlated. There are
    k fewer degrees of freedom than in `spearman`, where k is the rank of the controls beyond the intercept, so that
    collinear settings count once. With groups, there are at most as many as the effective number of rows minus 2 - k,
    where k is the rank of the controls' means over groups; rho is estimated and groups are bootstrapped if there are at
    least 14 + k and at least 2 (k + 2) groups.

    Form "rank" enters each control as its ranks (pingouin.partial_corr, method "spearman"), and so removes only
    monotonic effects: a loss that is U-shaped in a control gives spurious correlations. Form "factor" enters each
    control as a category, one level per value, which removes an effect of any shape and costs one degree of freedom per
    level. A column that isn't numeric is a category in both. Where settings explain nearly all of both columns, ranking
    distorts sums of their effects, and a part of these remains: of null tables with an R2 of .9 or more, 6 to 10 % had
    p < .05, of those with a lower R2, 4 to 6 %.

    Args:
      table, metric, target, groups: as in `spearman`.
      controls: columns held fixed; none gives `spearman`.
      form: "rank" or "factor".

    Returns:
      An Estimate, NaN as in `spearman`, and also where the controls use up every degree of freedom or explain the
      metric or the target completely.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a metric or target that holds something other than numbers,
        or an unknown form.
    """
    if form not in ("rank", "factor"):
        raise AnalysisError(f"form = {form!r}: needs 'rank' or 'factor'")
    return many(table, [metric], [target], tuple(controls), form, groups)[metric, target].estimate


def many(
    table: pd.DataFrame,
    metrics: list[str],
    targets: list[str],
    controls: tuple[str, ...],
    form: Form,
    groups: str | None,
) -> dict[Pair, Noted]:
    """Return estimate and note of every (metric, target); pairs missing in the same rows are computed together."""
    used = (*controls, groups) if groups else controls
    return of_pairs(table, metrics, targets, used, lambda block: _correlations(block, controls, form, groups), Noted)


def partial_slopes(
    table: pd.DataFrame, metrics: list[str], targets: list[str], controls: tuple[str, ...], form: Form
) -> dict[Pair, float]:
    """Return each target's change, in its units, per standard deviation of a metric's residual given the controls.

    By least squares on the values, with the controls as in `partial_spearman`; NaN where it can't be computed.
    """
    return of_pairs(table, metrics, targets, controls, lambda block: _slopes(block, controls, form), lambda *_: np.nan)


class _Design(NamedTuple):
    """Controls as columns [N, K]: `ranked` are numbers that enter as ranks, `levels` are 0 and 1 and aren't ranked."""

    ranked: np.ndarray
    levels: np.ndarray

    def in_ranks(self) -> np.ndarray:
        return np.concatenate([ranks(self.ranked), self.levels], axis=1)


def _design(rows: pd.DataFrame, controls: tuple[str, ...], form: Form) -> _Design:
    ranked, levels = [np.empty((len(rows), 0))], [np.empty((len(rows), 0))]
    for name in controls:
        if form == "rank" and pd.api.types.is_numeric_dtype(rows[name]):
            ranked.append(numbers(rows, name)[:, None])
        else:
            levels.append(indicators(pd.factorize(as_levels(rows[name]))[0], first=1))
    return _Design(np.concatenate(ranked, axis=1), np.concatenate(levels, axis=1))


def _slopes(block: Block, controls: tuple[str, ...], form: Form) -> Callable[[int, int], float]:
    design = _design(block.rows, controls, form)
    controls_NK = unit(design.in_ranks())
    centred = [x - x.mean(axis=0) for x in (block.metrics_NC, block.targets_NE)]
    left_NC, left_NE = (x - controls_NK @ np.linalg.lstsq(controls_NK, x, rcond=1e-10)[0] for x in centred)
    total_C, norm_C = np.linalg.norm(centred[0], axis=0), np.linalg.norm(left_NC, axis=0)
    norm_C = np.where(norm_C > ROUNDING * total_C, norm_C, np.nan)
    slope_CE = left_NC.T @ left_NE / norm_C[:, None] / np.sqrt(len(block.rows) - 1)
    return lambda i, j: float(slope_CE[i, j])


def _correlations(
    block: Block, controls: tuple[str, ...], form: Form, groups: str | None
) -> Callable[[int, int], Noted]:
    """Return a function of the indexes of a metric and a target, which returns their estimate and note."""
    n, n_metrics = block.metrics_NC.shape
    design = _design(block.rows, controls, form)
    groups_N = pd.factorize(as_levels(block.rows[groups]))[0] if groups else None
    columns_NX = np.concatenate([block.metrics_NC, block.targets_NE], axis=1)
    ranks_NX = unit(ranks(columns_NX))
    fit = partial_correlation(ranks_NX[:, :n_metrics], ranks_NX[:, n_metrics:], design.in_ranks(), groups_N)
    if groups_N is not None and fit.enough:
        arguments = (columns_NX, n_metrics, design.ranked, design.levels, groups_N, fit.rank_between)
        low_CE, high_CE = interval_of_groups(*arguments)
    else:
        low_CE, high_CE = fisher_interval(fit.r_CE, fit.n_as_copies, fit.rank_between)
    values_4CE = np.stack([fit.r_CE, low_CE, high_CE, p_values(fit.r_CE, fit.dof_CE)])
    constant_X = np.linalg.norm(ranks_NX, axis=0) == 0
    units = f"{groups_N.max() + 1} groups" if groups_N is not None else f"{n} rows"
    given = f" with {fit.rank_between} controls" if fit.rank_between else ""

    def of_pair(i: int, j: int) -> Noted:
        pair = [i, n_metrics + j]
        require_variation(constant_X[pair])
        require_freedom(n - 2 - fit.rank, "controls take")
        require_unexplained(fit.left_X[pair], "the controls explain")
        r, low, high, p_value = values_4CE[:, i, j].tolist()
        estimate = Estimate(r, low, high, p_value, n)
        if not (np.isnan(estimate.p_value) or np.isnan(estimate.low)):
            return Noted(estimate, "")
        missing = "an interval" if fit.dof_CE[i, j] > 0 else "a p-value or an interval"
        return Noted(estimate, f"{units} are too few for {missing}{given}")

    return of_pair
