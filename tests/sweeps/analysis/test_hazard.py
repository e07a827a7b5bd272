"""Hazard ratios, against scipy's log-rank test, planted hazards, and cases in closed form."""

import numpy as np
import pytest
from scipy import stats

from sweeps.analysis.estimate import NotEstimableError
from sweeps.analysis.hazard import hazard_ratio


def drawn(ratio, runs=60, seed=0, end=1.0):
    """Return exponential times censored at the end, of two levels whose hazards have this ratio."""
    rng = np.random.default_rng(seed)
    second = np.arange(runs) % 2 == 1
    time = rng.exponential(1.0 / np.where(second, ratio, 1.0))
    return np.minimum(time, end), time < end, second


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_the_p_value_is_that_of_scipys_log_rank_test(ratio):
    time, event, second = drawn(ratio)
    found = hazard_ratio(time, event, second, np.zeros(len(time)))
    groups = [stats.CensoredData(uncensored=time[of & event], right=time[of & ~event]) for of in (second, ~second)]
    assert found.p_value == pytest.approx(stats.logrank(*groups).pvalue, rel=1e-9)
    assert found.n == event.sum()


@pytest.mark.parametrize(("ratio", "least"), [(1.0, 0.92), (1.5, 0.92), (2.0, 0.88)])
def test_a_planted_ratio_comes_back_and_its_interval_covers_it(ratio, least):
    logs, covered = [], []
    for seed in range(200):
        time, event, second = drawn(ratio, runs=200, seed=seed)
        found = hazard_ratio(time, event, second, np.zeros(len(time)))
        logs.append(np.log(found.estimate))
        covered.append(found.low <= ratio <= found.high)
    assert np.exp(np.mean(logs)) == pytest.approx(ratio, rel=0.08)  # a little too close to 1
    assert np.mean(covered) > least


def test_strata_keep_what_differs_between_them_out():
    """The second level lies mostly where the hazard is high, and has no effect of its own."""
    ratios = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hard = rng.random(200) < 0.5
        second = rng.random(200) < np.where(hard, 0.8, 0.2)
        time = rng.exponential(1.0 / np.where(hard, 4.0, 1.0))
        event = time < 1.0
        time = np.minimum(time, 1.0)
        ratios.append([hazard_ratio(time, event, second, s).estimate for s in (hard, np.zeros(200))])
    within, without = np.exp(np.log(ratios).mean(axis=0))
    assert within == pytest.approx(1.0, abs=0.05) and without > 1.5


def test_one_event_among_two_runs_in_closed_form():
    found = hazard_ratio(np.array([1.0, 2.0]), np.array([True, False]), np.array([True, False]), np.zeros(2))
    assert found.estimate == pytest.approx(np.exp((1 - 0.5) / 0.25))
    assert found.n == 1


def test_without_a_comparison_there_is_no_ratio():
    ones = np.ones(4)
    with pytest.raises(NotEstimableError, match="at risk"):
        hazard_ratio(ones, np.zeros(4, bool), np.array([True, False] * 2), ones)
    with pytest.raises(NotEstimableError):
        hazard_ratio(ones, np.ones(4, bool), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
