"""Fine-tuning: several at once, diverged ones, several checkpoints, and stop requests."""

import dataclasses
import shutil

import numpy as np
import pytest
from etils import epath

from eval.evaluate import Choice, evaluate, jobs, read_results
from olmo_jax import console
from olmo_jax.execution import memory
from tests.eval.stored import metrics


@pytest.mark.slow
def test_rates_and_seeds_on_the_member_axis_match_separate_fine_tunings(cohort, trained, index, config):
    both = dataclasses.replace(config.finetune, targets=("code",), seeds=(0, 1), points=1)
    together = dataclasses.replace(config, finetune=both)
    assert evaluate(trained, cohort, index, together, lambda job: True, Choice(only=("finetune",)))
    for rate in both.learning_rates:
        shared = metrics(trained, "run1", f"finetune_code_lr{rate:g}")
        ends = []
        for seed in both.seeds:
            one = dataclasses.replace(both, learning_rates=(rate,), seeds=(seed,))
            single = dataclasses.replace(config, finetune=one)
            assert evaluate(trained, cohort, index, single, lambda job: True, Choice(only=("finetune",), runs="run1"))
            ends.append(metrics(trained, "run1", f"finetune_code_lr{rate:g}"))
        for name in ("code", "in_domain", "forgetting"):
            assert shared[name] == pytest.approx(np.mean([end[name] for end in ends]), abs=2e-4)
        spread = abs(ends[0]["target"] - ends[1]["target"]) / np.sqrt(2)
        assert 0 < shared["spread/target"] == pytest.approx(spread, abs=2e-4)


@pytest.mark.slow
def test_what_memory_does_not_hold_together_is_fine_tuned_one_after_another(
    cohort, trained, index, config, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    several = dataclasses.replace(config.finetune, targets=("code",), seeds=(2, 3), points=1)
    changed, only = dataclasses.replace(config, finetune=several), Choice(only=("finetune",), runs="run1")
    places = {"together": trained, "apart": epath.Path(shutil.copytree(trained, tmp_path / "apart"))}
    by_grouping = {}
    for how, workdir in places.items():
        assert evaluate(workdir, cohort, index, changed, lambda job: True, only)
        by_grouping[how] = {r: metrics(workdir, "run1", f"finetune_code_lr{r:g}") for r in several.learning_rates}
        monkeypatch.setattr(memory, "device_memory", lambda: 1.0)
    assert "steps of fine-tuning: 8/8" in capsys.readouterr().err
    for rate, together in by_grouping["together"].items():
        assert by_grouping["apart"][rate] == pytest.approx(together, abs=2e-4)


def test_a_diverged_fine_tuning_reports_no_numbers(cohort, trained, index, config):
    wild = dataclasses.replace(config.finetune, targets=("code",), learning_rates=(1e-3, 1e30))
    chosen = dataclasses.replace(config, finetune=wild)
    assert evaluate(trained, cohort, index, chosen, lambda job: True, Choice(only=("finetune",)))
    results = read_results(trained, "run0", 12, chosen)
    wildest = results["finetune_code_lr1e+30"]["metrics"]
    assert wildest.pop("diverged") == 1
    assert set(wildest.values()) == {None}
    assert results["finetune_code_lr0.001"]["metrics"]["code"] > 0
    assert results["finetune_code_best"]["metrics"]["learning_rate"] == 0.001


@pytest.mark.slow
def test_checkpoints_fine_tuned_together_match_separate_ones(cohort, trained, index, config):
    only = Choice(only=("finetune_code*",), steps="all", runs="run0")
    todo = jobs(trained, cohort, config, only)
    assert [job.models for job in todo] == [(("run0", 5), ("run0", 10), ("run0", 12))] * 3
    assert evaluate(trained, cohort, index, config, lambda job: True, only)
    late, early = (metrics(trained, "run0", "finetune_code_lr0.001", step)["in_domain"] for step in (12, 5))
    assert late < early


def test_a_stop_request_ends_fine_tuning_immediately(cohort, trained, index, config):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 3

    only = Choice(only=("finetune_code*",))
    assert not evaluate(trained, cohort, index, config, lambda job: True, only, stop)
    assert len(asked) == 3
    assert len(jobs(trained, cohort, config, only)) == 3
