"""Compute rank correlations between columns of the table, with intervals and p-values that respect its clusters.

Letters: N rows, C metrics, E targets, K control columns, G groups.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.bootstrap import ROUNDING, interval_of_groups
from sweeps.analysis.clusters import partial_correlation
from sweeps.analysis.encode import usable
from sweeps.analysis.estimate import MIN_ROWS, Estimate, nothing
from sweeps.analysis.ranks import fisher_interval, p_values, ranks, unit
from sweeps.table.columns import AnalysisError, as_levels, numbers, require_column

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
    and in 74 to 80 % given two controls): then rho is taken as 1, and the interval is Fisher's z with as many rows.

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
    return _one(table, metric, target, (), "rank", groups)[0]


def partial_spearman(
    table: pd.DataFrame,
    metric: str,
    target: str,
    controls: list[str] | tuple[str, ...],
    form: Form = "rank",
    groups: str | None = None,
) -> Estimate:
    """Return Spearman's correlation of metric and target given the controls.

    Metric and target are ranked, regressed on the controls by least squares, and their residuals correlated. It has k
    degrees of freedom fewer than `spearman`, k the rank of the controls beyond the intercept, so that collinear
    settings count once. With groups, k is the rank of the controls' means over groups as far as a group's rows count
    once; rho is estimated and groups are bootstrapped if there are at least 14 + k groups and 2 (k + 2).

    Form "rank" enters each control as its ranks (pingouin.partial_corr, method "spearman"), and so removes only
    monotonic effects: a loss that is U-shaped in a control gives spurious correlations. Form "factor" enters each
    control as a category, one level per value, which removes an effect of any shape and costs one degree of freedom per
    level. A column that isn't numeric is a category in both. Where settings explain nearly all of both columns, ranking
    distorts sums of their effects, and a part of these remains: of null tables with R2 of .9 and more, 6 to 10 % had
    p < .05, of those with less 4 to 6 %.

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
    return _one(table, metric, target, tuple(controls), form, groups)[0]


def partial_slopes(
    table: pd.DataFrame, metrics: list[str], targets: list[str], controls: tuple[str, ...], form: Form
) -> dict[tuple[str, str], float]:
    """Return each target's change, in its units, per standard deviation of a metric's residual given the controls.

    By least squares on the values, with the controls as in `partial_spearman`; NaN where it can't be computed.
    """
    slopes = dict.fromkeys(((m, t) for m in metrics for t in targets), np.nan)
    for metric_names, metrics_NC, target_names, targets_NE, rows in _blocks(table, metrics, targets, controls):
        if len(rows) < MIN_ROWS:
            continue
        design = _design(rows, controls, form)
        controls_NK = unit(np.concatenate([ranks(design.ranked), design.levels], axis=1))
        residuals = [x - x.mean(axis=0) for x in (metrics_NC, targets_NE)]
        residuals = [x - controls_NK @ np.linalg.lstsq(controls_NK, x, rcond=1e-10)[0] for x in residuals]
        total_C = np.linalg.norm(metrics_NC - metrics_NC.mean(axis=0), axis=0)
        norm_C = np.linalg.norm(residuals[0], axis=0)
        norm_C = np.where(norm_C > ROUNDING * total_C, norm_C, np.nan)
        slope_CE = residuals[0].T @ residuals[1] / norm_C[:, None] / np.sqrt(len(rows) - 1)
        for i, metric in enumerate(metric_names):
            slopes |= {(metric, target): float(slope_CE[i, j]) for j, target in enumerate(target_names)}
    return slopes


class _Design(NamedTuple):
    """Controls as columns [N, K]: `ranked` are numbers that enter as ranks, `levels` are 0 and 1 and aren't ranked."""

    ranked: np.ndarray
    levels: np.ndarray


def _one(
    table: pd.DataFrame, metric: str, target: str, controls: tuple[str, ...], form: Form, groups: str | None
) -> tuple[Estimate, str]:
    return many(table, [metric], [target], controls, form, groups)[metric, target]


def many(
    table: pd.DataFrame,
    metrics: list[str],
    targets: list[str],
    controls: tuple[str, ...],
    form: Form,
    groups: str | None,
) -> dict[tuple[str, str], tuple[Estimate, str]]:
    """Return estimate and note of every (metric, target); pairs missing in the same rows are computed together."""
    for name in (*metrics, *targets, *controls, *([groups] if groups else [])):
        require_column(table, name)
    results = {}
    used = (*controls, groups) if groups else controls
    for metric_names, metrics_NC, target_names, targets_NE, rows in _blocks(table, metrics, targets, used):
        groups_N = pd.factorize(as_levels(rows[groups]))[0] if groups else None
        block = _block(metrics_NC, targets_NE, _design(rows, controls, form), groups_N)
        for i, metric in enumerate(metric_names):
            for j, target in enumerate(target_names):
                results[metric, target] = block[i][j]
    return results


