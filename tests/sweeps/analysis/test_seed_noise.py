import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from sweeps.analysis import AnalysisError, UnknownColumnError
from sweeps.analysis.estimate import NotEstimableError
from sweeps.analysis.seed_noise import intraclass, seed_deviation, seed_deviations


def replicates(seed=0):
    """Eight configurations of 1 to 5 runs each; seeds move y by 0.3 and z by 2."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(8), [1, 5, 2, 3, 1, 4, 2, 2])
    y, z = of + rng.normal(scale=0.3, size=len(of)), 1e6 * of + rng.normal(scale=2, size=len(of))
    return pd.DataFrame({"configuration": [f"c{i}" for i in of], "y": y, "z": z})


def test_seed_noise_is_the_residual_of_one_way_anova():
    table = replicates()
    expected = [np.sqrt(smf.ols(f"{name} ~ C(configuration)", table).fit().mse_resid) for name in ("y", "z")]
    assert seed_deviations(table, ["y", "z"]).to_numpy() == pytest.approx(expected, rel=1e-6)


def test_seed_noise_recovers_the_planted_deviation():
    squares = [seed_deviation(replicates(seed), "y") ** 2 for seed in range(200)]
    assert np.mean(squares) == pytest.approx(0.3**2, rel=0.06)


def test_seed_noise_does_not_depend_on_configuration_means():
    table = replicates()
    moved = table.assign(y=table.y + 50 * table.groupby("configuration").ngroup() ** 2)
    assert seed_deviation(moved, "y") == pytest.approx(seed_deviation(table, "y"))


def test_missing_and_infinite_values_are_dropped_per_column():
    table = replicates()
    gaps = table.assign(y=table.y.mask(table.index % 4 == 1).mask(table.index == 6, np.inf))
    result = seed_deviations(gaps, ["y", "z"])
    finite = table[(table.index % 4 != 1) & (table.index != 6)]
    assert result.tolist() == pytest.approx([seed_deviation(finite, "y"), seed_deviation(table, "z")])


def test_seed_noise_without_replicates_is_nan():
    single_runs = replicates().drop_duplicates("configuration")
    assert np.isnan(seed_deviation(single_runs, "y"))
    assert np.isnan(seed_deviation(single_runs[:0], "y"))
    assert np.isnan(seed_deviation(replicates().assign(y=np.nan), "y"))


def test_identical_seeds_have_exactly_zero_noise():
    assert seed_deviation(pd.DataFrame({"configuration": "c", "y": [0.1] * 3}), "y") == 0


def test_any_column_can_define_groups_and_rows_without_one_are_dropped():
    table = replicates().rename(columns={"configuration": "arm"})
    extra = pd.concat([table, pd.DataFrame({"arm": [None, None], "y": [0.0, 90.0], "z": 1.0})])
    assert seed_deviation(extra, "y", "arm") == pytest.approx(seed_deviation(table, "y", "arm"))


def test_no_columns_give_an_empty_result():
    assert seed_deviations(pd.DataFrame(), []).empty


def test_a_wrong_column_is_named():
    with pytest.raises(UnknownColumnError, match="no column 'yy'; did you mean 'y'"):
        seed_deviation(replicates(), "yy")
    with pytest.raises(AnalysisError, match="'configuration' of the table contains a value that isn't a number"):
        seed_deviation(replicates(), "configuration")


def balanced(rng, share, configurations=12, seeds=3):
    """Runs of which a share of the variance is between configurations."""
    between = np.repeat(rng.normal(scale=np.sqrt(share), size=configurations), seeds)
    noise = rng.normal(scale=np.sqrt(1 - share), size=configurations * seeds)
    names = np.repeat([f"c{i}" for i in range(configurations)], seeds)
    return pd.DataFrame({"configuration": names, "y": between + noise})


def test_the_share_between_configurations_is_that_of_the_analysis_of_variance():
    table = balanced(np.random.default_rng(0), 0.6)
    fit = smf.ols("y ~ C(configuration)", table).fit()
    found = intraclass(table, "y")
    assert found.estimate == pytest.approx((fit.fvalue - 1) / (fit.fvalue - 1 + 3))
    assert found.p_value == pytest.approx(fit.f_pvalue)
    assert found.n == 36


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_its_interval_covers_the_planted_share(share):
    rng, trials = np.random.default_rng(1), 400
    found = [intraclass(balanced(rng, share), "y") for _ in range(trials)]
    covered = np.mean([one.low <= share <= one.high for one in found])
    assert 0.92 < covered < 0.99
    # Estimates below 0 are cut, so that their mean is a little above it.
    assert np.mean([one.estimate for one in found]) == pytest.approx(share, abs=0.05 if share else 0.07)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop_duplicates("configuration"), "no configuration has two seeds"),
        (lambda table: table[table["configuration"] == "c0"], "takes two or more of them"),
        (lambda table: table.assign(y=1.0), "same value in all runs"),
        (lambda table: table.assign(y=np.nan), "not finite in all 36 runs"),
    ],
)
def test_no_share_without_what_it_takes(change, words):
    with pytest.raises(NotEstimableError, match=words):
        intraclass(change(balanced(np.random.default_rng(0), 0.5)), "y")
