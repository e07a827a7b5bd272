"""Simulated sweeps with a known cause of the loss: size only, the metric only, or weight decay acting on both."""

import functools

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis import r2
from sweeps.analysis.correlation import partial_spearman, spearman
from sweeps.analysis.mixed import mixed_effects
from sweeps.analysis.r2 import incremental_r2, increments

# Monte Carlo calibrations; the value of each statistic on a single table is tested in its own file.
pytestmark = pytest.mark.slow

SIZES = [4e6, 8e6, 13e6, 19e6, 34e6, 75e6]
BASELINE = ["parameters_non_embedding", "tokens", "training_flops"]
SETTINGS = ["parameters_non_embedding", "tokens", "batch", "decay"]
TABLES = 40
# Of 40 tables in which one in 20 is called an effect, more than 7 are called so once in 1,000 times.
FALSE_CALLS = 7 / 40
# Of the loss that the metric explains where it is the only cause: with noise of variance 1 as the metric's.
EXPLAINED = 0.5


def sweep(cause, seed):
    """108 runs: 6 sizes by 18 configurations, which are 3 batches by 3 weight decays by 2 token budgets."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"configuration": [f"c{i}" for i in range(108)]})
    table["parameters_non_embedding"] = np.repeat(SIZES, 18)
    table["tokens"] = np.tile([8e9, 32e9], 54)
    table["batch"] = np.tile(np.repeat([32, 128, 512], 6), 6)
    table["decay"] = np.tile(np.repeat([0.01, 0.1, 0.5], 2), 18)
    table["training_flops"] = 6 * (table.parameters_non_embedding + 1e6) * table.tokens
    size, decay = np.log(table.parameters_non_embedding), np.log(table.decay)
    noise = rng.normal(size=(2, 108))
    if cause == "size":
        return table.assign(metric=size + 0.5 * noise[0], loss=-size + 0.5 * noise[1])
    if cause == "metric":
        return table.assign(metric=noise[0], loss=-noise[0] + noise[1])
    u_shaped = (np.log2(table.batch) - 7) ** 2 / 4
    return table.assign(metric=decay + u_shaped + 0.7 * noise[0], loss=-decay + u_shaped - size / 2 + 0.7 * noise[1])


def over_tables(cause, estimate):
    """Return the estimates of TABLES sweeps of one cause, one row per sweep."""
    return pd.DataFrame([estimate(sweep(cause, seed)) for seed in range(TABLES)])


def raw(table):
    return spearman(table, "metric", "loss", "configuration")


def given_settings(table):
    return partial_spearman(table, "metric", "loss", SETTINGS, "factor", "configuration")


def added_to(baseline):
    return lambda table: incremental_r2(table, "metric", "loss", baseline, "configuration")


def covers(fit, truth):
    return ((fit.low <= truth) & (truth <= fit.high)).mean()


def calls(fit):
    return (fit.p_value < 0.05).mean()


@pytest.fixture(scope="module", params=["size", "decay"])
def confounded(request):
    return request.param


def test_confounding_by_size_or_decay_vanishes_given_the_settings(confounded):
    looks, fit = over_tables(confounded, raw), over_tables(confounded, given_settings)
    assert looks.high.max() < -0.3
    assert fit.estimate.mean() == pytest.approx(0, abs=0.05)
    assert covers(fit, 0) >= 0.85
    assert calls(fit) <= FALSE_CALLS


def test_a_metric_that_follows_size_adds_nothing_to_a_baseline_of_size():
    fit = over_tables("size", added_to(BASELINE))
    assert -0.01 < fit.estimate.mean() < 0
    assert (fit.low > 0).mean() <= 0.02
    assert fit.estimate.max() < 0.05
    assert calls(fit) <= FALSE_CALLS


def test_a_metric_that_follows_decay_adds_to_the_papers_baseline_until_decay_is_in_it():
    """Delta-R2 over size, compute and tokens separates geometry from size, not from settings outside the baseline."""
    fooled = over_tables("decay", added_to(BASELINE))
    assert fooled.low.min() > 0.1
    # Batch enters in logs, so that a U isn't taken away by itself: here as a category, by its name.
    sound = over_tables("decay", lambda t: added_to([*BASELINE, "decay", "batch"])(t.assign(batch=t.batch.astype(str))))
    assert sound.estimate.mean() == pytest.approx(0, abs=0.01)
    assert (sound.low > 0).mean() <= 0.02
    assert calls(sound) <= FALSE_CALLS


def test_a_causal_metric_is_detected_by_every_method():
    # Normal columns of correlation r have Spearman's rho 6 / pi asin(r / 2).
    rho = 6 / np.pi * np.arcsin(-np.sqrt(EXPLAINED) / 2)
    for estimate in (raw, given_settings):
        fit = over_tables("metric", estimate)
        assert fit.high.max() < -0.3
        assert fit.estimate.mean() == pytest.approx(rho, abs=0.04)
        assert covers(fit, rho) >= 0.85
    fit = over_tables("metric", added_to(BASELINE))
    assert fit.low.min() > 0.1
    assert fit.estimate.mean() == pytest.approx(EXPLAINED, abs=0.04)
    assert covers(fit, EXPLAINED) >= 0.85


def mixed_off(effect, controls):
    """Return the error of the estimate, in nats per unit of the metric, and whether the interval covers the truth."""

    def estimate(table):
        fit = mixed_effects(table.astype({"batch": str}), "metric", "loss", controls)
        truth = effect * table.metric.std()
        return {"off": fit.estimate - truth, "covered": fit.low <= truth <= fit.high}

    return estimate


@pytest.mark.parametrize(("cause", "effect"), [("size", 0.0), ("metric", -1.0), ("decay", 0.0)])
def test_mixed_effects_given_the_settings_separate_the_causes(cause, effect):
    fit = over_tables(cause, mixed_off(effect, SETTINGS))
    assert fit.off.mean() == pytest.approx(0, abs=0.05)
    assert fit.covered.mean() >= 0.85


def test_mixed_effects_keep_some_between_size_confounding_without_a_size_control():
    leaked, sound = (over_tables("size", mixed_off(0.0, c)).off.mean() for c in (SETTINGS[1:], SETTINGS))
    assert -0.15 < leaked < sound - 0.04


def test_false_positive_rate_of_the_coefficient_test_over_2025_null_pairs(monkeypatch):
    """Loss and metric follow size and decay, loss is U-shaped in batch; batch and decay are in the baseline by name.

    Each of 45 metrics with each of 45 losses: given the settings, no pair is associated.
    """
    monkeypatch.setattr(r2, "DRAWS", 20)  # of the interval of R2, and splits of R2 itself; the test has neither
    monkeypatch.setattr(r2, "shuffled_folds", functools.partial(r2.shuffled_folds, splits=1))
    tables = [sweep("decay", seed) for seed in range(45)]
    pairs = {f"{name}{i}": table[name] for name in ("metric", "loss") for i, table in enumerate(tables)}
    table = tables[0].drop(columns=["metric", "loss"]).assign(**pairs).astype({"batch": str, "decay": str})
    metrics, losses = ([f"{name}{i}" for i in range(45)] for name in ("metric", "loss"))
    results = increments(table, metrics, losses, [*BASELINE, "batch", "decay"], "configuration")
    assert len(results) == 2025
    assert 0.04 <= np.mean([result.estimate.p_value < 0.05 for result in results.values()]) <= 0.07
