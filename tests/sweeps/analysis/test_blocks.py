import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.blocks import of_pairs
from sweeps.analysis.estimate import Estimate, Noted, NotEstimableError, nothing
from sweeps.table.columns import UnknownColumnError

TABLE = pd.DataFrame({"a": range(6), "b": [1.0] * 6, "gappy": [0.0, 1, 2, np.nan, np.inf, 3], "y": range(6)})


def covariance(block):
    """Return the covariances of a block, for metrics that vary."""

    def of_pair(i, j):
        x_N, y_N = block.metrics_NC[:, i], block.targets_NE[:, j]
        if np.ptp(x_N) == 0:
            raise NotEstimableError("a constant")
        return Noted(Estimate(np.cov(x_N, y_N)[0, 1], 0, 0, 0, len(x_N)), "")

    return of_pair


def test_a_pair_that_cannot_be_estimated_is_missing_with_the_reason_and_leaves_the_others():
    results = of_pairs(TABLE, ["a", "b", "gappy"], ["y"], [], covariance, Noted)
    assert results["a", "y"].estimate.estimate == pytest.approx(3.5)
    assert results["b", "y"].note == "a constant"
    assert np.isnan(results["b", "y"].estimate[:4]).all() and results["b", "y"].estimate.n == 6
    assert results["gappy", "y"].estimate.n == 4
    assert results["gappy", "y"].estimate.estimate == pytest.approx(np.cov([0, 1, 2, 3], [0, 1, 2, 5])[0, 1])


def test_a_block_that_cannot_be_estimated_makes_all_its_pairs_missing():
    def fit(block):
        raise NotEstimableError("too few groups")

    results = of_pairs(TABLE, ["a", "b"], ["y"], [], fit, Noted)
    assert {pair: noted.note for pair, noted in results.items()} == dict.fromkeys(results, "too few groups")
    assert list(results) == [("a", "y"), ("b", "y")]


def test_fewer_than_four_rows_are_not_given_to_the_statistic():
    def fit(block):
        raise AssertionError

    assert of_pairs(TABLE[:3], ["a"], ["y"], [], fit, Noted) == {
        ("a", "y"): (pytest.approx(nothing(3), nan_ok=True), "fewer than 4 usable rows")
    }


def test_rows_without_a_value_of_a_used_column_are_left_out_and_an_unknown_one_is_an_error():
    assert of_pairs(TABLE, ["a"], ["y"], ["gappy"], covariance, Noted)["a", "y"].estimate.n == 4
    with pytest.raises(UnknownColumnError, match="gapy"):
        of_pairs(TABLE, ["a"], ["y"], ["gapy"], covariance, Noted)


def test_another_error_is_not_taken_for_a_missing_value():
    def fit(block):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        of_pairs(TABLE, ["a"], ["y"], [], fit, Noted)
