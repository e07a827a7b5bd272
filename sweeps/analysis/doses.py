"""Estimate effects of interventions from pairs of runs with the same settings and seeds, with one and without.

An arm is a kind of intervention; a dose is its value. If a metric caused an outcome, every arm that moves the metric
would move the outcome by the same slope; arms whose slopes differ also move it in another way (methods.md, section 6).

Letters: N final rows, P pairs, D doses of an arm, S seeds, A arms.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from olmo_jax.config.intervention import KINDS, PROJECTED, InterventionConfig
from sweeps.analysis.contrast import LEAST_SEEDS, mean_estimate
from sweeps.analysis.encode import finite_numbers
from sweeps.analysis.estimate import Estimate, NotEstimableError, estimated, nothing
from sweeps.analysis.pairing import as_level
from sweeps.table.columns import controls_of, final_rows

# With fewer pairs no interval is given: Student's t over so few is as wide as the effects.
LEAST_PAIRS = LEAST_SEEDS
CONTROL = ""

_SETTINGS = "config.intervention."
_SEEDS = ("config.init_seed", "config.data_seed")


class Overidentification(NamedTuple):
    """The test of whether one slope fits all arms.

    Attributes:
      q: Cochran's Q, the weighted squared deviations of the arms' slopes from the common one. slope: the common one.
      dof: arms minus 1. error_dof: degrees of freedom of the noise. p_value: of F = Q / dof. arms: their number.
    """

    q: float
    slope: float
    dof: int
    error_dof: int
    p_value: float
    arms: int


class Pairs(NamedTuple):
    """One row per run with an intervention: arm, dose, seed, and the changes of metric (x) and outcome (y)."""

    rows: pd.DataFrame
    metric: str
    outcome: str


def arms_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return each row's arm ("" for a run without any intervention), its dose, and its other settings.

    A run with several interventions is an arm of its own, named by all of them; its dose is that of the first.

    Returns:
      A DataFrame with the rows' index: arm, dose, and `settings`, the values of every other setting that varies.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(InterventionConfig)}
    intervention_columns = [c for c in rows.columns if str(c).startswith(_SETTINGS)]
    other = [c for c in controls_of(rows) if c not in intervention_columns and c != "config.model.factored_head"]
    arms, doses = [], []
    for _, row in rows.iterrows():
        given = {name: row.get(f"{_SETTINGS}{name}", defaults[name]) for name in KINDS}
        active = [name for name, value in given.items() if as_level(value) not in (None, as_level(defaults[name]))]
        names = [_named(name, row) for name in active]
        arms.append(" and ".join(names))
        doses.append(float(given[active[0]]) if active else 0.0)
    settings = [tuple(as_level(value) for value in values) for values in rows[other].itertuples(index=False)]
    shared = pd.Series(settings, rows.index, dtype=object) if other else pd.Series([()] * len(rows), rows.index)
    return pd.DataFrame({"arm": arms, "dose": doses, "settings": shared}, rows.index)


def _named(name: str, row: pd.Series) -> str:
    subspace = row.get(f"{_SETTINGS}backward_subspace")
    if name == "penalty_weight":
        return f"penalty on {row.get(f'{_SETTINGS}penalty_metric')}"
    return f"{name} {subspace}" if name in PROJECTED and isinstance(subspace, str) else name


def pairs(table: pd.DataFrame, metric: str, outcome: str) -> Pairs:
    """Pair the finished runs that have an intervention with those of the same settings and seeds that have none.

    A run without a partner, or without a finite metric or outcome, is left out.
    """
    rows = final_rows(table).rows
    labels = arms_of(rows)
    values = finite_numbers(rows, [metric, outcome])
    seeds = [c for c in _SEEDS if c in rows.columns]
    seed = [tuple(as_level(v) for v in values) for values in rows[seeds].itertuples(index=False)]
    data = labels.assign(seed=pd.Series(seed, rows.index, dtype=object), x=values[metric], y=values[outcome]).dropna()
    control = data[data["arm"] == CONTROL].drop_duplicates(["settings", "seed"])
    joined = data[data["arm"] != CONTROL].merge(control, on=["settings", "seed"], suffixes=("", "_control"))
    joined["x"] -= joined.pop("x_control")
    joined["y"] -= joined.pop("y_control")
    columns = ["arm", "dose", "settings", "seed", "x", "y"]
    order = joined[columns].sort_values(["arm", "dose"], kind="stable")
    return Pairs(order.reset_index(drop=True), metric, outcome)


def dose_response(paired: Pairs) -> pd.DataFrame:
    """Return the changes of metric and outcome by each dose of each arm, in their units.

    Intervals are Student's t over pairs. The slope is the Wald ratio, the outcome's change over the metric's, with
    Fieller's interval.

    Returns:
      One row per (arm, dose): arm, dose, pairs, metric_change, metric_low, metric_high, outcome_change, outcome_low,
      outcome_high, slope, slope_low, slope_high, note (why a number is missing).
    """
    rows = []
    for (arm, dose), part in paired.rows.groupby(["arm", "dose"], sort=False):
        row: dict[str, Any] = {"arm": arm, "dose": dose, "pairs": len(part)}
        for name, change_P in (("metric", part["x"].to_numpy()), ("outcome", part["y"].to_numpy())):
            mean = mean_estimate(change_P)
            row |= {f"{name}_change": mean.estimate, f"{name}_low": mean.low, f"{name}_high": mean.high}
        rows.append(row | _slope(part["x"].to_numpy(), part["y"].to_numpy()))
    return pd.DataFrame(rows, columns=_DOSE_COLUMNS)


_DOSE_COLUMNS = [
    "arm", "dose", "pairs", "metric_change", "metric_low", "metric_high", "outcome_change", "outcome_low",
    "outcome_high", "slope", "slope_low", "slope_high", "note",
]  # fmt: skip


def arm_slopes(paired: Pairs) -> pd.DataFrame:
    """Return each arm's slope of the outcome over the metric, all doses together: the arm is the instrument.

    Doses are weighted by how far they move the metric on average, as two-stage least squares with an indicator of each
    dose does; the interval is Fieller's over seeds.

    Returns:
      One row per arm: arm, doses, pairs (seeds that have every dose), metric_change and outcome_change (of the dose
      that moves the metric most), slope, slope_low, slope_high, note.
    """
    rows = []
    for arm, part in paired.rows.groupby("arm", sort=False):
        x_SD, y_SD = (part.pivot_table(index=["settings", "seed"], columns="dose", values=v) for v in ("x", "y"))
        complete_S = x_SD.notna().all(axis=1)
        x_SD, y_SD = x_SD[complete_S].to_numpy(), y_SD[complete_S].to_numpy()
        row: dict[str, Any] = {"arm": arm, "doses": part["dose"].nunique(), "pairs": len(x_SD)}
        if len(x_SD):
            weight_D = x_SD.mean(axis=0)
            most = int(np.argmax(np.abs(weight_D)))
            row |= {"metric_change": weight_D[most], "outcome_change": y_SD[:, most].mean()}
            row |= _slope(x_SD @ weight_D, y_SD @ weight_D)
        else:
            row |= {"note": "no seed has every dose"}
        rows.append(row)
    return pd.DataFrame(rows, columns=_ARM_COLUMNS)


_ARM_COLUMNS = [
    "arm", "doses", "pairs", "metric_change", "outcome_change", "slope", "slope_low", "slope_high", "note",
]  # fmt: skip


def fieller(x_P: np.ndarray, y_P: np.ndarray) -> Estimate:
    """Return the ratio mean(y) / mean(x) over pairs with Fieller's 95 % interval; p is of mean(y) = 0.

    Raises NotEstimableError for fewer than LEAST_PAIRS pairs, and where the mean of x doesn't differ from 0 at 5 %:
    every slope is then possible.
    """
    n = len(x_P)
    if n < LEAST_PAIRS:
        raise NotEstimableError(f"{n} pair{'s' * (n != 1)}; an interval needs {LEAST_PAIRS}")
    x, y, t2 = x_P.mean(), y_P.mean(), stats.t.ppf(0.975, n - 1) ** 2
    (var_x, cov), (_, var_y) = np.cov(x_P, y_P, ddof=1) / n
    a, b, c = x * x - t2 * var_x, x * y - t2 * cov, y * y - t2 * var_y
    if a <= 0:
        raise NotEstimableError("the arm doesn't move the metric, so every slope is possible")
    half = math.sqrt(max(b * b - a * c, 0.0))
    p_value = 1.0 if var_y == 0 and y == 0 else float(2 * stats.t.sf(abs(y) / math.sqrt(max(var_y, 1e-300)), n - 1))
    return Estimate(float(y / x), float((b - half) / a), float((b + half) / a), p_value, n)


def _slope(x_P: np.ndarray, y_P: np.ndarray) -> dict[str, Any]:
    def missing(reason: str) -> dict[str, Any]:
        return {"note": reason}

    def known(x_P: np.ndarray, y_P: np.ndarray) -> dict[str, Any]:
        ratio = fieller(x_P, y_P)
        return {"slope": ratio.estimate, "slope_low": ratio.low, "slope_high": ratio.high, "note": ""}

    return estimated(missing, known, x_P, y_P)


def overidentification(paired: Pairs) -> Overidentification:
    """Test whether one slope fits all arms that move the metric: Cochran's Q over arms, as an F test.

    Outcomes of the pairs are regressed on the mean change of the metric at their dose, with one slope per arm or a
    single slope. A term for each seed absorbs what its runs share, above all the noise of the common control, which
    makes the slopes of different arms dependent. The noise is estimated from the pairs, so that Q / dof follows F
    rather than chi-squared / dof [ours]; it is assumed to be equal for all doses. It is that of the outcome minus the
    common slope times the metric, if this is larger, so that noise of the metric isn't taken for different slopes.

    Raises NotEstimableError for fewer than two arms or LEAST_PAIRS seeds, an outcome that never changes, and where too
    few arms move the metric.
    """
    arms = list(dict.fromkeys(paired.rows["arm"]))
    if len(arms) < 2:
        raise NotEstimableError(f"{len(arms)} arm{'s' * (len(arms) != 1)}; comparing slopes takes two or more")
    if not paired.rows["y"].any():
        raise NotEstimableError("the outcome is the same with and without an intervention, in every pair")
    blocks_MS, moved_M, arm_M, x_M, y_M = _with_controls(paired)
    one_MK = np.column_stack([blocks_MS, moved_M])
    each_MK = np.column_stack([blocks_MS, *(moved_M * (arm_M == arm) for arm in arms)])
    (rest_one, slope, rank_one), (rest_each, _, rank_each) = _residual(one_MK, y_M), _residual(each_MK, y_M)
    dof, error_dof = rank_each - rank_one, len(y_M) - rank_each
    if dof < 1 or error_dof < 1 or rest_each <= 0:
        raise NotEstimableError("too few arms move the metric, or there are too few runs")
    rest_metric, _, _ = _residual(each_MK, y_M - slope * x_M)
    q = (rest_one - rest_each) / (max(rest_metric, rest_each) / error_dof)
    return Overidentification(q, slope, dof, error_dof, float(stats.f.sf(q / dof, dof, error_dof)), len(arms))


def common_slope(paired: Pairs, level: float = 0.95) -> Estimate:
    """Return the slope of the outcome over the metric's mean change at each dose, one for all arms, with Student's t.

    The regression is that of `overidentification`, whose test says whether one slope fits. It is two-stage least
    squares with an indicator of each dose as instrument.

    Raises NotEstimableError for fewer than LEAST_PAIRS seeds, and if no dose moves the metric: t tests at 5 %,
    corrected for the number of doses.
    """
    blocks_MS, moved_M, _, x_M, y_M = _with_controls(paired)
    doses = [part["x"].to_numpy() for _, part in paired.rows.groupby(["arm", "dose"])]
    if not any(_moves(x_P, 0.05 / len(doses)) for x_P in doses):
        raise NotEstimableError("no intervention moves the metric")
    both_MK = np.column_stack([blocks_MS, moved_M])
    _, slope, rank = _residual(both_MK, y_M)
    spread, _, _ = _residual(blocks_MS, moved_M)
    # As in two-stage least squares, the noise is that given the metric itself, not its mean at the dose.
    rest, _, _ = _residual(both_MK, y_M - slope * x_M)
    dof = len(y_M) - rank
    error = math.sqrt(rest / dof / spread)
    half = stats.t.ppf((1 + level) / 2, dof) * error
    p_value = float(2 * stats.t.sf(abs(slope) / error, dof)) if error > 0 else float(slope == 0)
    return Estimate(slope, slope - half, slope + half, p_value, len(y_M))


def _moves(x_P: np.ndarray, level: float) -> bool:
    if len(x_P) < 2:
        return False
    error = stats.sem(x_P)
    return bool(x_P.mean() != 0) if error == 0 else bool(2 * stats.t.sf(abs(x_P.mean()) / error, len(x_P) - 1) < level)


def _with_controls(paired: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return indicators of seeds, the metric's mean change at the dose, arm, metric and outcome, with the controls.

    Raises NotEstimableError for fewer than LEAST_PAIRS seeds.
    """
    rows = paired.rows
    n_seeds = len(set(zip(rows["settings"], rows["seed"], strict=True)))
    if n_seeds < LEAST_PAIRS:
        raise NotEstimableError(f"{n_seeds} pair{'s' * (n_seeds != 1)}; the test needs {LEAST_PAIRS}")
    moved_N = rows.groupby(["arm", "dose"])["x"].transform("mean").to_numpy()
    block_N = pd.factorize(pd.Series(list(zip(rows["settings"], rows["seed"], strict=True))))[0]
    # The control of each seed, whose changes are 0, is a row too: it gives the lines of all arms a common point.
    x_M, y_M = (np.concatenate([rows[name].to_numpy(), np.zeros(n_seeds)]) for name in ("x", "y"))
    moved_M = np.concatenate([moved_N, np.zeros(n_seeds)])
    block_M = np.concatenate([block_N, np.arange(n_seeds)])
    arm_M = np.concatenate([rows["arm"].to_numpy(), np.full(n_seeds, CONTROL)])
    blocks_MS = (block_M[:, None] == np.arange(n_seeds)).astype(float)
    return blocks_MS, moved_M, arm_M, x_M, y_M


