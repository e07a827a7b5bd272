"""Saturation and collapse against values calculated by hand."""

import math

import numpy as np
import pytest

from eval.evaluators.dynamics import collapse, rise_after_best


def documents(*nats):
    return [{"nats": list(nats), "tokens": [10.0] * len(nats)}]


def test_the_rise_is_measured_from_the_best_checkpoint_with_a_paired_error():
    # The rises of the documents are 4, 6 and 5 nats per 10 tokens: mean .5 per token, standard deviation .1.
    result = rise_after_best({1: documents(50, 60, 70), 5: documents(30, 20, 40), 9: documents(34, 26, 45)})
    assert result["best_step"] == 5
    assert result["rise"] == pytest.approx(0.5)
    assert result["rise_standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert result["saturated"] == 1


def test_an_inconsistent_rise_over_documents_is_not_a_degradation():
    result = rise_after_best({5: documents(30, 20, 40), 9: documents(44, 10, 41)})
    assert result["rise"] > 0
    assert result["saturated"] == 0


def test_domains_have_equal_weight_regardless_of_length():
    short, long = {"nats": [1.0, 1.0], "tokens": [1.0, 1.0]}, {"nats": [200.0, 200.0], "tokens": [100.0, 100.0]}
    worse = {"nats": [1.5, 1.5], "tokens": [1.0, 1.0]}
    assert rise_after_best({1: [short, long], 2: [worse, long]})["rise"] == pytest.approx(0.25)


def test_no_saturation_if_the_last_checkpoint_is_best_or_the_only_one():
    result = rise_after_best({1: documents(5, 6), 2: documents(4, 5)})
    assert (result["best_step"], result["rise"], result["saturated"]) == (2, 0, 0)
    assert all(math.isnan(v) for v in rise_after_best({3: documents(5, 6)}).values())
    assert math.isnan(rise_after_best({1: documents(5, 6), 2: documents(None, 5)})["saturated"])


def test_collapse_is_the_first_fall_below_a_fraction_of_the_running_maximum():
    result = collapse({0: 50, 10: 60, 20: 55, 30: 45, 40: 20}, 0.8)
    assert result == {"highest_rank": 60, "highest_rank_step": 10, "collapse_step": 30, "rank_fall": 1 - 20 / 60}
    assert math.isnan(collapse({0: 50, 10: 60, 20: 55}, 0.8)["collapse_step"])
    # A fall counts even if the rank recovers later.
    assert collapse({0: 50, 10: 30, 20: 70}, 0.8)["collapse_step"] == 10
    assert math.isnan(collapse({}, 0.8)["highest_rank"])
    assert collapse({0: float("nan"), 5: 3.0}, 0.8)["highest_rank_step"] == 5


def test_equal_checkpoints_are_rarely_called_saturated():
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(500):
        base = rng.normal(30, 5, 40)
        best, last = documents(*base), documents(*(base + rng.normal(0, 1, 40)))
        flagged += rise_after_best({1: best, 2: last})["saturated"]
    assert flagged / 500 < 0.05
