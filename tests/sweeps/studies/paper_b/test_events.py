"""When a run memorises, groks, stops improving and turns, on curves with known times."""

import math

import numpy as np
import pandas as pd
import pytest

from sweeps.studies.paper_b.events import grokking_of, least_step, probe_rows, stop_step, valley_step

STEPS = np.arange(0, 4001, 50)


def run(memorised=300, followed=2000, before=10.0, after=6.0):
    """Training accuracy is high from `memorised` on, validation accuracy from `followed` on (None: never)."""
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


def test_a_grokking_run_has_its_times_and_levels():
    event = grokking_of(run(), "metric")
    assert event.groks and (event.memorised_step, event.followed_step) == (300, 2000)
    assert (event.before, event.after) == (10, 6) and abs(event.outcome_step - 2000) <= 50
    assert math.isnan(event.stays)


@pytest.mark.parametrize("followed, groks", [(799, False), (800, True)])
def test_grokking_needs_500_steps_after_memorising(followed, groks):
    assert grokking_of(run(followed=followed - followed % 50 if not groks else 800), "metric").groks == groks


def test_runs_that_only_memorise_or_do_not_learn_do_not_grok():
    memorised_only = grokking_of(run(followed=None), "metric")
    assert not memorised_only.groks and math.isnan(memorised_only.followed_step) and memorised_only.stays == 0
    neither = grokking_of(run(memorised=10**9, followed=None), "metric")
    assert not neither.groks and math.isnan(neither.memorised_step) and math.isnan(neither.stays)


def test_exhaustion_needs_a_loss_that_stops_improving():
    loss = 3 + np.exp(-STEPS / 300)
    stopped = pd.DataFrame({"step": STEPS, "loss": loss + np.where(STEPS > 2000, (STEPS - 2000) / 1e4, 0)})
    expected = next(s for s, y in zip(STEPS, loss, strict=True) if y <= loss[40] + 0.05 * (loss[0] - loss[40]))
    assert stop_step(stopped, "loss") == expected
    assert math.isnan(stop_step(pd.DataFrame({"step": STEPS, "loss": -STEPS / 1000}), "loss"))
    assert math.isnan(stop_step(pd.DataFrame({"step": STEPS, "loss": np.nan}), "loss"))


def test_a_valley_has_an_interior_minimum_and_rises_on_both_sides():
    inside = pd.DataFrame({"step": STEPS, "y": np.abs(STEPS - 1500) / 1000})
    assert least_step(inside, "y") == 1500 and abs(valley_step(inside, "y") - 1500) <= 50
    for other in (STEPS / 1000, -STEPS / 1000):
        frame = pd.DataFrame({"step": STEPS, "y": other})
        assert math.isnan(least_step(frame, "y")) and math.isnan(valley_step(frame, "y"))
    peak = pd.DataFrame({"step": STEPS, "y": -np.abs(STEPS - 1500) / 1000})
    assert math.isnan(valley_step(peak, "y"))


def test_text_rows_are_those_with_text_measurements():
    curve = run()
    curve.loc[::2, "texts.validation/loss"] = np.nan
    assert len(probe_rows(curve)) == len(curve) // 2
    assert probe_rows(curve.drop(columns="texts.validation/loss")).empty
