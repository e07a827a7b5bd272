"""Verdicts on synthetic sweeps with a known answer."""

import math

import numpy as np
import pandas as pd
import pytest

from sweeps.studies.paper_b.claim import SIGNALS
from sweeps.studies.paper_b.claims import claims
from sweeps.studies.paper_b.shift import shifts

STEPS = np.arange(0, 4001, 50)
METRIC = "layer_0.train/local_two_nn"


def table_of(runs, corpus):
    rows = {"run_id": list(runs), "final": True, "diverged_at": pd.array([None] * len(runs), "Int64")}
    return pd.DataFrame(rows | {"config.data.corpus": corpus})


def grokking(drop=4.0, tied=True, groks=8, stays=2, seed=0):
    """Return runs that grok at different times; the metric drops at that time (`tied`) or at that of another run."""
    random = np.random.default_rng(seed)
    times = random.uniform(1200, 3200, groks)
    falls = times if tied else np.roll(times, groks // 2)
    curves = {}
    for i in range(groks + stays):
        accuracy = 1 / (1 + np.exp(-(STEPS - times[i]) / 40)) if i < groks else np.full(len(STEPS), 0.1)
        at = falls[i] - 100 if i < groks else 20_000
        curves[f"run{i}"] = pd.DataFrame(
            {
                "step": STEPS,
                "texts.train/accuracy": np.where(STEPS >= 300, 1.0, 0.5),
                "texts.train/loss": 4 * np.exp(-STEPS / 100),
                "texts.validation/accuracy": accuracy,
                "texts.validation/loss": 5 - 5 * accuracy,
                METRIC: 10 - drop / (1 + np.exp(-(STEPS - at) / 40)) + 0.1 * random.normal(size=len(STEPS)),
            }
        )
    return curves


@pytest.mark.parametrize(
    "how, verdict",
    [
        ({}, "agrees"),
        ({"drop": -4.0}, "disagrees"),
        ({"tied": False}, "unclear"),
        ({"groks": 3}, "unclear"),
        ({"groks": 0}, "untestable"),
    ],
)
def test_grokking_claim_verdicts(how, verdict):
    curves = grokking(**how)
    (outcome,) = claims(table_of(curves, "arithmetic"), curves)
    assert (outcome.name, outcome.verdict) == ("grokking", verdict), outcome.sentence
    assert outcome.column == METRIC
    assert list(outcome.signals.columns) == SIGNALS
    if verdict == "agrees":
        assert abs(outcome.estimate.estimate + 4) < 0.3
        lead = outcome.signals.set_index("signal").loc[METRIC]
        assert lead["claimed"] and lead["low"] <= 100 <= lead["high"]
        assert "8 of 10 runs grok" in outcome.sentence and "in 2 that only memorise" in outcome.sentence


def test_a_run_that_diverged_is_left_out():
    curves = grokking()
    table = table_of(curves, "arithmetic")
    table.loc[0, "diverged_at"] = 17
    (outcome,) = claims(table, curves)
    assert "7 of 9 runs grok" in outcome.sentence


def exhaustion(level=1500, stop=1500, runs=8):
    """Local dimension is level from one step on, validation from another."""
    random = np.random.default_rng(0)
    curves = {}
    for i in range(runs):
        shift = random.normal(0, 30)
        loss = np.maximum(6 - 3 * STEPS / (stop + shift), 3) + np.maximum(STEPS - stop - shift, 0) / 1e4
        curves[f"run{i}"] = pd.DataFrame(
            {
                "step": STEPS,
                "texts.train/loss": 6 - STEPS / 1000,
                "texts.validation/loss": loss,
                "final_states.validation/local_two_nn": np.maximum(12 - 5 * STEPS / (level + shift), 7)
                + 0.02 * random.normal(size=len(STEPS)),
            }
        )
    return curves


@pytest.mark.parametrize(
    "how, verdict",
    [({}, "agrees"), ({"level": 3500, "stop": 500}, "disagrees"), ({"stop": 10**6}, "untestable")],
)
def test_exhaustion_claim_verdicts(how, verdict):
    curves = exhaustion(**how)
    (outcome,) = claims(table_of(curves, "python_packages"), curves)
    assert (outcome.name, outcome.verdict) == ("exhaustion", verdict), outcome.sentence


def course(run, seed, at, values, evaluation="finetune_code_lr0.001", target="code"):
    rows = {"run_id": run, "step": 100, "evaluation": evaluation, "target": target, "learning_rate": 1e-3}
    return pd.DataFrame({"at": at, "seed": float(seed)} | values).assign(**rows)


def shift_courses(fine_tuned=-2.0, other=0.0, models=8):
    random = np.random.default_rng(0)
    courses = []
    for i in range(models):
        for seed in (0, 1):
            values = {}
            for text, moved in (("code", fine_tuned), ("prose", other)):
                noise = 0.05 * random.normal(size=3)
                values[f"final_states.{text}/local_two_nn"] = np.array([8, 8 + moved / 2, 8 + moved]) + noise
                values[f"final_states.{text}/local_two_nn_std"] = [2.0, 2.0, 2.0]
            courses.append(course(f"run{i}", seed, [0.0, 5.0, 10.0], values))
    return pd.concat(courses, ignore_index=True)


@pytest.mark.parametrize(
    "how, verdict",
    [
        ({}, "agrees"),
        ({"fine_tuned": 2.0}, "disagrees"),
        ({"other": -2.0}, "disagrees"),
        ({"fine_tuned": 0.0}, "unclear"),
        ({"models": 3}, "unclear"),
    ],
)
def test_shift_claim_verdicts(how, verdict):
    courses = shift_courses(**how)
    (outcome,) = claims(table_of([f"run{i}" for i in range(8)], "python_packages"), {}, courses)
    assert (outcome.name, outcome.verdict) == ("shift", verdict), outcome.sentence
    assert outcome.evaluation == "finetune_code_lr0.001"


def test_shifts_are_in_standard_deviations_and_seeds_of_a_model_count_once():
    rows = shifts(shift_courses()).set_index("text")
    assert list(rows["n"]) == [8, 8] and list(rows["own"]) == [True, False]
    np.testing.assert_allclose(rows["shift"], [-1, 0], atol=0.05)  # 2 of a deviation of 2
    np.testing.assert_allclose(rows["before"], [8, 8], atol=0.05)


def overfitting_courses(valley=200, turn=200, models=8):
    at = np.arange(0, 401, 10.0)
    courses = []
    for i in range(models):
        rise = np.abs(at - valley - 5 * i) / 100
        values = {
            "target/loss": 0.3 + np.abs(at - turn - 5 * i) / 400,
            "texts.train/loss": np.exp(-at / 50),
            "final_states.validation/local_two_nn": 6 + rise,
        }
        courses.append(course(f"run{i}", 0, at, values, "finetune_task_spam_lr0.001", "task_spam"))
    return pd.concat(courses, ignore_index=True)


@pytest.mark.parametrize(
    "how, verdict",
    [({}, "agrees"), ({"valley": -50}, "disagrees"), ({"models": 3}, "unclear"), ({"turn": 10**4}, "untestable")],
)
def test_overfitting_claim_verdicts(how, verdict):
    courses = overfitting_courses(**how)
    (outcome,) = claims(table_of([f"run{i}" for i in range(8)], "python_packages"), {}, courses)
    assert (outcome.name, outcome.verdict) == ("overfitting", verdict), outcome.sentence


def test_without_an_experiment_no_claim_is_made():
    table = table_of(["run0"], "python_packages")
    plain = {"run0": pd.DataFrame({"step": STEPS, "loss": 1.0})}
    assert claims(table, plain) == [] and claims(table, plain, pd.DataFrame(columns=["evaluation"])) == []
    assert claims(table_of([], "x"), {}) == []


def test_a_fine_tuning_that_diverged_is_left_out_and_counted():
    courses = shift_courses()
    lost = courses["run_id"].isin(["run0", "run1"]) & (courses["at"] > 0)
    courses.loc[lost, [c for c in courses.columns if "/" in c]] = np.nan
    rows = shifts(courses).set_index("text")
    assert list(rows["n"]) == [6, 6]
    np.testing.assert_allclose(rows["shift"], [-1, 0], atol=0.05)
    (outcome,) = claims(table_of([f"run{i}" for i in range(8)], "python_packages"), {}, courses)
    assert outcome.verdict == "agrees" and "4 fine-tunings that diverged are left out" in outcome.sentence


def test_checkpoints_and_fine_tuning_seeds_do_not_count_as_runs():
    courses = shift_courses(models=2)
    more = pd.concat([courses.assign(step=step) for step in (50, 100, 150)])
    assert set(shifts(more)["n"]) == {2}
    (outcome,) = claims(table_of(["run0", "run1"], "python_packages"), {}, more)
    assert outcome.verdict == "unclear"
    many = pd.concat([overfitting_courses(models=2).assign(seed=float(seed)) for seed in range(5)])
    (outcome,) = claims(table_of(["run0", "run1"], "python_packages"), {}, many)
    assert outcome.estimate.n == 2 and outcome.verdict == "unclear"


def test_a_valley_away_from_the_loss_minimum_disagrees_with_the_claim():
    (outcome,) = claims(
        table_of([f"run{i}" for i in range(8)], "python_packages"), {}, overfitting_courses(valley=300, turn=60)
    )
    assert outcome.verdict == "disagrees" and "falls and then rises, a share of 1.00" in outcome.sentence


def test_runs_with_other_columns_or_without_a_row_are_tolerated():
    curves = grokking()
    curves["run0"]["layer_0.train/effective_rank"] = 1.0
    curves["run1"] = curves["run1"].rename(columns={METRIC: "layer_3.train/local_two_nn"})
    table = table_of(curves, "arithmetic")
    (outcome,) = claims(table, curves)
    assert len(outcome.rows) == 9
    assert "Left out, with fewer than 16 measurements of local dimension: 1 more" in outcome.sentence
    curves["run1"][METRIC] = curves["run2"][METRIC]
    curves["later"] = curves["run2"]
    (outcome,) = claims(table, curves)
    assert len(outcome.rows) == 10 and list(outcome.signals["signal"]) == [METRIC, "texts.train/loss"]


def test_too_few_measurements_make_a_claim_untestable():
    few = {run: curve.iloc[:: len(STEPS) // 14][:15] for run, curve in exhaustion().items()}
    (outcome,) = claims(table_of(few, "python_packages"), few)
    assert (outcome.name, outcome.verdict) == ("exhaustion", "untestable")
    assert (
        "was measured at most 15 times in a run; detecting a change takes 16 measurements or more: "
        "lower config.train.probe.every" in outcome.sentence
    )
    course = overfitting_courses()
    names = [f"run{i}" for i in range(8)]
    (outcome,) = claims(table_of(names, "python_packages"), {}, course[course["at"] % 100 == 0])
    assert (outcome.name, outcome.verdict) == ("overfitting", "untestable")
    assert "measured at most 5 times" in outcome.sentence
    assert "raise config.evaluation.finetune.points" in outcome.sentence
    blank = course.assign(**{"final_states.validation/local_two_nn": np.nan})
    (outcome,) = claims(table_of(names, "python_packages"), {}, blank)
    assert outcome.verdict == "untestable"


def test_memorising_runs_whose_metric_falls_further_are_no_evidence():
    curves = grokking(drop=0.3, stays=6)
    for i in range(8):
        curves[f"run{i}"] = curves["run0"]  # all at one time: shuffled runs have the same lead
    for i in range(8, 14):
        curves[f"run{i}"][METRIC] -= 3 * (STEPS > 2150)
    (outcome,) = claims(table_of(curves, "arithmetic"), curves)
    assert outcome.estimate.high < 0 and outcome.estimate.p_value < 0.05
    assert outcome.verdict == "unclear"


def test_unfinished_and_diverged_runs_are_left_out_of_every_claim():
    curves = grokking(stays=6)
    table = table_of(curves, "arithmetic")
    table.loc[8:, "final"] = False
    (outcome,) = claims(table, curves)
    assert "8 of 8 runs grok" in outcome.sentence and "only memorise" not in outcome.sentence
    courses = shift_courses()
    courses.loc[courses["run_id"] == "run7", "final_states.code/local_two_nn"] += 30 * courses["at"]
    table = table_of([f"run{i}" for i in range(8)], "python_packages")
    table.loc[7, "diverged_at"] = 120
    (outcome,) = claims(table, {}, courses)
    assert outcome.verdict == "agrees" and outcome.estimate.n == 7


def test_a_fine_tuning_effect_of_a_setting_is_no_lead():
    random = np.random.default_rng(1)
    at = np.arange(0, 401, 10.0)
    courses = []
    for i in range(16):
        turn, valley = 120 + 160 * (i // 8) + random.uniform(-60, 60, 2)
        values = {
            "target/loss": 0.3 + np.abs(at - turn - 20) / 400,
            "final_states.validation/local_two_nn": 6 + np.abs(at - valley) / 100,
        }
        courses.append(course(f"run{i}", 0, at, values, "finetune_task_spam_lr0.001", "task_spam"))
    table = table_of([f"run{i}" for i in range(16)], "python_packages")
    pooled, apart = (
        claims(frame, {}, pd.concat(courses, ignore_index=True))[0].signals["p_value"].iloc[0]
        for frame in (table, table.assign(configuration=["a"] * 8 + ["b"] * 8))
    )
    assert pooled < 0.01 < 0.1 < apart


def test_a_missing_value_drops_one_run_and_keeps_the_verdict():
    curves = grokking()
    late = curves["run0"]["texts.validation/accuracy"] > 0.99
    curves["run0"].loc[late, METRIC] = np.nan
    (outcome,) = claims(table_of(curves, "arithmetic"), curves)
    assert outcome.verdict == "agrees" and abs(outcome.estimate.estimate + 4) < 0.3


def test_a_dimension_that_falls_to_the_end_does_not_level_off():
    curves = exhaustion()
    for curve in curves.values():
        curve["final_states.validation/local_two_nn"] = 12 - curve["step"] / 1000
    (outcome,) = claims(table_of(curves, "python_packages"), curves)
    assert outcome.verdict == "disagrees" and "local dimension levels off in 0 of these" in outcome.sentence


def test_a_run_without_exhaustion_does_not_count_beside_another_experiment():
    curves, courses = exhaustion(stop=10**6), overfitting_courses()
    table = table_of(curves, "python_packages")
    assert [claim.name for claim in claims(table, curves, courses)] == ["overfitting"]
    assert [claim.name for claim in claims(table, exhaustion(), courses)] == ["exhaustion", "overfitting"]


def test_an_unmeasured_domain_makes_the_claim_untestable():
    courses = shift_courses().drop(columns=["final_states.code/local_two_nn", "final_states.code/local_two_nn_std"])
    (outcome,) = claims(table_of(["run0"], "python_packages"), {}, courses)
    assert outcome.verdict == "untestable" and "the fine-tuned domain" in outcome.sentence
    assert not math.isnan(outcome.estimate.n)
