import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats

from sweeps.analysis import AnalysisError, UnknownColumnError, variance
from sweeps.analysis.variance import COLUMNS, variance_split

SETTINGS = ["size", "batch", "decay"]


def factorial(seeds=1):
    """Sizes x batches x weight decays, each so many times."""
    cells = list(itertools.product("abcdef", [8, 32, 128], [0.1, 0.5], range(seeds)))
    table = pd.DataFrame(cells, columns=[*SETTINGS, "seed"])
    return table.assign(configuration=table.groupby(SETTINGS).ngroup().map("c{}".format))


def one_at_a_time(seeds=1):
    """In three sizes, a few batches at one weight decay and a few of these at one batch: nothing is balanced."""
    pairs = [(8, 0.1), (32, 0.1), (64, 0.1), (128, 0.1), (32, 0.01), (32, 0.5), (128, 0.5)]
    cells = [(size, *pair) for size, pair in itertools.product("abc", pairs)] + [("a", 256, 0.1)]
    table = pd.DataFrame(cells, columns=SETTINGS)
    table = table.assign(configuration=[f"c{i}" for i in range(len(table))])
    return table.loc[table.index.repeat(seeds)].reset_index(drop=True)


def size_effect(table):
    return table["size"].map(ord).sub(98) * 0.5


def with_effects(table, sd=0.4, seed=0):
    """Return the table with y: effects of size, batch (a valley), slightly of weight decay, and seed noise of `sd`."""
    valley = (np.log2(table["batch"]) - 5.5) ** 2 / 4
    noise = np.random.default_rng(seed).normal(scale=sd, size=len(table))
    return table.assign(y=size_effect(table) + valley + table["decay"] + noise)


def shares(result):
    return result.set_index("setting")["share"].to_dict()


# Against analyses of variance.


def test_shares_of_a_balanced_design_are_epsilon_squared():
    table = with_effects(factorial())
    anova = sm.stats.anova_lm(smf.ols("y ~ C(size) + C(batch) + C(decay)", table).fit())
    chance = anova.mean_sq["Residual"]
    expected = (anova.sum_sq - anova.df * chance) / anova.sum_sq.sum()
    result = shares(variance_split(table, ["y"], SETTINGS))
    assert [result[s] for s in SETTINGS] == pytest.approx(expected.iloc[:3].tolist(), rel=1e-9)
    assert result["rest"] == pytest.approx(1 - expected.iloc[:3].sum())
    assert np.isnan(result["seed"])


def test_replicates_separate_seed_from_interactions():
    table = factorial(seeds=3)
    table = with_effects(table).assign(y=lambda t: t.y + (t["size"] == "a") * (t.batch == 8) * 2)
    within = smf.ols("y ~ C(configuration)", table).fit().mse_resid
    anova = sm.stats.anova_lm(
        smf.ols("y ~ C(size) + C(batch) + C(decay)", table.groupby(SETTINGS).y.mean().reset_index()).fit()
    )
    chance, groups = anova.mean_sq["Residual"], 36
    total = anova.sum_sq.sum() / (groups - 1) + within * (1 - 1 / 3)
    expected = ((anova.sum_sq - anova.df * chance) / (groups - 1) / total).iloc[:3].tolist()
    result = shares(variance_split(table, ["y"], SETTINGS))
    expected += [within / total, (chance - within / 3) / total]
    assert [result[s] for s in [*SETTINGS, "seed", "rest"]] == pytest.approx(expected, rel=1e-9)
    assert result["rest"] > result["seed"]


def test_shares_of_an_unbalanced_design_average_over_orders():
    table = with_effects(one_at_a_time())
    gained = dict.fromkeys(SETTINGS, 0.0)
    for order in itertools.permutations(SETTINGS):
        model = smf.ols("y ~ " + " + ".join(f"C({name})" for name in order), table).fit()
        anova = sm.stats.anova_lm(model)
        for name in SETTINGS:
            row = anova.loc[f"C({name})"]
            gained[name] += (row.sum_sq - row.df * model.mse_resid) / model.centered_tss / 6
    result = shares(variance_split(table, ["y"], SETTINGS))
    assert [result[s] for s in SETTINGS] == pytest.approx([gained[s] for s in SETTINGS], rel=1e-9)


def test_the_interval_is_a_jackknife_over_configurations_including_singleton_levels():
    table = with_effects(one_at_a_time(seeds=2), sd=0.2)
    table["y"] += (table["size"] == "a") * (table.batch == 8) * 0.5
    result = variance_split(table, ["y"], SETTINGS).set_index("setting")
    assert (table.batch == 256).sum() == 2
    without = pd.DataFrame(
        [shares(variance_split(table[table.configuration != c], ["y"], SETTINGS)) for c in table.configuration.unique()]
    )
    assert (without > 0).all(axis=None)  # else they were changed for the page
    n, levels = len(without), 2 + 4 + 2
    error = without.std(ddof=0) * np.sqrt(n - 1)
    half = stats.t.ppf(0.975, n - 1 - levels) * error
    for setting in result.index:
        share = result.share[setting]
        ends = np.clip([share - half[setting], share + half[setting]], 0, 1)
        assert result.loc[setting, ["low", "high"]].tolist() == pytest.approx(ends.tolist(), rel=1e-6)


