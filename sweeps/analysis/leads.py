"""Test which of two curves changes first, by the lag between change points in each run and a null of shuffled runs.

    result = lead_lag(curves, "layer_1.train/local_two_nn", "texts.validation/accuracy")
    result.lead          Estimate: steps by which the metric's change precedes the outcome's
    result.changes       one row per run: the two change points

Units are groups of runs, by default single runs.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.estimate import Estimate, join_notes, nothing
from sweeps.table.columns import AnalysisError

KINDS = ("jump", "level", "turn")
# With this many values or more, pure noise has a change, as defined below, in less than 5 % of cases.
LEAST_VALUES = 16
LEAST_EXPLAINED = 0.5
# A change must leave less than this share of a straight line's sum of squared residuals, as a drift isn't a change.
_BESIDE_A_LINE = 0.8
# A level must hold for this share of the values.
_LEAST_LEVEL = 0.1
# Fewer values have no 95 % signed-rank interval: 2 / 2^5 is more than 5 %.
MIN_FOR_INTERVAL = 6
SHUFFLES = 2000


class Change(NamedTuple):
    """Where a curve changes: the step, the levels before and after, and the share of its variance that this explains.

    All NaN where it has no change.
    """

    step: float
    before: float
    after: float
    explained: float


NO_CHANGE = Change(math.nan, math.nan, math.nan, math.nan)


class LeadLag(NamedTuple):
    """The result of `lead_lag`.

    Attributes:
      lead: steps from the metric's change to the outcome's, positive where the metric's comes first; p by shuffling; n
        counts groups.
      changes: one row per run: run_id, group, metric_step, outcome_step, lag; NaN where a curve has no change.
      claimed: whether a lead or a lag is significant: its interval excludes 0, and p < .05.
      note: what is missing, and why.
    """

    lead: Estimate
    changes: pd.DataFrame
    claimed: bool
    note: str


def change_point(steps: np.ndarray, values: np.ndarray, kind: str = "jump", least: float = 0.0) -> Change:
    """Return the point where a curve changes, by least squares, up to the distance between measurements.

    Args:
      steps: ascending. values: NaN are left out.
      kind: "jump", from one level to another; "level", from a straight slope to a level that lasts for at least a tenth
        of the values; "turn", from a slope to one of the other sign, the vertex of a V.
      least: the smallest difference of levels (for a turn: of the change before or after it) that counts.

    Returns:
      The change; NO_CHANGE with fewer than 16 values, where the change explains less than half of the variance or
      hardly more than a straight line, and where it is smaller than `least`.

    Raises AnalysisError for another kind, and for unequal numbers of steps and values.
    """
    if kind not in KINDS:
        raise AnalysisError(f"kind = '{kind}': needs one of {', '.join(KINDS)}")
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if steps.shape != values.shape:
        raise AnalysisError(f"{steps.size} steps and {values.size} values: a curve needs equal numbers of both")
    known = np.isfinite(steps) & np.isfinite(values)
    x_N, y_N = steps[known], values[known]
    total = float(np.sum((y_N - y_N.mean()) ** 2)) if len(y_N) else 0.0
    if len(y_N) < LEAST_VALUES or total == 0:
        return NO_CHANGE
    step, before, after, left = _jump(x_N, y_N) if kind == "jump" else _hinge(x_N, y_N, flat=kind == "level")
    explained = 1 - left / total
    if explained < LEAST_EXPLAINED or left > _BESIDE_A_LINE * _left_by_a_line(x_N, y_N) + 1e-12 * total:
        return NO_CHANGE
    size = abs(after - before)
    if kind == "turn":
        first, last = (float(v) for v in (y_N[:2].mean(), y_N[-2:].mean()))
        if (after - first) * (last - after) >= 0:  # it continues in the same direction
            return NO_CHANGE
        size = min(abs(after - first), abs(last - after))
    return Change(step, before, after, explained) if size >= least else NO_CHANGE


def _jump(x_N: np.ndarray, y_N: np.ndarray) -> tuple[float, float, float, float]:
    """Fit two levels: the step between them, the levels and the squares left, for all splits by running sums."""
    n_K = np.arange(1, len(y_N))
    sum_K, square = np.cumsum(y_N)[:-1], np.sum(y_N**2)
    rest_K, m_K = y_N.sum() - sum_K, len(y_N) - n_K
    left_K = square - sum_K**2 / n_K - rest_K**2 / m_K
    k = int(np.argmin(left_K))
    return (x_N[k] + x_N[k + 1]) / 2, sum_K[k] / n_K[k], rest_K[k] / m_K[k], max(0.0, float(left_K[k]))


def _hinge(x_N: np.ndarray, y_N: np.ndarray, flat: bool) -> tuple[float, float, float, float]:
    """Fit two lines that meet, the second level if `flat`: the step, values at start and step, the squares left."""
    best = (math.nan, math.nan, math.nan, math.inf)
    scaled_N = (x_N - x_N[0]) / (x_N[-1] - x_N[0])
    shortest = max(1, math.ceil(_LEAST_LEVEL * len(x_N))) if flat else 1
    for k in range(1, len(x_N) - shortest):
        before_N, after_N = np.minimum(scaled_N - scaled_N[k], 0), np.maximum(scaled_N - scaled_N[k], 0)
        columns = [np.ones_like(scaled_N), before_N] + ([] if flat else [after_N])
        a_NC = np.stack(columns, axis=1)
        fitted_C, *_ = np.linalg.lstsq(a_NC, y_N, rcond=None)
        left = float(np.sum((y_N - a_NC @ fitted_C) ** 2))
        if left < best[3]:
            best = (float(x_N[k]), float(fitted_C[0] - fitted_C[1] * scaled_N[k]), float(fitted_C[0]), left)
    return best


def _left_by_a_line(x_N: np.ndarray, y_N: np.ndarray) -> float:
    return float(np.sum((y_N - np.polyval(np.polyfit(x_N - x_N.mean(), y_N, 1), x_N - x_N.mean())) ** 2))


def lead_lag(
    curves: Mapping[str, pd.DataFrame],
    metric: str,
    outcome: str,
    kinds: tuple[str, str] = ("jump", "jump"),
    least: float = 0.0,
    groups: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
) -> LeadLag:
    """Test over runs whether a metric changes before or after an outcome.

    The lead is the median of the pairwise means of the lags (Hodges and Lehmann), with one mean lag per group; the
    interval is that of Wilcoxon's signed ranks, exact for lags with a symmetric distribution, and needs 6 groups. A lag
    that exists because all runs change at the same time of training says nothing about the two curves of one run: p is
    the share of shuffles, which pair each group's metric with another's outcome, in which the lags scatter as little as
    observed. If all runs change at the same times, p is large, and nothing can be claimed. A common cause of both
    changes, such as a setting, makes p small: with `settings` only groups of the same settings are shuffled.

    Args:
      curves: each run's metrics by run id, with a column `step`; those without one of the columns are left out.
      kinds: kinds of change of metric and outcome; see `change_point`. least: the smallest change of the outcome.
      groups: the group of each run; None for one group per run. settings: the settings of each run, equal in a group.
      seed: seed of the shuffles.

    Raises AnalysisError for a curve without `step`, and for a run that `groups` or `settings` doesn't name.
    """
    rows = []
    for run, curve in curves.items():
        if "step" not in curve:
            raise AnalysisError(f"the curve of run '{run}' has no column 'step'")
        for what, names in (("groups", groups), ("settings", settings)):
            if names is not None and run not in names:
                raise AnalysisError(f"{what} doesn't name run '{run}'; name all runs, or pass None")
        if not {metric, outcome} <= {*curve.columns}:
            continue
        steps = curve["step"].to_numpy(float)
        metric_change = change_point(steps, curve[metric].to_numpy(float), kinds[0])
        outcome_change = change_point(steps, curve[outcome].to_numpy(float), kinds[1], least)
        rows.append((run, run if groups is None else groups[run], metric_change.step, outcome_change.step))
    result = lag_of(pd.DataFrame(rows, columns=["run_id", "group", "metric_step", "outcome_step"]), settings, seed)
    if lacking := len(curves) - len(rows):
        note = f"{lacking} of {len(curves)} runs lack the metric or the outcome"
        result = result._replace(note=join_notes(note, result.note))
    return result


def lag_of(changes: pd.DataFrame, settings: Mapping[str, str] | None = None, seed: int = 0) -> LeadLag:
    """Return the result of `lead_lag` from the change points: columns run_id, group, metric_step and outcome_step."""
    changes = changes.assign(lag=changes["outcome_step"] - changes["metric_step"])
    complete = changes.dropna(subset=["metric_step", "outcome_step"])
    notes = [
        f"{what} doesn't change in {int(changes[column].isna().sum())} of {len(changes)} runs"
        for what, column in (("the metric", "metric_step"), ("the outcome", "outcome_step"))
        if changes[column].isna().any()
    ]
    if not len(complete):
        return LeadLag(nothing(0), changes, False, "; ".join(notes or ["no run has both curves"]))
    by_group = complete.groupby("group")
    means_G = by_group[["metric_step", "outcome_step", "lag"]].mean()
    named = by_group["run_id"].first()
    strata_G = np.array([settings[run] if settings else "" for run in named])
    estimate, low, high = middle(means_G["lag"].to_numpy())
    if math.isnan(low):
        notes.append(f"{len(means_G)} groups are too few for an interval of the lead, which needs {MIN_FOR_INTERVAL}")
    p_value = _shuffled(means_G["metric_step"].to_numpy(), means_G["outcome_step"].to_numpy(), strata_G, seed)
    if math.isnan(p_value):
        condition = " of the same settings" if settings else ""
        notes.append(f"too few groups{condition} to tell a lead from chance by shuffling them")
    lead = Estimate(estimate, low, high, p_value, len(means_G))
    return LeadLag(lead, changes, bool((low > 0 or high < 0) and p_value < 0.05), "; ".join(notes))


def middle(x_N: np.ndarray) -> tuple[float, float, float]:
    """Return the median of pairwise means (Hodges and Lehmann) with the 95 % interval of Wilcoxon's signed ranks.

    NaN values are left out. The interval is NaN with fewer than 6 values, and the median with none.
    """
    x_N = x_N[~np.isnan(x_N)]
    if not len(x_N):
        return math.nan, math.nan, math.nan
    first, second = np.triu_indices(len(x_N))
    means = np.sort((x_N[first] + x_N[second]) / 2)
    estimate = float(np.median(means))
    if len(x_N) < MIN_FOR_INTERVAL:
        return estimate, math.nan, math.nan
    below = _rank_quantile(len(x_N))
    return estimate, float(means[below]), float(means[-1 - below])


def _rank_quantile(n: int) -> int:
    """Return how many pairwise means may lie beyond each end of a 95 % interval of n values."""
    ways = np.ones(1)
    for rank in range(1, n + 1):  # for each sum of signed ranks, how many choices of signs give it
        longer = np.zeros(len(ways) + rank)
        longer[: len(ways)] += ways
        longer[rank:] += ways
        ways = longer
    cumulative = np.cumsum(ways) / 2.0**n
    return max(0, int(np.searchsorted(cumulative, 0.025, side="right")) - 1)


def _shuffled(metric_G: np.ndarray, outcome_G: np.ndarray, strata_G: np.ndarray, seed: int) -> float:
    """Return the share of shuffles within strata in which lags scatter no more than observed.

    It is NaN if fewer than 20 orders are possible.
    """
    members = [np.flatnonzero(strata_G == stratum) for stratum in np.unique(strata_G)]
    if math.prod(math.factorial(min(len(places), 20)) for places in members) < 20:
        return math.nan
    random = np.random.default_rng(seed)
    order_BG = np.tile(np.arange(len(metric_G)), (SHUFFLES, 1))
    for places in members:
        order_BG[:, places] = places[np.argsort(random.random((SHUFFLES, len(places))), axis=1)]
    scatter_B = np.std(outcome_G - metric_G[order_BG], axis=1)
    as_little = scatter_B <= np.std(outcome_G - metric_G) * (1 + 1e-9)
    return float((1 + as_little.sum()) / (1 + SHUFFLES))
