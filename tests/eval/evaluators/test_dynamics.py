"""Saturation and collapse against values worked out by hand."""

import math

import numpy as np
import pytest

from eval.evaluators.dynamics import collapse, rise_after_best


def documents(*nats):
    return [{"nats": list(nats), "tokens": [10.0] * len(nats)}]


def test_the_rise_is_that_above_the_best_with_its_paired_error():
    # Per document the rise is 4, 6 and 5 nats of 10 tokens: .5 a token, standard deviation .1, over sqrt(3).
    found = rise_after_best({1: documents(50, 60, 70), 5: documents(30, 20, 40), 9: documents(34, 26, 45)})
    assert found["best_step"] == 5
    assert found["rise"] == pytest.approx(0.5)
    assert found["rise_standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["saturated"] == 1


def test_a_rise_that_documents_do_not_agree_on_is_none():
    found = rise_after_best({5: documents(30, 20, 40), 9: documents(44, 10, 41)})
    assert found["rise"] > 0
    assert found["saturated"] == 0


def test_domains_have_equal_weight_whatever_their_length():
    short, long = {"nats": [1.0, 1.0], "tokens": [1.0, 1.0]}, {"nats": [200.0, 200.0], "tokens": [100.0, 100.0]}
    worse = {"nats": [1.5, 1.5], "tokens": [1.0, 1.0]}
    assert rise_after_best({1: [short, long], 2: [worse, long]})["rise"] == pytest.approx(0.25)


def test_the_best_at_the_end_is_no_saturation_and_one_checkpoint_says_nothing():
    found = rise_after_best({1: documents(5, 6), 2: documents(4, 5)})
    assert (found["best_step"], found["rise"], found["saturated"]) == (2, 0, 0)
    assert all(math.isnan(v) for v in rise_after_best({3: documents(5, 6)}).values())
    assert math.isnan(rise_after_best({1: documents(5, 6), 2: documents(None, 5)})["saturated"])


def test_the_collapse_is_the_first_fall_below_a_share_of_the_highest_so_far():
    found = collapse({0: 50, 10: 60, 20: 55, 30: 45, 40: 20}, 0.8)
    assert found == {"highest_rank": 60, "highest_rank_step": 10, "collapse_step": 30, "rank_fall": 1 - 20 / 60}
    assert math.isnan(collapse({0: 50, 10: 60, 20: 55}, 0.8)["collapse_step"])
    # A fall that is made up for later has happened all the same.
    assert collapse({0: 50, 10: 30, 20: 70}, 0.8)["collapse_step"] == 10
    assert math.isnan(collapse({}, 0.8)["highest_rank"])
    assert collapse({0: float("nan"), 5: 3.0}, 0.8)["highest_rank_step"] == 5


def test_a_null_of_equal_models_is_rarely_called_saturated():
    rng = np.random.default_rng(0)
    flagged = 0
    for _ in range(500):
        base = rng.normal(30, 5, 40)
        best, last = documents(*base), documents(*(base + rng.normal(0, 1, 40)))
        flagged += rise_after_best({1: best, 2: last})["saturated"]
    assert flagged / 500 < 0.05
