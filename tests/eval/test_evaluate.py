"""Evaluations of a small trained cohort: what they find, and that what is done is not done again."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath

from eval.check import check_evaluation
from eval.config import (
    DynamicsConfig,
    EvalConfig,
    FinetuneConfig,
    PerturbConfig,
    QuantizeConfig,
    TasksConfig,
)
from eval.evaluate import Choice, evaluate, jobs, read_results
from eval.material import Material, Stack
from olmo_jax import checkpoint
from olmo_jax.checkpoint import CheckpointError
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import ConfigError, from_config_dict, to_config_dict
from olmo_jax.train import train_cohort, write_run_files


@pytest.fixture(scope="module")
def quiz(tmp_path_factory):
    """A task of the user's own: which of two words follows; one of them never does."""
    path = tmp_path_factory.mktemp("quiz") / "quiz.jsonl"
    rows = [
        {"context": f"the model of {i}", "choices": [" the of and", " QQ%% QQ"], "gold": 0, "split": split}
        for split in ("train", "validation")
        for i in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def config(quiz):
    return EvalConfig(
        tokens_per_domain=300,
        batch_size=8,
        quantize=QuantizeConfig(bits=(8, 3), calibration_tokens=256),
        finetune=FinetuneConfig(
            targets=("code", f"task:{quiz}"),
            learning_rates=(1e-3, 1e-2),
            tokens=8 * 64,
            batch_size=4,
            points=2,
            item_tokens=16,
        ),
        perturb=PerturbConfig(relative=(0.5,), kept_ranks=(1.0, 0.25), draws=2),
        tasks=TasksConfig(names=(str(quiz),)),
        dynamics=DynamicsConfig(cka=True, cka_tokens=64),
    )


@pytest.fixture(scope="module")
def cohort(tiny, index, vary):
    runs = [Run(f"run{i}", vary(tiny, {"init_seed": i})) for i in range(2)]
    return Cohort(shape_of(tiny, index.fingerprint), tuple(runs))


@pytest.fixture(scope="module")
def evaluated(cohort, index, config, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("evaluated"))
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    assert evaluate(workdir, cohort, index, config, lambda job: True)
    return workdir


@pytest.fixture
def trained(cohort, evaluated, tmp_path):
    """The same without results."""
    for path in (evaluated / "cohorts", *(evaluated / "runs" / run.id / "config.json" for run in cohort.runs)):
        target = tmp_path / path.relative_to(evaluated)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return epath.Path(tmp_path)


def stored(workdir, run, evaluation, step=12):
    (path,) = (p for p in (workdir / "runs" / run / "results").iterdir() if p.name == f"{evaluation}@{step}.json")
    return json.loads(path.read_text())


def metrics(workdir, run, evaluation, step=12):
    return stored(workdir, run, evaluation, step)["metrics"]


def task_name(evaluated):
    (name,) = {p.name.split("@")[0] for p in (evaluated / "runs" / "run0" / "results").iterdir()
               if p.name.startswith("task_")}  # fmt: skip
    return name


def test_every_evaluation_of_every_checkpoint_has_its_file(evaluated, config):
    names = {step: set(read_results(evaluated, "run1", step, config)) for step in (5, 10, 12)}
    assert names[5] == names[10] == {"lm_loss", "cka"}
    final = {f"{method}_{bits}" for method in ("round_to_nearest", "gptq") for bits in (8, 3)}
    final |= {"unigram", "lm_loss", "cka", "saturation", "noise_relative_0.5", "truncation_1", "truncation_0.25"}
    final |= {"finetune_code_lr0.001", "finetune_code_lr0.01", "finetune_code_best"}
    assert names[12] > final
    assert len(names[12] - final) == 4  # the quiz, and its fine-tuning
    result = stored(evaluated, "run1", "gptq_3")
    assert result["settings"]["bits"] == 3
    assert result["fingerprint"]
    assert result["seconds"] > 0


def test_results_with_other_settings_are_not_read(evaluated, config):
    changed = dataclasses.replace(config, tokens_per_domain=200)
    assert set(read_results(evaluated, "run1", 12, changed)) == {task_name(evaluated)}


def test_losses_come_with_errors_and_by_document(evaluated):
    found = stored(evaluated, "run0", "lm_loss")
    numbers = found["metrics"]
    for domain in ("prose", "code", "other"):
        of = found["documents"][domain]
        assert sum(of["nats"]) / sum(of["tokens"]) == pytest.approx(numbers[domain], rel=1e-5)
        assert sum(of["tokens"]) == found["tokens"][domain]
        assert numbers[f"perplexity/{domain}"] == pytest.approx(np.exp(numbers[domain]))
        assert 0 < numbers[f"standard_error/{domain}"] < 0.5
        assert 0 < numbers[f"bits_per_byte/{domain}"] < 8
    assert numbers["in_domain"] == numbers["prose"]
    assert numbers["out_of_domain"] == numbers["other"]  # code is set apart for fine-tuning


@pytest.mark.parametrize("method", ["round_to_nearest", "gptq"])
def test_quantisation_hurts_more_with_fewer_bits(evaluated, method):
    for run in ("run0", "run1"):
        eight, three = (metrics(evaluated, run, f"{method}_{bits}") for bits in (8, 3))
        assert abs(eight["rise/macro"]) < abs(three["rise/macro"])
        assert 0 < eight["error/weight"] < three["error/weight"] < 1
        exact = metrics(evaluated, run, "lm_loss")["macro"]
        assert three["rise/macro"] == pytest.approx(three["macro"] - exact, abs=1e-6)
        assert three["rise_standard_error/macro"] > 0


def test_gptq_leaves_less_output_error_than_rounding_on_every_matrix(evaluated):
    for run in ("run0", "run1"):
        matrices = stored(evaluated, run, "gptq_3")["matrices"]
        assert len(matrices) == 7  # of the one block
        for of in matrices.values():
            assert 0 < of["output"] < of["output_rounded"]
            assert of["damping"] == pytest.approx(0.01)


def test_noise_hurts_and_a_whole_unembedding_does_not(evaluated):
    for run in ("run0", "run1"):
        assert metrics(evaluated, run, "noise_relative_0.5")["rise/macro"] > 0
        assert metrics(evaluated, run, "noise_relative_0.5")["draws_standard_error/macro"] > 0
        assert metrics(evaluated, run, "truncation_1")["rise/macro"] == pytest.approx(0, abs=1e-5)
        cut = metrics(evaluated, run, "truncation_0.25")
        assert cut["rise/macro"] > 0
        assert cut["kept_rank"] == 4


def test_tasks_have_accuracy_chance_and_error(evaluated):
    found = metrics(evaluated, "run0", task_name(evaluated))
    assert found["accuracy"] > 0.9
    assert (found["chance"], found["items"]) == (0.5, 20)
    assert found["accuracy_standard_error"] is not None


def test_states_are_like_those_of_the_last_checkpoint_in_the_end(evaluated):
    first, last = (metrics(evaluated, "run0", "cka", step) for step in (5, 12))
    assert set(last) == {"layer_0", "final_states"}
    assert last["final_states"] == pytest.approx(1, abs=1e-5)
    assert 0 < first["final_states"] < last["final_states"]


def test_saturation_is_found_from_the_stored_losses(evaluated):
    found = stored(evaluated, "run0", "saturation")
    assert found["checkpoints"] == [5, 10, 12]
    losses = {step: metrics(evaluated, "run0", "lm_loss", step)["in_domain"] for step in (5, 10, 12)}
    assert found["metrics"]["rise"] == pytest.approx(losses[12] - min(losses.values()), abs=1e-5)
    assert found["metrics"]["highest_rank"] > 1
    assert 0 < found["metrics"]["learning_rate_at_best"] <= 1


def test_fine_tuning_lowers_the_loss_on_its_domain_and_reports_forgetting(evaluated):
    for run in ("run0", "run1"):
        before, after = metrics(evaluated, run, "lm_loss"), metrics(evaluated, run, "finetune_code_lr0.01")
        assert after["code"] < before["code"] - 0.05
        assert after["target"] == after["code"]
        assert after["forgetting"] == pytest.approx(after["in_domain"] - before["in_domain"], abs=1e-6)
        assert after["geometry/unembedding/effective_rank"] > 1
        along = stored(evaluated, run, "finetune_code_lr0.01")["along"]
        assert [row["step"] for row in along] == [4, 8]
        assert along[-1]["code"] == after["code"]
        best = metrics(evaluated, run, "finetune_code_best")
        assert best["learning_rate"] == 0.01
        assert best["target"] == min(row["target"] for row in along)


def test_fine_tuning_on_items_makes_their_answers_likelier(evaluated):
    for run in ("run0", "run1"):
        name = f"finetune_{task_name(evaluated)}_lr0.01"
        found = stored(evaluated, run, name)
        assert found["metrics"]["target"] < found["before"]["target"] - 0.3
        assert found["metrics"]["target_accuracy"] == 1


@pytest.mark.slow
def test_rates_and_seeds_as_members_are_fine_tunings_alone(cohort, trained, index, config):
    both = dataclasses.replace(config.finetune, targets=("code",), seeds=(0, 1), points=1)
    together = dataclasses.replace(config, finetune=both)
    assert evaluate(trained, cohort, index, together, lambda job: True, Choice(only=("finetune",)))
    for rate in both.learning_rates:
        shared = metrics(trained, "run1", f"finetune_code_lr{rate:g}")
        ends = []
        for seed in both.seeds:
            one = dataclasses.replace(both, learning_rates=(rate,), seeds=(seed,))
            alone = dataclasses.replace(config, finetune=one)
            assert evaluate(trained, cohort, index, alone, lambda job: True, Choice(only=("finetune",), runs="run1"))
            ends.append(metrics(trained, "run1", f"finetune_code_lr{rate:g}"))
        for name in ("code", "in_domain", "forgetting"):
            assert shared[name] == pytest.approx(np.mean([end[name] for end in ends]), abs=2e-4)
        spread = abs(ends[0]["target"] - ends[1]["target"]) / np.sqrt(2)
        assert 0 < shared["spread/target"] == pytest.approx(spread, abs=2e-4)


def test_a_fine_tuning_that_diverges_has_no_numbers(cohort, trained, index, config):
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
def test_checkpoints_are_fine_tuned_together(cohort, trained, index, config):
    only = Choice(only=("finetune_code*",), steps="all", runs="run0")
    todo = jobs(trained, cohort, config, only)
    assert [job.models for job in todo] == [(("run0", 5), ("run0", 10), ("run0", 12))] * 3
    assert evaluate(trained, cohort, index, config, lambda job: True, only)
    late, early = (metrics(trained, "run0", "finetune_code_lr0.001", step)["in_domain"] for step in (12, 5))
    assert late < early


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
        (Choice(runs="walk*"), "--runs = 'walk.*': is no run; there are run0, run1"),
        (Choice(steps=(7,)), "--steps = 7: is the step of no checkpoint; there are 5, 10, 12"),
    ):
        with pytest.raises(ConfigError, match=said):
            choice.check(config, runs, steps)


