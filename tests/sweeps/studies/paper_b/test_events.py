"""When a run memorises, groks, stops improving and turns, on curves with known times."""

import math

import numpy as np
import pandas as pd
import pytest

from sweeps.studies.paper_b.events import grokking_of, least_step, probe_rows, stop_step, valley_step

STEPS = np.arange(0, 4001, 50)


def run(memorised=300, followed=2000, before=10.0, after=6.0):
    """Training is known from `memorised` on, validation follows at `followed` (None: never)."""
    late = (followed or 10**9) <= STEPS
    return pd.DataFrame(
        {
            "step": STEPS,
            "texts.train/accuracy": np.where(memorised <= STEPS, 1.0, 0.4),
            "texts.validation/accuracy": np.where(late, 0.99, 0.05),
            "texts.validation/loss": np.where(late, 0.1, 6.0),
            "metric": np.where(late, after, before),
        }
    )


def test_a_run_that_groks_is_told_with_its_times_and_levels():
    found = grokking_of(run(), "metric")
    assert found.groks and (found.memorised_step, found.followed_step) == (300, 2000)
    assert (found.before, found.after) == (10, 6) and abs(found.outcome_step - 2000) <= 50
    assert math.isnan(found.stays)


@pytest.mark.parametrize("followed, groks", [(799, False), (800, True)])
def test_it_groks_only_500_steps_after_memorising(followed, groks):
    assert grokking_of(run(followed=followed - followed % 50 if not groks else 800), "metric").groks == groks


def test_one_that_memorises_alone_and_one_that_does_not_even_that():
    alone = grokking_of(run(followed=None), "metric")
    assert not alone.groks and math.isnan(alone.followed_step) and alone.stays == 0
    neither = grokking_of(run(memorised=10**9, followed=None), "metric")
    assert not neither.groks and math.isnan(neither.memorised_step) and math.isnan(neither.stays)


def test_a_loss_that_stops_improving_and_one_that_still_does():
    loss = 3 + np.exp(-STEPS / 300)
    stopped = pd.DataFrame({"step": STEPS, "loss": loss + np.where(STEPS > 2000, (STEPS - 2000) / 1e4, 0)})
    expected = next(s for s, y in zip(STEPS, loss, strict=True) if y <= loss[40] + 0.05 * (loss[0] - loss[40]))
    assert stop_step(stopped, "loss") == expected
    assert math.isnan(stop_step(pd.DataFrame({"step": STEPS, "loss": -STEPS / 1000}), "loss"))
    assert math.isnan(stop_step(pd.DataFrame({"step": STEPS, "loss": np.nan}), "loss"))


def test_the_least_is_one_inside_and_a_valley_rises_on_both_sides():
    inside = pd.DataFrame({"step": STEPS, "y": np.abs(STEPS - 1500) / 1000})
    assert least_step(inside, "y") == 1500 and abs(valley_step(inside, "y") - 1500) <= 50
    for other in (STEPS / 1000, -STEPS / 1000):
        frame = pd.DataFrame({"step": STEPS, "y": other})
        assert math.isnan(least_step(frame, "y")) and math.isnan(valley_step(frame, "y"))
    peak = pd.DataFrame({"step": STEPS, "y": -np.abs(STEPS - 1500) / 1000})
    assert math.isnan(valley_step(peak, "y"))


def test_the_rows_of_texts_are_those_that_have_them():
    curve = run()
    curve.loc[::2, "texts.validation/loss"] = np.nan
    assert len(probe_rows(curve)) == len(curve) // 2
    assert probe_rows(curve.drop(columns="texts.validation/loss")).empty
