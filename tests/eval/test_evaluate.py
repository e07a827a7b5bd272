"""Which evaluations are left to do: what is done is not done again, what doesn't hold any more is, parts by choice."""

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
    """A configuration that is soon done."""
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


def test_parts_of_it_are_done_by_kind_run_and_step(cohort, trained, config):
    todo = jobs(trained, cohort, config, Choice(("gptq", "truncation_1"), "run1", (10,)))
    assert [(job.evaluation.name, job.models) for job in todo] == [
        (name, (("run1", 10),)) for name in ("gptq_8", "gptq_3", "truncation_1")
    ]
    final = jobs(trained, cohort, config, Choice(("lm_loss",), steps="final"))
    assert [job.models for job in final] == [(("run0", 12), ("run1", 12))]
    # The end is found from the losses of all checkpoints.
    assert len(jobs(trained, cohort, config, Choice(("saturation",)))) == 4
    runs, steps = ["run0", "run1"], [5, 10, 12]
    for choice, said in (
        (Choice(only=("gptqq",)), "--only = 'gptqq': is no evaluation"),
        (Choice(runs="walk*"), "--runs = 'walk.*': matches no run; the runs are run0, run1"),
        (Choice(steps=(7,)), "--steps = 7: is the step of no checkpoint; the steps are 5, 10, 12"),
    ):
        with pytest.raises(ConfigError, match=said):
            choice.check(config, runs, steps)


def test_saturation_waits_for_the_losses_of_all_checkpoints_and_is_recomputed_with_more(cohort, trained, index, config):
    def names(choice=Choice()):  # noqa: B008
        return {job.evaluation.name for job in jobs(trained, cohort, config, choice)}

    assert "saturation" not in names(Choice(steps="final"))
    assert "saturation" not in names(Choice(steps=(5,)))
    assert "saturation" in names()
    assert evaluate(trained, cohort, index, config, lambda job: True, Choice(only=("saturation",), steps="final"))
    assert metrics(trained, "run0", "saturation")["rise"] is not None
    assert "saturation" not in names()
    path = pathlib.Path(trained) / "runs" / "run0" / "results" / "saturation@12.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoints": [5, 12]}))  # as before an import of 10
    (again,) = jobs(trained, cohort, config, Choice(only=("saturation",)))
    assert again.models == (("run0", 12),)


def test_states_are_compared_again_once_the_last_checkpoint_changes(cohort, evaluated, light):
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results" / "cka@5.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"reference": 10}))
    (again,) = jobs(evaluated, cohort, light)
    assert (again.evaluation.name, again.models) == ("cka", (("run0", 5),))
    path.write_text(before)


def test_the_best_of_all_rates_brings_the_rates(cohort, trained, config):
    for only in ("finetune_code_best", "*_best"):
        names = [job.evaluation.name for job in jobs(trained, cohort, config, Choice(only=(only,)))]
        assert names[:2] == ["finetune_code_lr0.001", "finetune_code_lr0.01"]
        assert "finetune_code_best" in names


def test_done_is_not_done_again_and_what_is_missing_is(cohort, evaluated, index, light):
    assert jobs(evaluated, cohort, light) == []
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results"
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    kept = (path / "round_to_nearest_8@12.json").read_bytes()
    (path / "round_to_nearest_8@12.json").unlink()
    (path / ".0123456789abcdef.partial").write_text('{"metrics": {')  # of a process killed while it wrote a result
    (job,) = jobs(evaluated, cohort, light)
    assert (job.evaluation.name, job.models) == ("round_to_nearest_8", (("run0", 12),))
    assert evaluate(evaluated, cohort, index, light, lambda job: True)
    again = json.loads((path / "round_to_nearest_8@12.json").read_bytes())
    for name, value in json.loads(kept)["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6)
    after = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert after.keys() == before.keys()
    assert [p.name for p in before if before[p] != after[p]] == ["round_to_nearest_8@12.json"]


def test_other_settings_are_other_results(cohort, evaluated, light):
    changed = dataclasses.replace(light, tokens_per_domain=200)
    assert {job.evaluation.name for job in jobs(evaluated, cohort, changed)} > {
        "lm_loss",
        "unigram",
        "round_to_nearest_8",
    }
    rates = dataclasses.replace(light.finetune, targets=("code",), learning_rates=(1e-3, 5e-3))
    more = dataclasses.replace(light, finetune=rates)
    left = [job.evaluation.name for job in jobs(evaluated, cohort, more)]
    assert left == ["finetune_code_lr0.005", "finetune_code_best"]


def test_an_evaluation_that_is_stopped_leaves_whole_files(cohort, index, trained, config):
    everything = len(jobs(trained, cohort, config))
    seen = []

    def after_two(job):
        seen.append(job)
        return len(seen) < 2

    assert not evaluate(trained, cohort, index, config, after_two)
    assert len(jobs(trained, cohort, config)) == everything - 2
    assert all(json.loads(p.read_text())["metrics"] for p in (trained / "runs" / "run0" / "results").iterdir())