def test_saturation_waits_for_the_losses_of_all_checkpoints_and_is_found_anew_with_more(cohort, trained, index, config):
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


def test_states_are_compared_anew_once_the_last_checkpoint_is_another(cohort, evaluated, config):
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results" / "cka@5.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | {"reference": 10}))
    (again,) = jobs(evaluated, cohort, config)
    assert (again.evaluation.name, again.models) == ("cka", (("run0", 5),))
    path.write_text(before)


def test_the_best_of_all_rates_brings_the_rates(cohort, trained, config):
    for only in ("finetune_code_best", "*_best"):
        names = [job.evaluation.name for job in jobs(trained, cohort, config, Choice(only=(only,)))]
        assert names[:2] == ["finetune_code_lr0.001", "finetune_code_lr0.01"]
        assert "finetune_code_best" in names


def test_a_stop_in_the_middle_of_fine_tuning_leaves_at_once(cohort, trained, index, config):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 3

    only = Choice(only=("finetune_code*",))
    assert not evaluate(trained, cohort, index, config, lambda job: True, only, stop)
    assert len(asked) == 3
    assert len(jobs(trained, cohort, config, only)) == 3


def test_done_is_not_done_again_and_what_is_missing_is(cohort, evaluated, index, config):
    assert jobs(evaluated, cohort, config) == []
    path = pathlib.Path(evaluated) / "runs" / "run0" / "results"
    before = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    kept = (path / "round_to_nearest_8@12.json").read_bytes()
    (path / "round_to_nearest_8@12.json").unlink()
    (job,) = jobs(evaluated, cohort, config)
    assert (job.evaluation.name, job.models) == ("round_to_nearest_8", (("run0", 12),))
    assert evaluate(evaluated, cohort, index, config, lambda job: True)
    again = json.loads((path / "round_to_nearest_8@12.json").read_bytes())
    for name, value in json.loads(kept)["metrics"].items():
        assert again["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6)
    after = {p: p.stat().st_mtime_ns for p in path.iterdir()}
    assert [p.name for p in before if before[p] != after[p]] == ["round_to_nearest_8@12.json"]


def test_other_settings_are_other_results(cohort, evaluated, config):
    changed = dataclasses.replace(config, tokens_per_domain=200)
    assert {job.evaluation.name for job in jobs(evaluated, cohort, changed)} > {"lm_loss", "unigram", "gptq_3"}
    rates = dataclasses.replace(config.finetune, targets=("code",), learning_rates=(1e-3, 5e-3))
    more = dataclasses.replace(config, finetune=rates)
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


def test_a_checkpoint_that_does_not_fit_its_configuration_is_named(cohort, evaluated, index, config, vary):
    wider = [Run(run.id, vary(run.config, {"model.d_ff": 64})) for run in cohort.runs]
    other = Cohort(shape_of(wider[0].config, index.fingerprint), tuple(wider))
    material = Material(evaluated, dataclasses.replace(other), index, config)
    moved = pathlib.Path(checkpoint.directory(evaluated, other.folder))
    moved.parent.mkdir(parents=True)
    moved.symlink_to(checkpoint.directory(evaluated, cohort.folder))
    with pytest.raises(CheckpointError, match=r"blocks_0/mlp/down is \(32, 16\), and .* makes it \(64, 16\)"):
        Stack(material, (("run0", 12),)).params_M  # noqa: B018
    moved.unlink()
    moved.parent.rmdir()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantize.bits": (9,)}, "quantize.bits = .*needs widths of 2 to 8"),
        ({"quantize.granularity": "group"}, "quantize.group_size = 0: contradicts"),
        ({"quantize.granularity": "group", "quantize.group_size": 7}, "group_size = 7: doesn't divide the 16 inputs"),
        ({"quantize.scopes": ("head",)}, "scopes = 'head': matches no matrix; there are blocks_0/attention/key"),
        ({"quantize.scopes": ("(",)}, "is none of blocks, .* no regular expression"),
        ({"finetune.targets": ("poetry",)}, "targets = 'poetry': isn't in the data, which have code, other, prose"),
        ({"finetune.targets": ("task:copa",)}, "targets = 'copa': has no train items; these tasks have: arc_challenge"),
        ({"tasks.names": ("trivia",)}, "tasks.names: task 'trivia' isn't known"),
        ({"perturb.absolute": (0.1,), "perturb.pattern": "w"}, "perturb.pattern = 'w': matches no matrix"),
        ({"perturb.kept_ranks": (0.0,)}, r"kept_ranks = \(0.0,\): needs shares"),
        ({"domains": ("verse",)}, "domains = 'verse': isn't in the data"),
        ({"dynamics.collapse": 1.5}, "collapse = 1.5: needs a share between 0 and 1"),
    ],
)
def test_what_can_not_be_done_is_refused_before_training(cohort, index, changes, said):
    values = to_config_dict(EvalConfig())
    values.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=said):
        check_evaluation(from_config_dict(EvalConfig, values, "config.evaluation"), cohort, index)


