"""Hazard ratios, against scipy's log-rank test, statsmodels' Cox model, planted hazards, and cases in closed form."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.duration.hazard_regression import PHReg

from sweeps.analysis.estimate import NotEstimableError
from sweeps.analysis.hazard import hazard_ratio, log_rank


def drawn(ratio, runs=60, seed=0, end=1.0):
    """Return exponential times censored at the end, of two levels whose hazards have this ratio."""
    rng = np.random.default_rng(seed)
    second = np.arange(runs) % 2 == 1
    time = rng.exponential(1.0 / np.where(second, ratio, 1.0))
    return np.minimum(time, end), time < end, second


def of_seeds(ratio, seeds, shared, seed=0, end=1.0, per_level=4):
    """Return times, events, levels and seeds of runs; those of one seed share a factor of the hazard, exp(shared z).

    The factor is another at each level, as if the effect differed from seed to seed.
    """
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(seeds), 2 * per_level)
    second = np.tile(np.repeat([False, True], per_level), seeds)
    frailty = np.exp(shared * rng.normal(size=(seeds, 2)))[of, second.astype(int)]
    time = rng.exponential(1.0 / (np.where(second, ratio, 1.0) * frailty))
    return np.minimum(time, end), time < end, second, of


def ratio_of(time, event, second, seed):
    return hazard_ratio(time, event, second, np.zeros(len(time)), seed)


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_the_excess_of_events_is_that_of_scipys_log_rank_test(ratio):
    time, event, second = drawn(ratio)
    found = log_rank(time, event, second, np.zeros(len(time)))
    groups = [stats.CensoredData(uncensored=time[of & event], right=time[of & ~event]) for of in (second, ~second)]
    z = found.excess / np.sqrt(found.variance)
    assert 2 * stats.norm.sf(abs(z)) == pytest.approx(stats.logrank(*groups).pvalue, rel=1e-9)
    assert found.events == event.sum()


def test_a_planted_ratio_comes_back_a_little_too_close_to_1():
    logs = [np.log(ratio_of(*drawn(2.0, runs=200, seed=s), np.arange(200) % 5).estimate) for s in range(60)]
    assert np.exp(np.mean(logs)) == pytest.approx(2.0, rel=0.08)


@pytest.mark.parametrize("shared", [0.0, 1.0])
@pytest.mark.parametrize(("seeds", "ratio", "least"), [(5, 1.0, 0.93), (10, 1.0, 0.93), (5, 2.0, 0.93), (10, 8.0, 0.8)])
def test_intervals_cover_the_ratio_though_runs_of_a_seed_resemble_each_other(seeds, ratio, least, shared):
    found = [ratio_of(*of_seeds(ratio, seeds, shared, seed=s)) for s in range(200)]
    covered = np.mean([one.low <= ratio <= one.high for one in found])
    assert least < covered < 0.99
    if ratio == 1:
        assert np.mean([one.p_value < 0.05 for one in found]) == pytest.approx(1 - covered)
    assert {one.n for one in found} == {seeds}


def test_ties_that_make_seeds_alike_leave_an_interval():
    """All runs of the second level have the event at the first checkpoint, and none of the first level ever."""
    second = np.tile([False, True], 5)
    found = ratio_of(np.where(second, 80, 1280), second, second, np.repeat(np.arange(5), 2))
    assert found.low < found.estimate / 2 and 0 < found.p_value < 0.05


def test_only_seeds_with_both_levels_count():
    time, event, second, seed = of_seeds(2.0, 6, 0.0)
    kept = (seed < 2) | ~second
    found = ratio_of(time[kept], event[kept], second[kept], seed[kept])
    assert found.n == 2 and np.isnan(found.low)
    alone = seed < 2
    assert found.estimate == ratio_of(time[alone], event[alone], second[alone], seed[alone]).estimate


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_estimate_and_error_are_near_those_of_statsmodels_cox_model_with_dependent_groups(shared):
    time, event, second, seed = of_seeds(1.3, 40, shared)
    found = ratio_of(time, event, second, seed)
    cox = PHReg(time, second[:, None].astype(float), status=event.astype(int)).fit(groups=seed)
    assert np.log(found.estimate) == pytest.approx(cox.params[0], abs=0.02)
    error = np.log(found.high / found.low) / 2 / stats.t.ppf(0.975, 39)
    assert error == pytest.approx(cox.bse[0], rel=0.1)


def test_copies_of_runs_hardly_narrow_an_interval():
    """As with runs that differ only in what makes no difference."""
    once = of_seeds(1.5, 6, 0.5)
    twice = [np.tile(column, 2) for column in once]
    widths = [np.log(one.high / one.low) for one in (ratio_of(*once), ratio_of(*twice))]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_few_seeds_leave_a_ratio_without_an_interval():
    found = ratio_of(*of_seeds(2.0, 4, 0.0))
    assert found.estimate > 1 and np.isnan([found.low, found.high, found.p_value]).all() and found.n == 4


def test_a_comparison_within_one_seed_alone_has_no_interval():
    """Runs of the other seeds are of one level only in their strata."""
    time, event, second, seed = of_seeds(2.0, 6, 0.0)
    second = second & (seed == 0)
    found = hazard_ratio(time, event, second, seed, seed)
    assert np.isfinite(found.estimate) and np.isnan(found.low)


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
        ratios.append(
            [hazard_ratio(time, event, second, s, np.arange(200) % 5).estimate for s in (hard, np.zeros(200))]
        )
    within, without = np.exp(np.log(ratios).mean(axis=0))
    assert within == pytest.approx(1.0, abs=0.05) and without > 1.5


def test_one_event_among_two_runs_in_closed_form():
    found = hazard_ratio(
        np.array([1.0, 2.0]), np.array([True, False]), np.array([True, False]), np.zeros(2), np.zeros(2)
    )
    assert found.estimate == pytest.approx(np.exp((1 - 0.5) / 0.25))
    assert found.n == 1 and np.isnan(found.low)


def test_without_a_comparison_there_is_no_ratio():
    ones = np.ones(4)
    with pytest.raises(NotEstimableError, match="at risk"):
        hazard_ratio(ones, np.zeros(4, bool), np.array([True, False] * 2), ones, ones)
    with pytest.raises(NotEstimableError, match="no seed has runs of both levels"):
        hazard_ratio(ones, np.ones(4, bool), np.array([True, True, False, False]), np.array([0, 0, 1, 1]), ones)