def _residual(x_MK: np.ndarray, y_M: np.ndarray) -> tuple[float, float, int]:
    """Return the residual sum of squares, the last coefficient and the rank of a least-squares regression."""
    scale_K = np.linalg.norm(x_MK, axis=0)
    scale_K = np.where(scale_K > 0, scale_K, 1.0)
    coefficient_K, _, rank, _ = np.linalg.lstsq(x_MK / scale_K, y_M, rcond=1e-9)
    rest_M = y_M - x_MK / scale_K @ coefficient_K
    return float(rest_M @ rest_M), float(coefficient_K[-1] / scale_K[-1]), int(rank)


def observational_slope(table: pd.DataFrame, metric: str, outcome: str) -> Estimate:
    """Return the slope of the outcome over the metric among runs without intervention, whose settings differ.

    Least squares over the means of configurations, with Student's t interval: what a purely observational sweep would
    show. NaN for fewer than four configurations.
    """
    rows = final_rows(table).rows
    rows = rows[arms_of(rows)["arm"] == CONTROL]
    values = finite_numbers(rows, [metric, outcome]).assign(configuration=rows["configuration"].map(str))
    means = values.dropna().groupby("configuration").mean()
    if len(means) < LEAST_PAIRS - 1 or means[metric].nunique() < 2:
        return nothing(len(means))
    line = stats.linregress(means[metric], means[outcome])
    half = stats.t.ppf(0.975, len(means) - 2) * line.stderr
    return Estimate(line.slope, line.slope - half, line.slope + half, line.pvalue, len(means))


def detectable(n_pairs: int, power: float = 0.8) -> float:
    """Return the change that a paired t test at 5 % finds with this power, in standard deviations of the differences.

    Divided by the change of the metric, it is the smallest slope that the pairs could detect. NaN below LEAST_PAIRS.
    """
    if n_pairs < LEAST_PAIRS:
        return math.nan
    critical = stats.f.ppf(0.95, 1, n_pairs - 1)  # of t squared

    def power_of(effect: float) -> float:
        return float(stats.ncf.sf(critical, 1, n_pairs - 1, n_pairs * effect**2))

    return float(optimize.brentq(lambda effect: power_of(effect) - power, 0.0, 10.0))
