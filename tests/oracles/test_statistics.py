"""Rank correlations against pingouin 0.7.0 as it is installed."""

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.correlation import partial_spearman, spearman

pytestmark = pytest.mark.oracle


def ties_and_controls(n=50, seed=0):
    table = pd.DataFrame(np.random.default_rng(seed).normal(size=(n, 5)), columns=["x", "y", "a", "b", "c"])
    return table.assign(x=table.x + table.a - table.c, y=table.y + table.a, row=range(n)).round(1)


def groups(singletons):
    return "row" if singletons else None


@pytest.mark.parametrize("singletons", [False, True])
def test_spearman_matches_pingouin(singletons):
    import pingouin

    table = ties_and_controls()
    expected = pingouin.corr(table.x, table.y, method="spearman").iloc[0]
    result = spearman(table, "x", "y", groups(singletons))
    assert (result.estimate, result.p_value) == pytest.approx((expected["r"], expected["p_val"]), rel=1e-9)
    assert result.n == expected["n"]


@pytest.mark.parametrize("controls", [["a"], ["a", "b", "c"]])
@pytest.mark.parametrize("singletons", [False, True])
def test_partial_spearman_matches_pingouin(controls, singletons):
    import pingouin

    table = ties_and_controls()
    expected = pingouin.partial_corr(table, x="x", y="y", covar=controls, method="spearman").iloc[0]
    result = partial_spearman(table, "x", "y", controls, "rank", groups(singletons))
    assert (result.estimate, result.p_value) == pytest.approx((expected["r"], expected["p_val"]), rel=1e-9)


def test_settings_as_factors_match_pingouin_with_indicators():
    """Of x and y as ranks: pingouin's Pearson given 0 and 1 for all levels but the first."""
    import pingouin

    table = ties_and_controls().assign(level=np.arange(50) % 4)
    levels = pd.get_dummies(table.level, prefix="is", drop_first=True, dtype=float)
    ranked = pd.concat([table[["x", "y"]].rank(), levels], axis=1)
    expected = pingouin.partial_corr(ranked, x="x", y="y", covar=list(levels), method="pearson").iloc[0]
    result = partial_spearman(table, "x", "y", ["level"], "factor")
    assert (result.estimate, result.p_value) == pytest.approx((expected["r"], expected["p_val"]), rel=1e-9)
