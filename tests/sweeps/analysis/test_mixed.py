import warnings

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis import mixed as module
from sweeps.analysis.mixed import mixed_effects, mixed_fit
from sweeps.table.columns import AnalysisError, UnknownColumnError

SIZE, CLUSTER = "parameters_non_embedding", "configuration"
SIZES = [4e6, 8e6, 13e6, 19e6, 34e6, 75e6]


def sweep(per_size=10, seeds=1, between=1.0, seed=0, sizes=6):
    """Sizes by configurations by seeds; the metric has an effect of .5 on the target, as have batch and size."""
    rng = np.random.default_rng(seed)
    n = sizes * per_size
    of = np.repeat(np.arange(n), seeds)
    table = pd.DataFrame({CLUSTER: [f"c{g:03}" for g in of], SIZE: np.take(SIZES, of // per_size)})
    table["batch"] = np.take([32.0, 128.0, 512.0], of % 3)
    table["schedule"] = np.take(["cosine", "linear"], of % 2)
    table["m"] = rng.normal(size=n)[of] + 0.3 * rng.normal(size=len(of)) + 0.2 * np.log(table.batch)
    size_effect = between * rng.normal(size=sizes)[of // per_size]
    table["y"] = 0.5 * table.m + size_effect + 0.1 * np.log(table.batch) + 0.5 * rng.normal(size=len(of))
    return table


def design(table, controls):
    """Written out: intercept, controls, the metric over its standard deviation."""
    written = {"batch": np.log(table.batch), "schedule": (table.schedule == "linear").astype(float)}
    return np.column_stack([np.ones(len(table)), *(written[c] for c in controls), table.m / table.m.std()])


def statsmodels_fit(table, controls):
    from statsmodels.regression.mixed_linear_model import MixedLM

    return MixedLM(table.y.to_numpy(), design(table, controls), groups=table[SIZE].to_numpy()).fit(reml=True)


# The estimate.


def test_two_sizes_match_hand_calculation():
    # The metric is -1, 0, 1 in both sizes, so its slope is that within sizes, ((5 - 0) + (13 - 10)) / 4 = 2, and its
    # standard deviation over the six rows is sqrt(4 / 5). Of y - 2 m, squares within sizes sum to 2 + 2/3 on
    # 6 - 2 - 1 degrees of freedom: variance 8/9. The sizes' means are 2 and 35/3: mean square between 6 (29/6)^2, and
    # the variance between sizes is that less 8/9, over 3 (balanced, so REML is analysis of variance).
    table = pd.DataFrame({"m": [-1, 0, 1] * 2, "y": [0, 1, 5, 10, 12, 13], SIZE: [1, 1, 1, 2, 2, 2], CLUSTER: range(6)})
    result = mixed_fit(table, "m", "y", [], SIZE, CLUSTER)
    between = (6 * (29 / 6) ** 2 - 8 / 9) / 3
    assert result.estimate.estimate == pytest.approx(2 * np.sqrt(4 / 5), rel=1e-12)
    assert result.between_sizes == pytest.approx(between / (between + 8 / 9), rel=1e-5)


@pytest.mark.parametrize("controls", [[], ["batch"], ["batch", "schedule"]])
@pytest.mark.parametrize("between", [0.4, 1.0, 30.0])
@pytest.mark.parametrize("balanced", [True, False])
def test_coefficient_and_variance_ratio_match_statsmodels(controls, between, balanced):
    table = sweep(between=between, seeds=2)
    if not balanced:
        table = table.drop(index=range(3, 40, 2)).drop(index=range(90, 110))
    expected = statsmodels_fit(table, controls)
    result = mixed_fit(table, "m", "y", controls, SIZE, CLUSTER)
    ratio = expected.cov_re.item() / expected.scale
    assert result.estimate.estimate == pytest.approx(expected.fe_params[-1], rel=1e-5)
    assert result.between_sizes == pytest.approx(ratio / (1 + ratio), rel=2e-3)


def test_without_variance_between_sizes_the_estimate_is_least_squares():
    import statsmodels.api as sm

    table = sweep()
    table["y"] -= (table.y - 0.5 * table.m).groupby(table[SIZE]).transform("mean")
    result = mixed_fit(table, "m", "y", ["batch"], SIZE, CLUSTER)
    assert result.between_sizes == 0
    expected = sm.OLS(table.y.to_numpy(), design(table, ["batch"])).fit().params[-1]
    assert result.estimate.estimate == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(result.estimate).all()
    assert result.note == ""


def test_controls_that_determine_size_leave_the_within_size_effect():
    table = sweep(between=5).assign(layers=lambda t: t[SIZE].map({s: f"{i} layers" for i, s in enumerate(SIZES)}))
    m, y = (table[c] - table[c].groupby(table[SIZE]).transform("mean") for c in "my")
    result = mixed_fit(table, "m", "y", ["layers", SIZE], SIZE, CLUSTER)
    assert result.estimate.estimate == pytest.approx((m @ y) / (m @ m) * table.m.std(), rel=1e-9)
    assert np.isfinite(result.estimate).all()


def test_collinear_controls_count_once():
    table = sweep().assign(tokens=lambda t: t.batch**2)
    once, twice = (mixed_effects(table, "m", "y", c) for c in (["batch"], ["batch", "tokens"]))
    assert twice == pytest.approx(once, rel=1e-8)


def test_the_coefficient_is_per_standard_deviation_in_the_targets_units():
    table = sweep()
    once = mixed_effects(table, "m", "y", ["batch"])
    result = mixed_effects(table.assign(m=table.m * 1e-9, y=100 * table.y), "m", "y", ["batch"])
    assert result[:3] == pytest.approx(np.multiply(once[:3], 100), rel=1e-7)
    assert result.p_value == once.p_value


def test_columns_spanning_a_decade_enter_as_logarithms():
    table = sweep()
    wide = table.assign(m=np.exp(table.m), y=np.exp(3 * table.y))
    result = mixed_fit(wide, "m", "y", ["batch"], SIZE, CLUSTER)
    assert result.estimate.estimate == pytest.approx(3 * mixed_effects(table, "m", "y", ["batch"]).estimate, rel=1e-7)
    assert result.target_in_logs


# Interval and p-value.


def quasi_demeaned(x, sizes, ratio):
    """Each size's mean taken off by the share 1 - 1 / sqrt(1 + m ratio): generalised least squares by plain ones."""
    means, rows = x.groupby(sizes).transform("mean"), x.groupby(sizes).transform("size")
    return x - (1 - 1 / np.sqrt(1 + rows * ratio)) * means


def test_the_interval_bootstraps_configurations_within_sizes_at_the_fitted_ratio(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 50)
    table = sweep(seeds=2)
    result = mixed_fit(table, "m", "y", ["batch"], SIZE, CLUSTER)
    ratio = result.between_sizes / (1 - result.between_sizes)
    rng = np.random.default_rng(0)
    counts = np.concatenate([rng.multinomial(10, np.full(10, 0.1), size=50) for _ in SIZES], axis=1)
    draws = []
    for count_G in counts:
        rows = table.loc[np.repeat(table.index, count_G[np.arange(120) // 2])].reset_index(drop=True)
        x = pd.DataFrame({"one": 1.0, "b": np.log(rows.batch), "m": rows.m / table.m.std(), "y": rows.y})
        x = x.apply(quasi_demeaned, args=(rows[SIZE], ratio))
        draws.append(np.linalg.lstsq(x[["one", "b", "m"]].to_numpy(), x.y.to_numpy(), rcond=None)[0][-1])
    # 60 configurations, of which the means of 6 sizes and 1 control take 1 + 6.
    b = result.estimate.estimate
    spread = b + (np.array(draws) - b) * np.sqrt(60 / (60 - 7))
    assert result.estimate[1:3] == pytest.approx(np.quantile(spread, [0.025, 0.975]), rel=1e-7)
    assert result.estimate.p_value == pytest.approx(2 * (1 + np.sum(spread <= 0)) / 51)


def test_duplicated_runs_add_no_evidence():
    table = sweep(seeds=1)
    once, twice = (mixed_effects(t, "m", "y", ["batch"]) for t in (table, pd.concat([table] * 3)))
    assert twice.high - twice.low == pytest.approx(once.high - once.low, rel=0.05)


@pytest.mark.slow
def test_the_interval_covers_the_effect_and_null_metrics_at_the_nominal_rate():
    covered, called = [], []
    for seed in range(60):
        table = sweep(seed=seed, per_size=9).assign(null=np.random.default_rng(seed + 1000).normal(size=54))
        result = mixed_effects(table, "m", "y", ["batch"])
        covered.append(result.low <= 0.5 * table.m.std() <= result.high)
        called.append(mixed_effects(table, "null", "y", ["batch"]).p_value < 0.05)
    assert np.mean(covered) > 0.87
    assert np.mean(called) < 0.12


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_false_positive_rate_over_many_null_tables(seeds):
    called = []
    for seed in range(500):
        table = sweep(seed=seed, per_size=18, seeds=seeds)
        rng = np.random.default_rng(seed + 10_000)
        null = rng.normal(size=108).repeat(seeds) + 0.3 * rng.normal(size=len(table))
        called.append(mixed_effects(table.assign(null=null), "null", "y", ["batch", "schedule"]).p_value < 0.05)
    assert 0.03 <= np.mean(called) <= 0.08


# Undetermined values.


@pytest.mark.parametrize(
    ("change", "controls", "note"),
    [
        ({"m": 1.0}, [], "the metric is the same in all rows"),
        ({"y": 3.0}, [], "the target is the same in all rows"),
        ({"m": np.nan}, [], "fewer than 4 usable rows"),
        ({SIZE: 4e6}, [], "all runs are of one size"),
        ({SIZE: np.arange(60)}, [], "sizes and controls take up every degree of freedom"),
        ({"batch": [f"b{i}" for i in range(60)]}, ["batch"], "sizes and controls take up every degree of freedom"),
        ({"m": lambda t: np.log(t[SIZE])}, [], "sizes and controls explain the metric completely"),
        (
            {"m": lambda t: np.log(t.batch) + t[SIZE] ** 0.1},
            ["batch"],
            "sizes and controls explain the metric completely",
        ),
        ({"y": lambda t: 1 - np.log(t[SIZE])}, [], "sizes and controls explain the target completely"),
    ],
)
def test_undetermined_values_are_nan_with_a_reason(change, controls, note):
    result = mixed_fit(sweep().assign(**change), "m", "y", controls, SIZE, CLUSTER)
    assert np.isnan(result.estimate[:4]).all()
    assert np.isnan(result.between_sizes)
    assert result.note == note


def test_few_configurations_give_an_estimate_and_no_interval():
    result = mixed_fit(sweep(per_size=3, seeds=2, sizes=4), "m", "y", ["batch"], SIZE, CLUSTER)
    assert np.isfinite(result.estimate.estimate)
    assert np.isnan(result.estimate[1:4]).all()
    assert result.note == "12 configurations are too few for a p-value or an interval with 4 sizes and 1 control"


def test_a_target_determined_by_metric_and_size_has_the_exact_slope():
    table = sweep().assign(y=lambda t: 2 * t.m - np.log(t[SIZE]))
    result = mixed_effects(table, "m", "y", [])
    assert result[:3] == pytest.approx([2 * table.m.std()] * 3, rel=1e-4)


def test_draws_without_a_rare_control_level_are_handled():
    table = sweep()
    table.loc[7, "schedule"] = "constant"
    assert np.isfinite(mixed_effects(table, "m", "y", ["schedule", "batch"])).all()


def test_notes_say_why_a_value_is_missing_without_warnings():
    table = sweep().assign(flat=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full, flat = (mixed_fit(table, metric, "y", ["batch"], SIZE, CLUSTER) for metric in ("m", "flat"))
        assert mixed_fit(table[:0], "m", "y", ["batch"], SIZE, CLUSTER).note == "fewer than 4 usable rows"
    assert full.estimate == mixed_effects(table, "m", "y", ["batch"])
    assert (full.note, flat.note) == ("", "the metric is the same in all rows")


def test_rows_with_missing_values_are_dropped():
    table = sweep()
    gappy = table.copy()
    gappy.loc[0, "m"], gappy.loc[1, "y"], gappy.loc[2, "batch"] = np.nan, np.inf, np.nan
    gappy.loc[3, "schedule"], gappy.loc[4, SIZE] = None, np.nan
    result = mixed_effects(gappy, "m", "y", ["batch", "schedule"])
    assert result == pytest.approx(mixed_effects(table[5:], "m", "y", ["batch", "schedule"]), rel=1e-9)
    assert result.n == 55


def test_a_wrong_column_is_named():
    with pytest.raises(UnknownColumnError, match="no column 'bach'; did you mean 'batch'"):
        mixed_effects(sweep(), "m", "y", ["bach"])
    with pytest.raises(AnalysisError, match="'schedule' of the table contains a value that isn't a number"):
        mixed_effects(sweep(), "schedule", "y", [])
