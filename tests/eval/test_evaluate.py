"""Evaluations of a small trained cohort: what they find, and that what is done is not done again."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

from eval.config import EvalConfig, FinetuneConfig
from eval.evaluate import evaluate, read_results, tasks
from eval.finetune import finetune
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.train import train_cohort, write_run_files

CONFIG = EvalConfig(
    tokens_per_domain=300,
    quantize_bits=(8, 3),
    finetune=FinetuneConfig(domain="code", learning_rates=(1e-3, 1e-2), tokens=8 * 64, batch_size=4),
)


@pytest.fixture(scope="module")
def cohort(tiny, index, vary):
    runs = [Run(f"run{i}", vary(tiny, {"init_seed": i})) for i in range(2)]
    return Cohort(shape_of(tiny, index.fingerprint), tuple(runs))


@pytest.fixture(scope="module")
def evaluated(cohort, index, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("evaluated"))
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    assert evaluate(workdir, cohort, index, CONFIG, lambda task: True)
    return workdir


def metrics(workdir, run, evaluation, step=12):
    path = workdir / "runs" / run / "results" / f"{evaluation}@{step}.json"
    return json.loads(path.read_text())["metrics"]


def test_every_evaluation_of_every_checkpoint_has_its_file(evaluated):
    names = {step: set(read_results(evaluated, "run1", step, CONFIG)) for step in (5, 10, 12)}
    final = {"unigram", "round_to_nearest_8", "round_to_nearest_3", "finetune_code_lr0.001", "finetune_code_lr0.01"}
    assert names == {5: {"lm_loss"}, 10: {"lm_loss"}, 12: {"lm_loss"} | final}


def test_results_with_other_settings_are_not_read(evaluated):
    changed = dataclasses.replace(CONFIG, tokens_per_domain=200, quantize_bits=(8,))
    assert read_results(evaluated, "run1", 12, changed) == {}


def test_rounding_hurts_more_with_fewer_bits(evaluated):
    for run in ("run0", "run1"):
        exact = metrics(evaluated, run, "lm_loss")["macro"]
        eight = abs(metrics(evaluated, run, "round_to_nearest_8")["macro"] - exact)
        three = abs(metrics(evaluated, run, "round_to_nearest_3")["macro"] - exact)
        assert 0 < eight < three


def test_fine_tuning_lowers_the_loss_on_its_domain_and_reports_forgetting(evaluated):
    for run in ("run0", "run1"):
        before, after = metrics(evaluated, run, "lm_loss"), metrics(evaluated, run, "finetune_code_lr0.01")
        assert after["code"] < before["code"] - 0.05
        assert after["forgetting"] == pytest.approx(after["in_domain"] - before["in_domain"], abs=1e-6)


def test_two_learning_rates_as_members_are_two_fine_tunings_alone(cohort, evaluated, index):
    _, params_M = checkpoint.load_stack(evaluated, cohort.id, 12)
    together = finetune(CONFIG.finetune, cohort.shape, params_M, index)
    for rate, stack in zip(CONFIG.finetune.learning_rates, together, strict=True):
        one = dataclasses.replace(CONFIG.finetune, learning_rates=(rate,))
        assert (stack.diverged_at_M == -1).all()
        for m in range(2):
            alone = finetune(one, cohort.shape, jax.tree.map(lambda x, m=m: x[m : m + 1], params_M), index)[0]
            for a, b in zip(jax.tree.leaves(stack.params_M), jax.tree.leaves(alone.params_M), strict=True):
                np.testing.assert_allclose(a[m], b[0], rtol=1e-3, atol=1e-5)


def test_a_fine_tuning_that_diverges_has_no_numbers(cohort, evaluated, index, tmp_path):
    wild = dataclasses.replace(CONFIG.finetune, learning_rates=(1e-3, 1e30))
    config = dataclasses.replace(CONFIG, quantize_bits=(), finetune=wild)
    assert evaluate(evaluated, cohort, index, config, lambda task: True)
    results = read_results(evaluated, "run0", 12, config)
    assert set(results["finetune_code_lr1e+30"]["metrics"].values()) == {None}
    assert results["finetune_code_lr0.001"]["metrics"]["code"] > 0


def test_done_is_not_done_again_and_what_is_missing_is(cohort, evaluated, index):
    assert tasks(evaluated, cohort, CONFIG) == []
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results"
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    kept = (path / "round_to_nearest_8@12.json").read_bytes()
    (path / "round_to_nearest_8@12.json").unlink()
    assert [(t.evaluation, t.step, t.runs) for t in tasks(evaluated, cohort, CONFIG)] == [
        ("round_to_nearest_8", 12, ("run0",))
    ]
    assert evaluate(evaluated, cohort, index, CONFIG, lambda task: True)
    again = json.loads((path / "round_to_nearest_8@12.json").read_bytes())
    for name, value in json.loads(kept)["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, rel=1e-6)
    after = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert [p.name for p in before if before[p] != after[p]] == ["round_to_nearest_8@12.json"]


def test_other_settings_are_other_results(cohort, evaluated):
    changed = dataclasses.replace(CONFIG, tokens_per_domain=200)
    assert {t.evaluation for t in tasks(evaluated, cohort, changed)} > {"lm_loss", "unigram", "round_to_nearest_3"}
    rates = dataclasses.replace(CONFIG.finetune, learning_rates=(1e-3, 5e-3))
    more = dataclasses.replace(CONFIG, finetune=rates)
    assert [t.evaluation for t in tasks(evaluated, cohort, more)] == ["finetune_code_lr0.005"]


def test_an_evaluation_that_is_stopped_leaves_whole_files(cohort, index, evaluated, tmp_path):
    workdir = epath.Path(tmp_path)
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    seen = []

    def after_two(task):
        seen.append(task)
        return len(seen) < 2

    assert not evaluate(workdir, cohort, index, CONFIG, after_two)
    left = tasks(workdir, cohort, CONFIG)
    assert len(left) == 8 - 2
    assert all(json.loads(p.read_text())["metrics"] for p in (workdir / "runs" / "run0" / "results").iterdir())
