import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.analysis import r2 as module
from sweeps.analysis.encode import encode
from sweeps.analysis.folds import shuffled_folds
from sweeps.analysis.r2 import baseline_columns, incremental_r2, increments
from sweeps.table.columns import AnalysisError, UnknownColumnError

SIZES = [4e6, 8e6, 13e6, 19e6, 34e6, 75e6]
BASELINE = ["size", "tokens", "flops", "final"]


def sweep(seeds=2, seed=0):
    """Six sizes by four configurations; compute is 6 N D exactly, the final fraction 0, .01 or .1."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(24), seeds)
    table = pd.DataFrame({"group": [f"<c{g:02}>" for g in of], "size": np.take(SIZES, of // 4)})
    table["tokens"] = np.take([8e9, 32e9, 128e9], of % 3)
    table["flops"] = 6 * table["size"] * table.tokens
    table["final"] = np.take([0, 0.01, 0.1, 0.1], of % 4)
    table["m"] = rng.normal(size=24)[of] + 0.3 * rng.normal(size=len(of)) + np.log(table["size"])
    table["y"] = 5 - 0.2 * np.log(table["size"]) + 0.2 * table.m + 0.3 * rng.normal(size=len(of))
    return table


def by_hand_design(table):
    """The regressors of BASELINE, written out: compute is the sum of the logs of the other two, minus a constant."""
    final = np.equal.outer(table.final.to_numpy(), [0.01, 0.1]).astype(float)
    return np.c_[np.log(table["size"]), np.log(table.tokens), np.log(table.flops), final]


def out_of_fold(x_NK, y_N, fold_N):
    """scikit-learn's predictions of each row from the other folds."""
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict

    return cross_val_predict(LinearRegression(), x_NK, y_N, cv=PredefinedSplit(fold_N))


def folds_of(table):
    return shuffled_folds(pd.factorize(table.group)[0])


# The estimate.


def test_five_rows_match_hand_calculation():
    # Each row is its own fold, so an error out of fold is the residual over 1 - leverage. The mean of y is 0 and
    # every leverage 1/5: errors 1.25 y, of squares 2 * 2.5^2 = 12.5. With x the slope is 8/10, the residuals are
    # -.4, .8, 0, -.8, .4 and the leverages 1/5 + x^2/10, .6, .3, .2, .3, .6: errors -1, 8/7, 0, -8/7, 1.
    # The sum of squares of y is 8; r = 8 / sqrt(10 * 8), t = r sqrt(3 / (1 - r^2)) = sqrt(12), p = .0405.
    table = pd.DataFrame({"x": [-2, -1, 0, 1, 2], "y": [-2, 0, 0, 0, 2]})
    with_x = 2 + 2 * (8 / 7) ** 2
    result = increments(table, ["x"], ["y"], [], None)["x", "y"]
    assert result.estimate.estimate == pytest.approx((12.5 - with_x) / 8, rel=1e-12)
    assert result.estimate.p_value == pytest.approx(0.040519, abs=1e-6)
    assert result.error_reduction == pytest.approx(np.sqrt(12.5 / 5) - np.sqrt(with_x / 5), rel=1e-12)
    assert result.note == "5 rows are too few for an interval"


def test_r2_over_a_rank_deficient_baseline_matches_scikit_learn():
    from sklearn.metrics import r2_score

    table = sweep()
    x_NK, y_N = by_hand_design(table), table.y.to_numpy()
    folds = folds_of(table)
    without = np.mean([r2_score(y_N, out_of_fold(x_NK, y_N, fold)) for fold in folds])
    added = np.mean([r2_score(y_N, out_of_fold(np.c_[x_NK, table.m], y_N, fold)) for fold in folds])
    assert incremental_r2(table, "m", "y", BASELINE, "group").estimate == pytest.approx(added - without, rel=1e-8)


