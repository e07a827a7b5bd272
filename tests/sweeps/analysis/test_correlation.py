import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps import analysis
from sweeps.analysis import bootstrap, correlation, partial_spearman, spearman


def noise(n, seed=0):
    """Four independent columns x, y, a, b of n rows."""
    return pd.DataFrame(np.random.default_rng(seed).normal(size=(n, 4)), columns=["x", "y", "a", "b"])


def partial_by_precision_matrix(table, controls):
    """pingouin.partial_corr(method="spearman"): from the inverse of the matrix of rank correlations."""
    precision = np.linalg.inv(np.corrcoef(table[["x", "y", *controls]].rank().to_numpy(), rowvar=False))
    r = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
    dof = len(table) - 2 - len(controls)
    return r, 2 * stats.t.sf(abs(r) * np.sqrt(dof / (1 - r**2)), dof)


def within_levels(table, column, control):
    return table[column].rank() - table[column].rank().groupby(table[control]).transform("mean")


# Single estimates against independent implementations.


def test_spearman_matches_scipy_with_ties():
    table = noise(40).round(0)
    expected = stats.spearmanr(table.x, table.y)
    result = spearman(table, "x", "y")
    assert result.estimate == pytest.approx(expected.statistic, rel=1e-12)
    assert result.p_value == pytest.approx(expected.pvalue, rel=1e-12)
    assert result.n == 40


def test_the_interval_matches_bonett_and_wright():
    table = pd.DataFrame({"x": range(8), "y": [1, 0, 3, 2, 5, 4, 7, 6]})  # sum of squared differences 8
    result = spearman(table, "x", "y")
    r = 1 - 6 * 8 / (8 * 63)
    half = 1.959964 * np.sqrt((1 + r**2 / 2) / 5)
    assert result[:3] == pytest.approx((r, np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)), rel=1e-6)


def test_partial_spearman_matches_the_precision_matrix_of_ranks():
    table = noise(30)
    table["x"] += table.a
    table["y"] += table.a - table.b
    result = partial_spearman(table, "x", "y", ["a", "b"])
    assert (result.estimate, result.p_value) == pytest.approx(partial_by_precision_matrix(table, ["a", "b"]), rel=1e-9)


def test_a_factor_removes_the_mean_of_each_level():
    table = noise(30).assign(level=np.arange(30) % 4)
    r, _ = stats.pearsonr(within_levels(table, "x", "level"), within_levels(table, "y", "level"))
    result = partial_spearman(table, "x", "y", ["level"], "factor")
    dof = 30 - 2 - 3
    assert result.estimate == pytest.approx(r, rel=1e-9)
    assert result.p_value == pytest.approx(2 * stats.t.sf(abs(r) * np.sqrt(dof / (1 - r**2)), dof), rel=1e-9)


