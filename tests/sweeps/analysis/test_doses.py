"""Effects of interventions, on synthetic tables whose causes are known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.analysis import doses
from sweeps.analysis.doses import Pairs
from sweeps.analysis.estimate import NotEstimableError

# How far the doses of each arm move the metric.
ARMS = {"head_rank": (-20.0, -40.0, -60.0), "polar_decay": (-3.0, -10.0, -25.0), "rank_penalty": (4.0, 8.0, 12.0)}
SEEDS = 6


def paired(rng, slope, side_effect=0.0, seeds=SEEDS):
    """Pairs in which metric and outcome are measured with noise that all runs of a seed and its control share."""
    rows = []
    for seed in range(seeds):
        control_x, control_y = rng.normal(0, 1.0), rng.normal(0, 0.02)
        for arm, moves in ARMS.items():
            for dose, move in enumerate(moves):
                x = move + rng.normal(0, 1.0) - control_x
                y = slope * move + side_effect * (arm == "polar_decay") + rng.normal(0, 0.02) - control_y
                rows.append((arm, float(dose), (), (seed,), x, y))
    return Pairs(pd.DataFrame(rows, columns=["arm", "dose", "settings", "seed", "x", "y"]), "metric", "outcome")


def table(outcome, seeds=(0, 1, 2, 3, 4), extra=()):
    """A sweep of a control, one arm of two doses and other settings: `outcome(rank, seed, arm)`."""
    rows = []
    settings = [{}, {"config.intervention.head_rank": 8}, {"config.intervention.head_rank": 4}, *extra]
    for given in settings:
        for seed in seeds:
            row = {"config.intervention.head_rank": 0, "config.intervention.mean_row": 0.0,
                   "config.intervention.backward_rank": 0, "config.intervention.backward_subspace": "leading",
                   "config.optimizer.weight_decay": 0.1} | given  # fmt: skip
            rank = 50.0 + seed - 3.0 * row["config.intervention.head_rank"]
            rows.append(row | {"config.init_seed": seed, "config.data_seed": seed, "metric": rank,
                               "outcome": outcome(rank, seed, row)})  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.assign(
        run_id=[f"r{i}" for i in range(len(frame))], configuration=[str(i // len(seeds)) for i in range(len(frame))],
        step=1, final=True, diverged_at=pd.array([None] * len(frame), "Int64"),
    )  # fmt: skip


def test_fieller_is_the_set_of_slopes_that_a_t_test_does_not_reject():
    rng = np.random.default_rng(3)
    x, y = rng.normal(5, 1, 7), rng.normal(2, 1, 7)
    found = doses.fieller(x, y)
    assert found.estimate == pytest.approx(y.mean() / x.mean())
    for end in (found.low, found.high):
        assert stats.ttest_1samp(y - end * x, 0).pvalue == pytest.approx(0.05, rel=1e-6)
    assert found.p_value == pytest.approx(stats.ttest_1samp(y, 0).pvalue)
    with pytest.raises(NotEstimableError, match="4 pairs; an interval needs 5"):
        doses.fieller(x[:4], y[:4])
    with pytest.raises(NotEstimableError, match="doesn't move the metric"):
        doses.fieller(x - x.mean(), y)


def test_the_slope_of_an_arm_without_effect_covers_zero_as_often_as_it_says():
    """A common cause moves metric and outcome between seeds; the arm moves the metric alone."""
    rng, covered, trials = np.random.default_rng(0), 0, 1500
    for _ in range(trials):
        cause = rng.normal(size=SEEDS)
        x, y = -20 + 4 * cause + rng.normal(size=SEEDS), 0.1 * cause + rng.normal(0, 0.02, SEEDS)
        found = doses.fieller(x, y)
        covered += found.low <= 0 <= found.high
    assert 0.93 < covered / trials < 0.97


def test_the_common_slope_covers_the_cause_and_is_not_rejected_for_noise_of_the_metric():
    rng, trials, covered, rejected = np.random.default_rng(2), 300, 0, 0
    for _ in range(trials):
        pairs = paired(rng, slope=-0.02)
        found = doses.common_slope(pairs)
        covered += found.low <= -0.02 <= found.high
        rejected += doses.overidentification(pairs).p_value < 0.05
    assert covered / trials > 0.92
    assert rejected / trials < 0.08


def test_there_is_no_common_slope_if_nothing_moves_the_metric():
    rng = np.random.default_rng(0)
    pairs = paired(rng, slope=0.0)
    still = pairs._replace(rows=pairs.rows.assign(x=rng.normal(size=len(pairs.rows))))
    with pytest.raises(NotEstimableError, match="no intervention moves the metric"):
        doses.common_slope(still)


def test_q_rejects_one_slope_as_rarely_as_it_says_where_the_metric_is_the_cause():
    rng, trials = np.random.default_rng(1), 600
    p_values = np.array([doses.overidentification(paired(rng, slope=-0.004)).p_value for _ in range(trials)])
    assert 0.04 < (p_values < 0.05).mean() < 0.07
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_q_finds_an_arm_with_a_side_effect():
    """A side effect of 1.5 standard deviations of a run is found in more than 80 % of tables of six seeds."""
    rng, trials = np.random.default_rng(2), 100
    p_values = [doses.overidentification(paired(rng, -0.004, side_effect=0.03)).p_value for _ in range(trials)]
    assert np.mean(np.array(p_values) < 0.05) > 0.8


def test_all_arms_find_the_slope_of_a_cause():
    found = doses.arm_slopes(paired(np.random.default_rng(4), slope=-0.004, seeds=8)).set_index("arm")
    assert (found["pairs"] == 8).all() and (found["doses"] == 3).all()
    assert ((found["slope_low"] < -0.004) & (found["slope_high"] > -0.004)).all()
    assert doses.overidentification(paired(np.random.default_rng(4), -0.004)).slope == pytest.approx(-0.004, abs=3e-4)


def test_runs_pair_with_the_control_of_their_settings_and_seed():
    known = table(
        lambda rank, seed, row: 3.0 - 0.01 * rank + 0.5 * row["config.optimizer.weight_decay"] + 0.1 * seed,
        extra=[{"config.optimizer.weight_decay": 1.0}, {"config.intervention.head_rank": 4,
                                                       "config.optimizer.weight_decay": 1.0}],
    )  # fmt: skip
    found = doses.pairs(known, "metric", "outcome").rows
    assert len(found) == 15
    np.testing.assert_allclose(found["x"], -3.0 * found["dose"])
    np.testing.assert_allclose(found["y"], 0.03 * found["dose"])
    response = doses.dose_response(doses.pairs(known, "metric", "outcome")).set_index("dose")
    assert response.loc[4.0, "pairs"] == 10 and response.loc[8.0, "metric_change"] == pytest.approx(-24)
    assert response.loc[8.0, "slope"] == pytest.approx(-0.01)


def test_fewer_than_five_pairs_have_no_interval():
    few = doses.pairs(table(lambda rank, seed, row: rank, seeds=(0, 1, 2, 3)), "metric", "outcome")
    response = doses.dose_response(few)
    assert response[["metric_low", "slope", "slope_high"]].isna().all(axis=None)
    assert set(response["note"]) == {"4 pairs; an interval needs 5"}
    with pytest.raises(NotEstimableError):
        doses.overidentification(few)


def test_an_outcome_that_no_run_moves_is_no_test_of_one_slope():
    same = table(lambda rank, seed, row: 0.0, extra=[{"config.intervention.mean_row": 1.0}])
    with pytest.raises(NotEstimableError, match="the outcome is the same with and without"):
        doses.overidentification(doses.pairs(same, "metric", "outcome"))


def test_arms_are_named_by_their_interventions():
    rows = table(lambda rank, seed, row: rank, seeds=(0,), extra=[
        {"config.intervention.backward_rank": 3, "config.intervention.backward_subspace": "random"},
        {"config.intervention.mean_row": 1.0, "config.intervention.head_rank": 2},
    ])  # fmt: skip
    arms = doses.arms_of(rows)
    assert list(arms["arm"]) == ["", "head_rank", "head_rank", "backward_rank random", "head_rank and mean_row"]
    assert list(arms["dose"]) == [0.0, 8.0, 4.0, 3.0, 2.0]


def test_the_observational_slope_is_that_of_runs_without_intervention():
    rng = np.random.default_rng(5)
    frame = table(lambda rank, seed, row: 0.0, seeds=tuple(range(5)), extra=[
        {"config.optimizer.weight_decay": decay} for decay in (0.2, 0.4, 0.8)
    ])  # fmt: skip
    frame["metric"] = 10 * frame["config.optimizer.weight_decay"] + rng.normal(0, 0.01, len(frame))
    frame["outcome"] = 2 * frame["metric"] + 100 * (frame["config.intervention.head_rank"] > 0)
    found = doses.observational_slope(frame, "metric", "outcome")
    assert found.n == 4 and found.estimate == pytest.approx(2.0, rel=1e-6)
    assert math.isnan(doses.observational_slope(frame[:15], "metric", "outcome").estimate)


def test_the_detectable_change_is_that_of_a_paired_t_test():
    effect, rng = doses.detectable(8), np.random.default_rng(6)
    found = stats.ttest_1samp(rng.normal(effect, 1, (20_000, 8)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert math.isnan(doses.detectable(4))
    effects = [doses.detectable(pairs) for pairs in (*range(5, 13), 30, 300)]
    assert effects == sorted(effects, reverse=True) and effects[-1] > 0