def test_a_target_spanning_a_decade_is_predicted_as_logarithm():
    table = sweep()
    in_logs = increments(table.assign(y=np.exp(table.y * 3)), ["m"], ["y"], BASELINE, "group")["m", "y"]
    plain = increments(table, ["m"], ["y"], BASELINE, "group")["m", "y"]
    assert in_logs.estimate == pytest.approx(plain.estimate, rel=1e-9)
    assert np.isnan(in_logs.error_reduction)
    assert plain.error_reduction > 0


def test_error_reduction_is_in_the_targets_units():
    table = sweep()
    once, tenfold = (
        increments(t, ["m"], ["y"], BASELINE, "group")["m", "y"] for t in (table, table.assign(y=table.y * 10))
    )
    assert tenfold.error_reduction == pytest.approx(10 * once.error_reduction, rel=1e-9)
    assert tenfold.estimate == pytest.approx(once.estimate, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_of_the_metric_do_not_matter(scale):
    table = sweep()
    result = incremental_r2(table.assign(m=table.m * scale), "m", "y", BASELINE, "group")
    assert result == pytest.approx(incremental_r2(table, "m", "y", BASELINE, "group"), rel=1e-8)


def test_the_order_of_the_rows_does_not_matter():
    table = sweep()
    result = incremental_r2(table.sample(frac=1, random_state=1), "m", "y", BASELINE, "group")
    assert result == pytest.approx(incremental_r2(table, "m", "y", BASELINE, "group"), rel=1e-8)


def test_a_configuration_is_never_split_and_folds_are_even():
    groups_N = np.repeat(np.arange(12), [1, 2, 3] * 4)
    folds_SN = shuffled_folds(groups_N)
    assert folds_SN.shape == (20, 24)
    assert (pd.DataFrame(folds_SN.T).groupby(groups_N).nunique() == 1).all(axis=None)
    of_groups_SG = folds_SN[:, np.unique(groups_N, return_index=True)[1]]
    sizes = np.stack([np.bincount(fold_G, minlength=5) for fold_G in of_groups_SG])
    assert set(sizes.ravel()) == {2, 3}
    assert len({fold.tobytes() for fold in folds_SN}) == 20


# p-value, interval, variance inflation.


def test_p_value_of_independent_rows_matches_least_squares():
    import statsmodels.api as sm

    table = sweep(seeds=1)
    fit = sm.OLS(table.y.to_numpy(), sm.add_constant(np.c_[by_hand_design(table)[:, [0, 1, 3, 4]], table.m])).fit()
    for groups in (None, "group"):
        assert incremental_r2(table, "m", "y", BASELINE, groups).p_value == pytest.approx(fit.pvalues[-1], rel=1e-8)


def test_duplicated_rows_add_no_evidence():
    table = sweep(seeds=1)
    once = incremental_r2(table, "m", "y", BASELINE, "group")
    thrice = incremental_r2(pd.concat([table] * 3), "m", "y", BASELINE, "group")
    assert thrice[:4] == pytest.approx(once[:4], rel=1e-6)
    assert incremental_r2(pd.concat([table] * 3), "m", "y", BASELINE, None).p_value < once.p_value / 10


def test_the_interval_bootstraps_whole_groups(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 60)
    table = sweep()
    x_NK, y_N = by_hand_design(table), table.y.to_numpy()
    folds = folds_of(table)
    without_N = np.mean([(y_N - out_of_fold(x_NK, y_N, f)) ** 2 for f in folds], axis=0)
    with_N = np.mean([(y_N - out_of_fold(np.c_[x_NK, table.m], y_N, f)) ** 2 for f in folds], axis=0)
    draws = []
    for counts in np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), size=60):
        rows = np.repeat(np.arange(48), counts[np.arange(48) // 2])
        draws.append((without_N[rows] - with_N[rows]).mean() / y_N[rows].var())
    result = incremental_r2(table, "m", "y", BASELINE, "group")
    assert result[1:3] == pytest.approx(np.quantile(draws, [0.025, 0.975]), rel=1e-7)


def test_variance_inflation_matches_statsmodels():
    import statsmodels.api as sm
    from statsmodels.stats.outliers_influence import variance_inflation_factor

    table = sweep()
    design = sm.add_constant(np.c_[by_hand_design(table)[:, [0, 1, 3, 4]], table.m])
    result = increments(table, ["m"], ["y"], BASELINE, "group")["m", "y"]
    assert result.variance_inflation == pytest.approx(variance_inflation_factor(design, 5), rel=1e-8)


def test_null_metrics_with_seeds_give_one_false_positive_in_twenty():
    rng = np.random.default_rng(0)
    table = sweep(seeds=3).assign(**{f"m{i}": rng.normal(size=24).repeat(3) + rng.normal(size=72) for i in range(40)})
    nulls = {f"y{i}": -np.log(table["size"]) + rng.normal(size=24).repeat(3) + rng.normal(size=72) for i in range(40)}
    table = table.assign(**nulls)
    result = increments(table, [f"m{i}" for i in range(40)], list(nulls), BASELINE, "group")
    assert 0.03 <= np.mean([f.estimate.p_value < 0.05 for f in result.values()]) <= 0.07
    assert np.mean([f.estimate.low > 0 for f in result.values()]) <= 0.01


# Columns as regressors.


def test_columns_spanning_a_decade_enter_as_logarithms_and_others_unchanged():
    rows = pd.DataFrame({"a": [1.0, 2, 10, 4], "b": [1.0, 2, 9, 4], "c": [-1.0, 2, 90, 4], "d": [0, 0.1, 3, 1.0]})
    expected = np.c_[np.log(rows.a), rows.b, rows.c, rows.d]
    expected = (expected - expected.mean(axis=0)) / expected.std(axis=0)
    assert encode(rows, list("abcd")) == pytest.approx(expected)


@pytest.mark.parametrize(
    "column", [[0, 0.01, 0.1] * 2, ["x", "y", "z"] * 2, [["p"], ["q"], ["p", "q"]] * 2], ids=["zeros", "words", "lists"]
)
def test_columns_with_zeros_across_decades_and_text_are_categories(column):
    result = encode(pd.DataFrame({"a": column}), ["a"])
    assert (result[:3] == result[3:]).all()
    assert sorted(map(tuple, result[:3])) == [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def test_a_level_with_one_configuration_is_predicted_from_the_others():
    table = sweep().assign(schedule="cosine")
    table.loc[table.group == "<c05>", "schedule"] = "linear"
    result = incremental_r2(table, "m", "y", [*BASELINE, "schedule"], "group")
    assert np.isfinite(result).all()
    assert result.estimate == pytest.approx(incremental_r2(table, "m", "y", BASELINE, "group").estimate, abs=0.05)


def test_the_baseline_uses_the_columns_present_in_the_table():
    assert baseline_columns(pd.DataFrame()) == []
    everything = ["training_flops", "tokens", "parameters", "parameters_non_embedding"]
    assert baseline_columns(pd.DataFrame(columns=everything)) == [
        "parameters_non_embedding",
        "tokens",
        "training_flops",
    ]


# Many pairs, and what can't be given.


def test_many_pairs_equal_single_ones_with_missing_values():
    table = sweep().assign(z=lambda t: t.y**2, other=np.random.default_rng(3).normal(size=48))
    table.loc[3, "m"], table.loc[5, "z"], table.loc[7, "tokens"] = np.nan, np.inf, np.nan
    result = increments(table, ["m", "other"], ["y", "z"], BASELINE, "group")
    assert list(result) == [("m", "y"), ("m", "z"), ("other", "y"), ("other", "z")]
    for (metric, target), one in result.items():
        rows = table.replace(np.inf, np.nan).dropna(subset=[metric, target, *BASELINE])
        assert one.estimate == pytest.approx(incremental_r2(rows, metric, target, BASELINE, "group"), rel=1e-8)
        assert one.estimate.n == len(rows)


@pytest.mark.parametrize(
    ("change", "baseline", "note"),
    [
        ({"m": 3.0}, BASELINE, "the metric is the same in all rows"),
        ({"y": 1e9}, BASELINE, "the target is the same in all rows"),
        ({"m": np.nan}, BASELINE, "fewer than 4 usable rows"),
        ({"y": [1.0, 2, 3] + [np.inf] * 45}, BASELINE, "fewer than 4 usable rows"),
        ({"configuration": np.arange(48) % 3}, BASELINE, "3 configurations are too few for 5 folds"),
        ({"final": [f"run {i}" for i in range(48)]}, BASELINE, "the baseline takes up every degree of freedom"),
    ],
)
def test_undetermined_values_are_nan_with_a_reason(change, baseline, note):
    table = sweep().rename(columns={"group": "configuration"}).assign(**change)
    result = increments(table, ["m"], ["y"], baseline, "configuration")["m", "y"]
    assert np.isnan(result.estimate[:4]).all()
    assert np.isnan(result.variance_inflation)
    assert result.note == note


@pytest.mark.parametrize("explained", ["m", "y"])
def test_a_metric_explained_by_the_baseline_gains_nothing(explained):
    table = sweep().assign(**{explained: lambda t: 1 + 3 * np.log(t["size"]) - np.log(t.tokens)})
    result = increments(table, ["m"], ["y"], BASELINE, "group")["m", "y"]
    assert result.estimate[:3] == (0, 0, 0)
    assert np.isnan(result.estimate.p_value)
    assert f"explains the {'metric' if explained == 'm' else 'target'} completely" in result.note
    assert np.isinf(result.variance_inflation) == (explained == "m")


def test_few_configurations_give_an_estimate_and_no_interval():
    table = sweep()[:24].rename(columns={"group": "configuration"})
    result = increments(table, ["m"], ["y"], ["size", "tokens"], "configuration")["m", "y"]
    assert np.isfinite([result.estimate.estimate, result.estimate.p_value]).all()
    assert np.isnan(result.estimate[1:3]).all()
    assert result.note == "12 configurations are too few for an interval"


def test_no_rows_and_no_pairs_give_empty_results():
    assert increments(pd.DataFrame(), [], [], [], "configuration") == {}
    result = increments(sweep()[:0], ["m"], ["y"], BASELINE, "group")["m", "y"]
    assert (result.estimate.n, result.note) == (0, "fewer than 4 usable rows")


def test_a_wrong_column_is_named():
    with pytest.raises(UnknownColumnError, match="no column 'sizes'; did you mean 'size'"):
        incremental_r2(sweep(), "m", "y", ["sizes"], "group")
    with pytest.raises(AnalysisError, match="'group' of the table contains a value that isn't a number"):
        incremental_r2(sweep(), "group", "y", ["size"], "group")


def test_all_pairs_of_a_sweep_share_one_regression_per_fold(monkeypatch):
    calls = []
    pinv = np.linalg.pinv
    monkeypatch.setattr(np.linalg, "pinv", lambda *args, **kwargs: calls.append(1) or pinv(*args, **kwargs))
    rng = np.random.default_rng(0)
    names = [f"{kind}{i}" for kind in "my" for i in range(30)]
    table = sweep().assign(**{name: rng.normal(size=48) for name in names})
    assert len(increments(table, names[:30], names[30:], BASELINE, "group")) == 900
    assert len(calls) == 5 * 20


def test_the_p_value_matches_students_t_distribution():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(30, 2)), columns=["m", "y"])
    assert incremental_r2(table, "m", "y", [], None).p_value == pytest.approx(stats.pearsonr(table.m, table.y).pvalue)