@pytest.mark.parametrize("form", ["rank", "factor"])
def test_the_bootstrap_equals_repeating_rows_of_drawn_groups(form, monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWS", 80)
    table = noise(60).assign(
        group=np.repeat(np.arange(24), [2, 3] * 12), level=np.repeat(np.arange(24) % 3, [2, 3] * 12)
    )
    table["x"] += table.level
    table = table.round(1)
    result = partial_spearman(table, "x", "y", ["level"], form, groups="group")

    draws = []
    for counts in bootstrap.weights_of_groups((0,) * 24, 80).astype(int):
        drawn = table.loc[np.repeat(table.index, counts[table.group])].reset_index(drop=True)
        if form == "rank":
            draws.append(partial_by_precision_matrix(drawn, ["level"])[0])
        else:
            draws.append(stats.pearsonr(within_levels(drawn, "x", "level"), within_levels(drawn, "y", "level"))[0])
    assert result[1:3] == pytest.approx(np.quantile(draws, [0.025, 0.975]), rel=1e-9)


# Properties.


@pytest.mark.parametrize("groups", [None, "group"])
def test_correlations_depend_on_ranks_only(groups):
    table = noise(60).assign(group=np.arange(60) // 2)
    bent = table.assign(x=np.exp(table.x), y=table.y**3, a=1 / (1 + np.exp(-table.a)))
    assert spearman(bent, "x", "y", groups) == pytest.approx(spearman(table, "x", "y", groups))
    given = partial_spearman(bent, "x", "y", ["a"], groups=groups)
    assert given == pytest.approx(partial_spearman(table, "x", "y", ["a"], groups=groups))
    flipped = spearman(table.assign(y=-table.y), "x", "y", groups)
    assert flipped.estimate == pytest.approx(-spearman(table, "x", "y", groups).estimate)


def test_collinear_settings_count_once():
    table = noise(25).assign(copy=lambda t: 3 * t.a + 1)
    separate, twice = (partial_spearman(table, "x", "y", controls) for controls in (["a"], ["a", "copy"]))
    assert twice == pytest.approx(separate, rel=1e-9)


def test_without_controls_partial_equals_raw_correlation():
    table = noise(25)
    assert partial_spearman(table, "x", "y", [], "factor") == pytest.approx(spearman(table, "x", "y"))


def test_text_settings_are_categories_in_both_forms():
    table = noise(30).assign(schedule=["cosine", "linear", "constant"] * 10)
    by_form = [partial_spearman(table, "x", "y", ["schedule"], form) for form in ("rank", "factor")]
    assert by_form[0] == pytest.approx(by_form[1])
    assert by_form[0].estimate != pytest.approx(spearman(table, "x", "y").estimate, abs=1e-6)


def false_positives(estimate, tables=300):
    return np.mean([estimate(seed).p_value < 0.05 for seed in range(tables)])


def test_null_tables_give_false_positives_one_time_in_twenty():
    def given_two_controls(seed):
        table = noise(30, seed)
        return partial_spearman(table.assign(x=table.x + table.a, y=table.y - table.a), "x", "y", ["a", "b"])

    assert 0.025 <= false_positives(given_two_controls) <= 0.08


def test_a_u_shaped_control_biases_the_rank_form_and_not_the_factor_form():
    def null_table(seed):
        table = noise(60, seed).assign(batch=np.tile([32, 64, 128, 256, 512], 12))
        u = (np.log2(table.batch) - 7) ** 2
        return table.assign(x=table.x + u, y=table.y + u)

    fooled = false_positives(lambda seed: partial_spearman(null_table(seed), "x", "y", ["batch"], "rank"), 120)
    sound = false_positives(lambda seed: partial_spearman(null_table(seed), "x", "y", ["batch"], "factor"), 120)
    assert fooled > 0.9
    assert sound < 0.09


def test_duplicated_seeds_add_no_evidence():
    def copies(seed, groups):
        table = pd.concat([noise(12, seed).assign(group=range(12))] * 4)
        return spearman(table + 1e-6 * noise(48, seed + 1000).set_axis(table.index).assign(group=0), "x", "y", groups)

    assert false_positives(lambda seed: copies(seed, None), 120) > 0.2
    assert false_positives(lambda seed: copies(seed, "group"), 120) < 0.09


def test_twelve_perfectly_ordered_clustered_rows_keep_a_wide_interval():
    table = pd.DataFrame({"x": range(12), "y": range(12), "group": np.arange(12) // 2})
    result = spearman(table, "x", "y", "group")
    assert result.estimate == result.high == 1
    assert 0 < result.low < 0.9


# Undetermined values.


@pytest.mark.parametrize(
    ("change", "controls", "groups"),
    [
        ({"x": 1.0}, [], None),
        ({"y": np.nan}, [], None),
        ({"x": [1.0, 2.0, 3.0] + [np.nan] * 9}, [], None),
        ({"x": [1.0, 2.0, 3.0] + [np.inf] * 9}, [], "group"),
        ({"a": range(12)}, ["a"], None),
        ({"a": list(range(11)) + [0]}, ["a"], "group"),
        ({"a": [0, 1] * 6, "x": [5.0, 7.0] * 6}, ["a"], None),
    ],
    ids=["constant", "missing", "three rows", "infinite", "every row a level", "no freedom left", "explained"],
)
def test_undetermined_values_are_nan(change, controls, groups):
    table = noise(12).assign(group=np.arange(12) // 2, **change)
    result = partial_spearman(table, "x", "y", controls, "factor", groups)
    assert np.isnan(result[:4]).all()
    assert result.n == (table[["x", "y"]].replace([np.inf, -np.inf], np.nan).notna().all(axis=1)).sum()


def test_two_groups_give_an_estimate_without_an_interval():
    result = spearman(noise(12).assign(group=np.arange(12) // 6), "x", "y", "group")
    assert np.isfinite(result.estimate)
    assert np.isnan(result[1:4]).all()


def test_rows_with_a_missing_value_in_a_used_column_are_dropped():
    table = noise(20)
    table.loc[0, "x"], table.loc[1, "y"], table.loc[2, "a"], table.loc[3, "b"] = np.nan, np.inf, np.nan, np.nan
    assert partial_spearman(table, "x", "y", ["a"]) == pytest.approx(partial_spearman(table[3:], "x", "y", ["a"]))


def test_an_unknown_column_is_reported_with_the_nearest_name():
    with pytest.raises(KeyError, match=r"no column 'lm_loss/in_domian'; did you mean 'lm_loss/in_domain'\?"):
        spearman(pd.DataFrame({"x": [1.0], "lm_loss/in_domain": [2.0]}), "x", "lm_loss/in_domian")


def test_a_text_column_is_refused_as_a_metric():
    with pytest.raises(analysis.AnalysisError, match="'x' of the table contains a value that isn't a number"):
        spearman(noise(5).assign(x=list("abcde")), "x", "y")


def null_table(seed, seeds, shared):
    """108 configurations of 6 sizes, 3 batches, 3 decays and 2 budgets; loss and metric are U-shaped in batch.

    `shared` is the share of the noise's variance that the seeds of a configuration have in common.
    """
    rng = np.random.default_rng(seed)
    size, decay = np.repeat(np.arange(6), 18), np.tile(np.repeat(np.arange(3), 2), 18)
    batch, budget = np.tile(np.repeat([-1, 0, 1], 6), 6), np.tile([0, 1], 54)
    of_run = np.repeat(np.arange(108), seeds)
    noise = [
        np.sqrt(shared) * rng.normal(size=108)[of_run] + np.sqrt(1 - shared) * rng.normal(size=len(of_run))
        for _ in "xy"
    ]
    return pd.DataFrame(
        {
            "x": (batch**2 + 0.3 * size)[of_run] + noise[0],
            "y": (2 * batch**2 - 0.3 * size - 0.3 * budget)[of_run] + noise[1],
            **{name: column[of_run] for name, column in zip("sdbt", (size, decay, batch, budget), strict=True)},
            "configuration": of_run,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "shared"), [(1, 0.0), (2, 0.0), (2, 0.5), (3, 1.0)])
def test_false_positive_rate_of_the_factor_form_over_2025_null_pairs(seeds, shared, monkeypatch):
    """Each of 45 metrics with each of 45 losses: given the settings, no pair is associated."""

    def no_interval(columns_NC, n_metrics, *_):
        return np.full((2, n_metrics, columns_NC.shape[1] - n_metrics), np.nan)

    monkeypatch.setattr(correlation, "interval_of_groups", no_interval)
    tables = [null_table(i, seeds, shared) for i in range(45)]
    pairs = {f"{name}{i}": table[name] for name in "xy" for i, table in enumerate(tables)}
    table = tables[0].drop(columns=["x", "y"]).assign(**pairs)
    metrics, losses = ([f"{name}{i}" for i in range(45)] for name in "xy")
    results = correlation.many(table, metrics, losses, tuple("sdbt"), "factor", "configuration")
    assert len(results) == 2025
    assert 0.04 <= np.mean([estimate.p_value < 0.05 for estimate, _ in results.values()]) <= 0.07


def test_many_pairs_equal_single_estimates():
    table = null_table(0, 2, 0.5).assign(z=null_table(1, 2, 0.5).x)
    results = correlation.many(table, ["x", "z"], ["y"], tuple("sdbt"), "factor", "configuration")
    for metric in "xz":
        one = partial_spearman(table, metric, "y", list("sdbt"), "factor", "configuration")
        assert results[metric, "y"][0] == pytest.approx(one, rel=1e-9)


@pytest.mark.slow
def test_intervals_of_the_factor_form_cover_0_in_null_tables():
    result = [
        partial_spearman(null_table(i, 2, 0.5), "x", "y", list("sdbt"), "factor", "configuration") for i in range(300)
    ]
    covered = np.mean([e.low <= 0 <= e.high for e in result])
    assert 0.91 <= covered <= 0.99
