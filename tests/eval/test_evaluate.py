"""Which evaluations remain: finished ones are skipped, outdated ones are repeated, and a choice restricts them."""

import dataclasses
import json
import pathlib
import shutil

import pytest
from etils import epath

from eval.config import PerturbConfig, QuantizeConfig, TasksConfig
from eval.evaluate import Choice, evaluate, jobs
from olmo_jax.config import ConfigError
from tests.eval.stored import metrics


@pytest.fixture(scope="module")
def light(config):
    """A configuration whose evaluations are fast."""
    return dataclasses.replace(
        config,
        quantize=QuantizeConfig(bits=(8,), methods=("round_to_nearest",)),
        finetune=dataclasses.replace(config.finetune, targets=("code",), learning_rates=(1e-3,)),
        perturb=PerturbConfig(),
        tasks=TasksConfig(),
    )


@pytest.fixture(scope="module")
def evaluated(cohort, index, light, checkpoints, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated") / "work"
    shutil.copytree(checkpoints, workdir)
    assert evaluate(epath.Path(workdir), cohort, index, light, lambda job: True)
    return epath.Path(workdir)


def test_evaluation_can_be_restricted_to_kind_run_and_step(cohort, trained, config):
    todo = jobs(trained, cohort, config, Choice(("gptq", "truncation_1"), "run1", (10,)))
    assert [(job.evaluation.name, job.models) for job in todo] == [
        (name, (("run1", 10),)) for name in ("gptq_8", "gptq_3", "gptq_3_group7", "truncation_1")
    ]
    final = jobs(trained, cohort, config, Choice(("lm_loss",), steps="final"))
    assert [job.models for job in final] == [(("run0", 12), ("run1", 12))]
    # Saturation needs the losses of all checkpoints.
    assert len(jobs(trained, cohort, config, Choice(("saturation",)))) == 4
    runs, steps = ["run0", "run1"], [5, 10, 12]
    for choice, message in (
        (Choice(only=("gptqq",)), "--only = 'gptqq': isn't an evaluation of this configuration"),
        (Choice(runs="walk*"), "--runs = 'walk.*': matches no run; the runs are run0, run1"),
        (Choice(steps=(7,)), "--steps = 7: no checkpoint has this step; the steps are 5, 10, 12"),
    ):
        with pytest.raises(ConfigError, match=message):
            choice.check(config, runs, steps)


def test_saturation_waits_for_all_losses_and_is_recomputed_when_one_is_added(cohort, trained, index, config):
    def names(choice=Choice()):  # noqa: B008
        return {job.evaluation.name for job in jobs(trained, cohort, config, choice)}

    assert "saturation" not in names(Choice(steps="final"))
    assert "saturation" not in names(Choice(steps=(5,)))
    assert "saturation" in names()
    assert evaluate(trained, cohort, index, config, lambda job: True, Choice(only=("saturation",), steps="final"))
    assert metrics(trained, "run0", "saturation")["rise"] is not None
    assert "saturation" not in names()
    path = pathlib.Path(trained) / "runs" / "run0" / "results" / "saturation@12.json"
    # As before step 10 was imported.
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoints": [5, 12]}))
    (repeated,) = jobs(trained, cohort, config, Choice(only=("saturation",)))
    assert repeated.models == (("run0", 12),)


@pytest.mark.slow
def test_similarity_is_recomputed_when_the_last_checkpoint_changes(cohort, evaluated, light):
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results" / "cka@5.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"reference": 10}))
    (repeated,) = jobs(evaluated, cohort, light)
    assert (repeated.evaluation.name, repeated.models) == ("cka", (("run0", 5),))
    path.write_text(before)


def test_selecting_the_best_rate_evaluates_all_rates(cohort, trained, config):
    for only in ("finetune_code_best", "*_best"):
        names = [job.evaluation.name for job in jobs(trained, cohort, config, Choice(only=(only,)))]
        assert names[:2] == ["finetune_code_lr0.001", "finetune_code_lr0.01"]
        assert "finetune_code_best" in names


def test_only_missing_results_are_computed(cohort, evaluated, index, light):
    assert jobs(evaluated, cohort, light) == []
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results"
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    original = (path / "round_to_nearest_8@12.json").read_bytes()
    (path / "round_to_nearest_8@12.json").unlink()
    (path / ".0123456789abcdef.partial").write_text(
        '{"metrics": {'
    )  # left by a process that was killed while writing a result
    (job,) = jobs(evaluated, cohort, light)
    assert (job.evaluation.name, job.models) == ("round_to_nearest_8", (("run0", 12),))
    assert evaluate(evaluated, cohort, index, light, lambda job: True)
    repeated = json.loads((path / "round_to_nearest_8@12.json").read_bytes())
    for name, value in json.loads(original)["metrics"].items():
        assert repeated["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6)
    after = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert after.keys() == before.keys()
    assert [p.name for p in before if before[p] != after[p]] == ["round_to_nearest_8@12.json"]


def test_a_bound_on_documents_is_a_setting_only_where_it_is_one(light):
    assert set(light.text_settings) == {"tokens_per_domain", "domains", "set_apart"}
    bounded = dataclasses.replace(light, tokens_per_document=50).text_settings
    assert bounded == light.text_settings | {"tokens_per_document": 50}


def test_changed_settings_get_new_results(cohort, evaluated, light):
    changed = dataclasses.replace(light, tokens_per_domain=200)
    assert {job.evaluation.name for job in jobs(evaluated, cohort, changed)} > {
        "lm_loss",
        "unigram",
        "round_to_nearest_8",
    }
    rates = dataclasses.replace(light.finetune, targets=("code",), learning_rates=(1e-3, 5e-3))
    more = dataclasses.replace(light, finetune=rates)
    remaining = [job.evaluation.name for job in jobs(evaluated, cohort, more)]
    assert remaining == ["finetune_code_lr0.005", "finetune_code_best"]


def test_a_stopped_evaluation_leaves_complete_files(cohort, index, trained, config):
    everything = len(jobs(trained, cohort, config))
    started = []

    def after_two(job):
        started.append(job)
        return len(started) < 2

    assert not evaluate(trained, cohort, index, config, after_two)
    assert len(jobs(trained, cohort, config)) == everything - 2
    assert all(json.loads(p.read_text())["metrics"] for p in (trained / "runs" / "run0" / "results").iterdir())