def test_few_calibration_tokens_are_told_with_their_number_and_damping_is_raised(
    cohort, index, trained, config, capsys
):
    quantize = QuantizeConfig(bits=(4,), methods=("gptq",), calibration_tokens=16, damping=0.0)
    few = dataclasses.replace(config, quantize=quantize)
    assert evaluate(trained, cohort, index, few, lambda job: True, Choice(only=("gptq",)))
    said = capsys.readouterr().err
    assert "calibration has 16 tokens, fewer than the 32 inputs of a matrix" in said
    assert "gptq_4: with damping = 0 the Hessians of" in said
    assert max(of["damping"] for of in stored(trained, "run0", "gptq_4")["matrices"].values()) > 0.009
    assert metrics(trained, "run0", "gptq_4")["macro"] > 0


def test_losses_of_a_stack_do_not_depend_on_who_is_beside(cohort, evaluated, index, config):
    material = Material(evaluated, cohort, index, config)
    both = Stack(material, (("run0", 12), ("run1", 12))).losses.by_domain["prose"]
    alone = Stack(material, (("run1", 12),)).losses.by_domain["prose"]
    assert both[1] == pytest.approx(alone[0], rel=1e-6)
    assert jax.tree.leaves(material.load([("run1", 5), ("run0", 12)]))[0].shape[0] == 2