def _blocks(
    table: pd.DataFrame, metrics: list[str], targets: list[str], used: tuple[str, ...]
) -> Iterator[tuple[list[str], np.ndarray, list[str], np.ndarray, pd.DataFrame]]:
    """Yield metrics and targets that have values in the same rows: names and values `[N, C]`, `[N, E]`, and the rows.

    Rows where one of the columns `used` is missing are left out.
    """
    used_N = usable(table, used)
    for metric_names, metrics_NC, metric_known_N in by_missing(table, metrics):
        for target_names, targets_NE, target_known_N in by_missing(table, targets):
            mask_N = metric_known_N & target_known_N & used_N
            yield metric_names, metrics_NC[mask_N], target_names, targets_NE[mask_N], table[mask_N]


def by_missing(table: pd.DataFrame, names: list[str]) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Group columns that have values in the same rows: (names, values [N, C], mask of these rows [N])."""
    classes: dict[bytes, list[str]] = {}
    values = {name: numbers(table, name) for name in names}
    for name in names:
        classes.setdefault(np.isfinite(values[name]).tobytes(), []).append(name)
    return [
        (same, np.stack([values[n] for n in same], axis=1), np.isfinite(values[same[0]])) for same in classes.values()
    ]


def _design(rows: pd.DataFrame, controls: tuple[str, ...], form: Form) -> _Design:
    ranked, levels = [np.empty((len(rows), 0))], [np.empty((len(rows), 0))]
    for name in controls:
        if form == "rank" and pd.api.types.is_numeric_dtype(rows[name]):
            ranked.append(numbers(rows, name)[:, None])
        else:
            codes_N, values = pd.factorize(as_levels(rows[name]))
            levels.append((codes_N[:, None] == np.arange(1, len(values))).astype(float))
    return _Design(np.concatenate(ranked, axis=1), np.concatenate(levels, axis=1))


def _block(
    metrics_NC: np.ndarray, targets_NE: np.ndarray, design: _Design, groups_N: np.ndarray | None
) -> list[list[tuple[Estimate, str]]]:
    """Return estimate and note of every pair of a metric and a target, which all have values in the N rows."""
    n, n_metrics = metrics_NC.shape
    columns_NC = np.concatenate([metrics_NC, targets_NE], axis=1)
    if n < MIN_ROWS:
        return [[(nothing(n), f"fewer than {MIN_ROWS} usable rows")] * targets_NE.shape[1] for _ in range(n_metrics)]

    ranks_NC = unit(ranks(columns_NC))
    controls_NK = np.concatenate([ranks(design.ranked), design.levels], axis=1)
    r_CE, dof_CE, left_X, k, k_between, n_as_copies, enough = partial_correlation(
        ranks_NC[:, :n_metrics], ranks_NC[:, n_metrics:], controls_NK, groups_N
    )
    if groups_N is not None and enough:
        arguments = (columns_NC, n_metrics, design.ranked, design.levels, groups_N, k_between)
        low_CE, high_CE = interval_of_groups(*arguments)
    else:
        low_CE, high_CE = fisher_interval(r_CE, n_as_copies, k_between)
    p_CE = p_values(r_CE, dof_CE)

    constant_C = np.linalg.norm(ranks_NC, axis=0) == 0
    none_left = n - 2 - k <= 0
    result = []
    for i in range(n_metrics):
        row = []
        for j in range(targets_NE.shape[1]):
            note = _note_of_missing(
                constant_C[i], constant_C[n_metrics + j], left_X[i], left_X[n_metrics + j], none_left
            )
            if note:
                row.append((nothing(n), note))
                continue
            estimate = Estimate(float(r_CE[i, j]), float(low_CE[i, j]), float(high_CE[i, j]), float(p_CE[i, j]), n)
            if np.isnan(estimate.p_value) or np.isnan(estimate.low):
                missing = "an interval" if dof_CE[i, j] > 0 else "a p-value or an interval"
                units = f"{groups_N.max() + 1} groups" if groups_N is not None else f"{n} rows"
                note = f"{units} are too few for {missing}" + (f" with {k_between} controls" if k_between else "")
            row.append((estimate, note))
        result.append(row)
    return result


def _note_of_missing(
    metric_constant: bool, target_constant: bool, metric_left: bool, target_left: bool, full: bool
) -> str:
    if metric_constant or target_constant:
        return f"the {'metric' if metric_constant else 'target'} is the same in all rows"
    if full:
        return "controls take up every degree of freedom"
    if not (metric_left and target_left):
        return f"the controls explain the {'target' if metric_left else 'metric'} completely"
    return ""
