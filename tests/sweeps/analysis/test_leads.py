"""Change points against planted ones, leads against planted leads, and no lead where runs are shuffled."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.analysis.leads import NO_CHANGE, change_point, lag_of, lead_lag, middle
from sweeps.table.columns import AnalysisError

STEPS = np.arange(0, 2000, 20)


def noisy(values, seed, noise):
    return values + noise * np.random.default_rng(seed).normal(size=len(values))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("at", [100, 910, 1700])
def test_a_jump_is_located_between_adjacent_measurements(at, noise):
    result = change_point(STEPS, noisy(np.where(at > STEPS, 9.0, 7.0), at, noise))
    assert abs(result.step - at) <= (20 if noise < 0.2 else 60)
    np.testing.assert_allclose([result.before, result.after], [9, 7], atol=0.2)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_end_and_the_turn_of_a_slope_are_located(noise):
    level = change_point(STEPS, noisy(np.maximum(10 - STEPS / 100, 4), 0, noise), "level")
    assert abs(level.step - 600) <= 20
    np.testing.assert_allclose([level.before, level.after], [10, 4], atol=0.1)
    turn = change_point(STEPS, noisy(np.abs(STEPS - 800) / 200, 0, noise), "turn")
    assert abs(turn.step - 800) <= 40


@pytest.mark.parametrize(
    "values, kind, least",
    [
        (np.full(100, 3.0), "jump", 0.0),  # constant
        (np.random.default_rng(0).normal(size=100), "jump", 0.0),  # noise alone
        (np.where(STEPS < 900, 0.1, 0.4), "jump", 0.5),  # a jump below the threshold
        (10 - STEPS / 400, "turn", 0.0),  # falls without a turn
        (10 - STEPS / 400, "level", 0.0),  # falls to the end
        (10 - (STEPS / 400) ** 2, "level", 0.0),  # falls ever faster
        (10 - STEPS / 400, "jump", 0.0),  # drifts
        (np.r_[np.full(87, np.nan), [0] * 6, [1] * 7], "jump", 0.0),  # too few
    ],
)
def test_curves_without_a_change_have_no_change_point(values, kind, least):
    result = change_point(STEPS, values, kind, least)
    assert math.isnan(result.step) and repr(result) == repr(NO_CHANGE)


def test_missing_values_are_dropped_and_an_unknown_kind_is_refused():
    values = np.where(STEPS < 910, 9.0, 7.0)
    values[::3] = np.nan
    assert abs(change_point(STEPS, values).step - 910) <= 30
    with pytest.raises(AnalysisError, match="kind = 'bend': needs one of jump, level, turn"):
        change_point(STEPS, values, "bend")


def simulated_curves(seed, runs=10, lead=60.0, shuffled=False):
    """Return runs whose outcome rises at a random time and whose metric falls `lead` steps earlier."""
    random = np.random.default_rng(seed)
    outcome = random.uniform(500, 1500, runs)
    metric = outcome - lead + random.normal(0, 25, runs)
    metric = random.permutation(metric) if shuffled else metric
    curves = {}
    for i in range(runs):
        rise = 1 / (1 + np.exp(-(STEPS - outcome[i]) / 40)) + 0.05 * random.normal(size=len(STEPS))
        fall = 10 - 4 / (1 + np.exp(-(STEPS - metric[i]) / 40)) + 0.2 * random.normal(size=len(STEPS))
        curves[f"run{i}"] = pd.DataFrame({"step": STEPS, "metric": fall, "outcome": rise})
    return curves


@pytest.mark.parametrize("lead", [60.0, -60.0, 0.0])
def test_a_planted_lead_lies_within_its_interval(lead):
    result = [lead_lag(simulated_curves(seed, lead=lead), "metric", "outcome") for seed in range(60)]
    covered = np.mean([f.lead.low <= lead <= f.lead.high for f in result])
    assert covered > 0.88  # of 60 at 95 %: less than this one time in a hundred
    assert abs(np.mean([f.lead.estimate for f in result]) - lead) < 5
    claimed = np.mean([f.claimed for f in result])
    assert claimed > 0.9 if lead else claimed < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("runs, lead", [(6, 60.0), (10, 600.0), (20, 600.0)])
def test_at_most_7_percent_of_shuffled_runs_have_a_lead(runs, lead):
    result = [lead_lag(simulated_curves(seed, runs, lead, shuffled=True), "metric", "outcome") for seed in range(500)]
    assert np.mean([f.claimed for f in result]) <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("runs", [6, 20])
def test_the_interval_covers_the_lead_in_95_percent(runs):
    result = [lead_lag(simulated_curves(seed, runs), "metric", "outcome").lead for seed in range(400)]
    assert np.mean([f.low <= 60 <= f.high for f in result]) > 0.92


@pytest.mark.parametrize("kind", ["jump", "level", "turn"])
def test_noise_rarely_has_a_change_point(kind):
    random = np.random.default_rng(0)
    result = [change_point(np.arange(16), random.normal(size=16), kind).step for _ in range(400)]
    assert np.mean(~np.isnan(result)) < 0.05


def planted(random, settings, seeds, tied):
    """Return change points shifted by a setting; within a run they share their scatter only if `tied`."""
    middles = np.repeat(1000 + 500 * np.arange(settings), seeds)
    scatter = random.normal(0, 100, len(middles))
    metric = middles + (scatter if tied else random.normal(0, 100, len(middles)))
    runs = [f"run{i}" for i in range(len(middles))]
    changes = {"run_id": runs, "group": runs, "metric_step": metric, "outcome_step": middles + scatter + 50}
    return pd.DataFrame(changes), dict(zip(runs, np.repeat([f"c{i}" for i in range(settings)], seeds), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_a_setting_that_moves_both_is_not_a_lead(tied):
    random = np.random.default_rng(0)
    tables = [planted(random, 4, 4, tied) for _ in range(60)]
    blind = np.mean([lag_of(changes).lead.p_value < 0.05 for changes, _ in tables])
    within = np.mean([lag_of(changes, settings).lead.p_value < 0.05 for changes, settings in tables])
    assert blind > 0.9
    assert within > 0.9 if tied else within < 0.12


def test_few_runs_and_missing_curves_are_noted():
    curves = simulated_curves(0, runs=3)
    curves["run0"]["outcome"] = 0.0
    curves["run1"] = curves["run1"].drop(columns="metric")
    result = lead_lag(curves, "metric", "outcome", least=0.5)
    assert result.lead.n == 1 and not result.claimed
    assert math.isnan(result.lead.low) and math.isnan(result.lead.p_value)
    assert "1 of 3 runs lack the metric or the outcome; the outcome doesn't change in 1 of 2 runs" in result.note
    assert "which needs 6" in result.note and "too few groups to tell a lead from chance" in result.note
    nothing = lead_lag({}, "metric", "outcome")
    assert math.isnan(nothing.lead.estimate) and nothing.note == "no run has both curves"


def test_inconsistent_arguments_are_refused_in_one_line():
    curve = pd.DataFrame({"step": np.arange(20.0), "a": 1.0, "b": 1.0})
    with pytest.raises(AnalysisError, match="groups doesn't name run 'r'"):
        lead_lag({"r": curve}, "a", "b", groups={})
    with pytest.raises(AnalysisError, match="settings doesn't name run 'r'"):
        lead_lag({"r": curve}, "a", "b", settings={"other": "x"})
    with pytest.raises(AnalysisError, match="the curve of run 'r' has no column 'step'"):
        lead_lag({"r": curve[["a", "b"]]}, "a", "b")
    with pytest.raises(AnalysisError, match="3 steps and 2 values"):
        change_point([0, 1, 2], [1, 2])


def test_runs_of_a_group_count_once():
    curves = simulated_curves(1, runs=12)
    groups = {run: f"g{i // 2}" for i, run in enumerate(curves)}
    result = lead_lag(curves, "metric", "outcome", groups=groups)
    lags = result.changes.groupby("group")["lag"].mean().to_numpy()
    np.testing.assert_allclose(result.lead[:3], middle(lags))
    assert result.lead.n == 6


@pytest.mark.parametrize("n", [6, 9, 14])
def test_the_median_and_its_interval_match_signed_ranks(n):
    """The interval holds exactly the values that Wilcoxon's exact test doesn't reject at 5 %."""
    x_N = np.random.default_rng(n).normal(2, 1, n)
    estimate, low, high = middle(x_N)
    pairs = [(a + b) / 2 for a, b in itertools.combinations_with_replacement(x_N, 2)]
    np.testing.assert_allclose(estimate, np.median(pairs))
    for at, accepted in ((low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)):
        assert (stats.wilcoxon(x_N - at, mode="exact").pvalue > 0.05) == accepted
    assert math.isnan(middle(x_N[:5])[1]) and math.isnan(middle(x_N[:0])[0])
    assert middle(np.append(x_N, np.nan)) == middle(x_N)
