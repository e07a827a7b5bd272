import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from sweeps.analysis import AnalysisError, UnknownColumnError
from sweeps.analysis.seed_noise import seed_deviation, seed_deviations


def replicates(seed=0):
    """Eight configurations of 1 to 5 runs each; seeds move y by 0.3 and z by 2."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(8), [1, 5, 2, 3, 1, 4, 2, 2])
    y, z = of + rng.normal(scale=0.3, size=len(of)), 1e6 * of + rng.normal(scale=2, size=len(of))
    return pd.DataFrame({"configuration": [f"c{i}" for i in of], "y": y, "z": z})


def test_it_is_the_residual_of_a_one_way_analysis_of_variance():
    table = replicates()
    expected = [np.sqrt(smf.ols(f"{name} ~ C(configuration)", table).fit().mse_resid) for name in ("y", "z")]
    assert seed_deviations(table, ["y", "z"]).to_numpy() == pytest.approx(expected, rel=1e-6)


def test_it_finds_the_deviation_that_the_seeds_have():
    squares = [seed_deviation(replicates(seed), "y") ** 2 for seed in range(200)]
    assert np.mean(squares) == pytest.approx(0.3**2, rel=0.06)


def test_what_the_configurations_do_changes_nothing():
    table = replicates()
    moved = table.assign(y=table.y + 50 * table.groupby("configuration").ngroup() ** 2)
    assert seed_deviation(moved, "y") == pytest.approx(seed_deviation(table, "y"))


def test_missing_and_infinite_values_are_left_out_of_their_column_alone():
    table = replicates()
    gaps = table.assign(y=table.y.mask(table.index % 4 == 1).mask(table.index == 6, np.inf))
    found = seed_deviations(gaps, ["y", "z"])
    kept = table[(table.index % 4 != 1) & (table.index != 6)]
    assert found.tolist() == pytest.approx([seed_deviation(kept, "y"), seed_deviation(table, "z")])


def test_without_replicates_it_is_not_known():
    alone = replicates().drop_duplicates("configuration")
    assert np.isnan(seed_deviation(alone, "y"))
    assert np.isnan(seed_deviation(alone[:0], "y"))
    assert np.isnan(seed_deviation(replicates().assign(y=np.nan), "y"))


def test_seeds_that_agree_deviate_by_exactly_nothing():
    assert seed_deviation(pd.DataFrame({"configuration": "c", "y": [0.1] * 3}), "y") == 0


def test_any_column_can_name_the_group_and_a_row_without_one_is_in_none():
    table = replicates().rename(columns={"configuration": "arm"})
    extra = pd.concat([table, pd.DataFrame({"arm": [None, None], "y": [0.0, 90.0], "z": 1.0})])
    assert seed_deviation(extra, "y", "arm") == pytest.approx(seed_deviation(table, "y", "arm"))


def test_of_no_columns_there_is_nothing():
    assert seed_deviations(pd.DataFrame(), []).empty


def test_a_wrong_column_is_named():
    with pytest.raises(UnknownColumnError, match="no column 'yy'; did you mean 'y'"):
        seed_deviation(replicates(), "yy")
    with pytest.raises(AnalysisError, match="'configuration' of the table holds something that isn't a number"):
        seed_deviation(replicates(), "configuration")