# Known answers.


def test_intervals_cover_the_true_shares_of_simulated_tables():
    table = factorial(seeds=2)
    draws = 400
    rng = np.random.default_rng(0)
    interaction = rng.normal(scale=0.3, size=(36, draws))[table.groupby("configuration").ngroup()]
    seeds = rng.normal(scale=0.4, size=(len(table), draws))
    names = [f"y{i}" for i in range(draws)]
    y = size_effect(table).to_numpy()[:, None] + interaction + seeds
    result = variance_split(table.join(pd.DataFrame(y, columns=names)), names, SETTINGS)

    by_size = size_effect(table.drop_duplicates("configuration")).var()
    total = by_size + 0.3**2 + 0.4**2
    truth = {"size": by_size, "batch": 0, "decay": 0, "seed": 0.4**2, "rest": 0.3**2}
    for setting, of_total in truth.items():
        of = result[result.setting == setting]
        assert of.share.mean() == pytest.approx(of_total / total, abs=0.02)
        assert ((of.low <= of_total / total) & (of_total / total <= of.high)).mean() > 0.92
    assert result.groupby("column").share.sum().to_numpy() == pytest.approx(1)


def test_extra_seeds_of_one_configuration_do_not_change_the_estimand():
    table = factorial(seeds=2)
    names = [f"y{i}" for i in range(300)]

    def mean_shares(table, seed):
        noise = np.random.default_rng(seed).normal(scale=0.7, size=(len(table), len(names)))
        y = pd.DataFrame(size_effect(table).to_numpy()[:, None] + noise, columns=names)
        return variance_split(table.join(y), names, SETTINGS).groupby("setting").share.mean()

    many = pd.concat([table, *[table[table.configuration == "c0"]] * 20], ignore_index=True)
    assert mean_shares(many, 1).to_numpy() == pytest.approx(mean_shares(table, 2).to_numpy(), abs=0.02)


def test_null_shares_below_0_are_set_to_0_and_noted():
    table = factorial(seeds=2)
    noise = pd.DataFrame(np.random.default_rng(0).normal(size=(len(table), 50)), columns=[f"y{i}" for i in range(50)])
    result = variance_split(table.join(noise), list(noise), SETTINGS)
    assert (result.share >= 0).all()
    assert result.groupby("column").share.sum().to_numpy() == pytest.approx(1)
    below = result.note.str.contains("below 0 by chance, set to 0")
    assert (result.share[below] == 0).all()
    assert (result.share[~below] > 0).all()
    assert 20 < below.sum() < 180


# Properties.


def test_shares_do_not_depend_on_row_order_setting_order_or_units():
    table = with_effects(one_at_a_time(seeds=2))
    expected = variance_split(table, ["y"], SETTINGS).set_index("setting")
    shuffled = table.sample(frac=1, random_state=0).assign(y=lambda t: -1e-9 * t.y + 3e-9)
    result = variance_split(shuffled, ["y"], SETTINGS[::-1]).set_index("setting").loc[expected.index]
    for name in ("share", "low", "high"):
        assert result[name].to_numpy() == pytest.approx(expected[name].to_numpy(), rel=1e-6)


