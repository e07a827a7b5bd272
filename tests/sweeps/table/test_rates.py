"""Rates of change per ln(tokens), against a metric that is a known function of the tokens."""

import numpy as np
import pandas as pd
import pytest

from sweeps.judge.sweep import column_of
from sweeps.table.columns import UnknownColumnError
from sweeps.table.rates import with_rates

COLUMN = "unembedding/effective_rank"
TABLE = pd.DataFrame(
    {
        "run_id": ["b", "a", "a", "a", "a", "b", "b"],
        "tokens": [0, 400, 100, 200, 800, 10, 1000],
    }
)


def test_a_metric_that_grows_with_the_logarithm_has_a_constant_rate():
    slope = {"a": 2.0, "b": -0.5}
    x = [
        7.0 + slope[run] * np.log(max(tokens, 1)) for run, tokens in zip(TABLE["run_id"], TABLE["tokens"], strict=True)
    ]
    table = with_rates(TABLE.assign(**{COLUMN: x}), [f"rate/{COLUMN}"])
    # The first row of a run has nothing before it, and what was measured before the first token is at no ln(tokens).
    expected = [np.nan, 2.0, np.nan, 2.0, 2.0, np.nan, -0.5]
    np.testing.assert_allclose(table[f"rate/{COLUMN}"], expected)


def test_rows_without_the_metric_are_passed_over():
    x = [np.nan, np.nan, 1.0, np.nan, 4.0, np.nan, np.nan]
    rates = with_rates(TABLE.assign(**{COLUMN: x}), [f"rate/{COLUMN}"])[f"rate/{COLUMN}"]
    np.testing.assert_allclose(rates, [*[np.nan] * 4, 3.0 / np.log(8), np.nan, np.nan])


def test_judge_takes_the_rate_of_a_column_or_of_a_name():
    table = TABLE.assign(**{COLUMN: 1.0})
    assert column_of(f"rate/{COLUMN}", table) == column_of("rate/effective_rank", table) == f"rate/{COLUMN}"
    with pytest.raises(UnknownColumnError, match="stable_rank"):
        with_rates(table, ["rate/unembedding/stable_rank"])