def test_equivalent_settings_are_one_factor():
    table = with_effects(factorial()).assign(width=lambda t: t["size"].map(ord) * 64, heads=lambda t: t.width // 64)
    result = variance_split(table, ["y"], ["width", "batch", "size", "decay", "heads"])
    assert result.setting.tolist() == ["width", "batch", "decay", "seed", "rest"]
    assert result.note[0] == "equivalent to size, heads"
    reference = variance_split(table, ["y"], SETTINGS)
    assert result.share.tolist() == pytest.approx(reference.share.tolist(), nan_ok=True)


def test_rows_of_a_group_that_differ_in_a_setting_are_two_configurations():
    table = with_effects(factorial(seeds=2))
    joined = table.assign(configuration=table["size"] + table.decay.map(str))
    result, expected = (variance_split(t, ["y"], SETTINGS) for t in (joined, table))
    assert result.share.tolist() == pytest.approx(expected.share.tolist())
    assert result.low.tolist() == pytest.approx(expected.low.tolist())


def test_settings_may_be_lists_or_missing():
    table = with_effects(factorial())
    values = {8: None, 32: ("a", "b"), 128: ("a",)}
    odd = table.assign(batch=table.batch.map(values), decay=table.decay.mask(table.decay == 0.5))
    for name in ("share", "low", "high"):
        result, expected = (variance_split(t, ["y"], SETTINGS)[name].tolist() for t in (odd, table))
        assert result == pytest.approx(expected, nan_ok=True)


def test_sampled_orders_approximate_all_orders_for_many_settings(monkeypatch):
    table = with_effects(one_at_a_time())
    exact = variance_split(table, ["y"], SETTINGS)
    monkeypatch.setattr(variance, "EXACT_FACTORS", 2)
    sampled = variance_split(table, ["y"], SETTINGS)
    assert sampled.share.tolist() == pytest.approx(exact.share.tolist(), abs=0.02, nan_ok=True)
    assert sampled.share.sum() == pytest.approx(1)


def test_missing_values_of_one_column_do_not_affect_others():
    table = with_effects(factorial(seeds=2)).assign(z=lambda t: t.y**2)
    gaps = table.assign(z=table.z.mask(table.index % 9 == 0).mask(table.index == 5, np.inf))
    result = variance_split(gaps, ["z", "y"], SETTINGS)
    assert result.column.tolist() == ["z"] * 5 + ["y"] * 5
    finite = table[(table.index % 9 != 0) & (table.index != 5)]
    reference = pd.concat([variance_split(finite, ["z"], SETTINGS), variance_split(table, ["y"], SETTINGS)])
    pd.testing.assert_frame_equal(result, reference.reset_index(drop=True))
    assert result.n.tolist() == [len(finite)] * 5 + [len(table)] * 5


# Undetermined values.


def test_constant_columns_and_settings_have_a_note_and_no_share():
    table = with_effects(factorial(seeds=2)).assign(flat=lambda t: [0.3, 0.1 * 3] * (len(t) // 2), schedule="cosine")
    result = variance_split(table, ["flat", "y"], [*SETTINGS, "schedule"])
    flat, y = result[result.column == "flat"], result[result.column == "y"].set_index("setting")
    assert flat[["share", "low", "high"]].isna().all(axis=None)
    assert (flat.note == "the column is the same in all rows").all()
    assert np.isnan(y.share["schedule"])
    assert y.note["schedule"] == "the setting is the same in all rows"
    assert y.share.tolist() == pytest.approx(
        variance_split(table, ["y"], SETTINGS).share.tolist()[:3] + [np.nan] + y.share.tolist()[-2:], nan_ok=True
    )


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_too_few_configurations_give_no_shares(rows):
    result = variance_split(with_effects(factorial())[:rows].assign(y=[1.0, 2.0, 4.0][:rows]), ["y"], SETTINGS)
    assert result[["share", "low", "high"]].isna().all(axis=None)
    assert (result.note != "").all()
    assert (result.n == rows).all()


def test_saturated_settings_leave_only_the_seed_share():
    table = with_effects(factorial(seeds=2))
    each = variance_split(table, ["y"], ["configuration"]).set_index("setting")
    assert each.share[["configuration", "rest"]].isna().all()
    assert each.note["rest"] == "36 configurations leave no degree of freedom beside 35 levels of settings"
    usual = variance_split(table, ["y"], SETTINGS).set_index("setting")
    raw = usual.share["seed"] / usual.share.sum()
    assert each.share["seed"] == pytest.approx(raw, rel=0.1)


def test_replicates_of_one_configuration_give_a_seed_share_without_interval():
    table = factorial()
    table = with_effects(pd.concat([table, *[table[:1]] * 4], ignore_index=True))
    result = variance_split(table, ["y"], SETTINGS).set_index("setting")
    assert 0 < result.share["seed"] < 0.5
    assert result[["low", "high"]].loc["seed"].isna().all()
    assert result.note["seed"] == "no interval: too few configurations"
    assert result.drop("seed")[["low", "high"]].notna().all(axis=None)


def test_the_rest_interval_does_not_depend_on_a_single_replicated_configuration():
    single = with_effects(factorial(), sd=1)
    more = [single[:1].assign(y=single.y[0] + d) for d in (-0.7, 0.7, -0.6, 0.6)]
    repeated = pd.concat([single, *more], ignore_index=True)
    reference, apart = (variance_split(t, ["y"], SETTINGS).set_index("setting").loc["rest"] for t in (single, repeated))
    assert 0 < apart.share < reference.share - 0.1
    assert apart.high - apart.share == pytest.approx(reference.high - reference.share, rel=0.1)


def test_without_settings_only_seed_and_rest_remain():
    result = shares(variance_split(with_effects(factorial(seeds=2)), ["y"], []))
    assert list(result) == ["seed", "rest"]
    assert result["rest"] > 0.5


def test_no_columns_give_an_empty_result():
    assert list(variance_split(pd.DataFrame(), [], []).columns) == list(COLUMNS)


def test_a_wrong_column_is_named():
    table = with_effects(factorial(seeds=2))
    with pytest.raises(UnknownColumnError, match="no column 'sizes'; did you mean 'size'"):
        variance_split(table, ["y"], ["sizes"])
    with pytest.raises(AnalysisError, match="'size' of the table contains a value that isn't a number"):
        variance_split(table, ["size"], ["batch"])
