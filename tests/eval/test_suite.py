"""The results of every evaluation on a small trained cohort."""

import dataclasses
import math
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from eval.eval_data import EvalData, ModelBatch
from eval.evaluate import evaluate, read_results
from eval.evaluators import quantization
from eval.windows import first_windows
from olmo_jax import model
from olmo_jax.checkpoint import load_run
from tests.eval.stored import metrics, stored, task_name


@pytest.fixture(scope="module")
def evaluated(cohort, index, config, checkpoints, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("evaluated")) / "work"
    shutil.copytree(checkpoints, workdir)
    assert evaluate(workdir, cohort, index, config, lambda job: True)
    return workdir


def test_every_evaluation_of_every_checkpoint_has_its_file(evaluated, config):
    names = {step: set(read_results(evaluated, "run1", step, config)) for step in (5, 10, 12)}
    assert names[5] == names[10] == {"lm_loss", "cka", "movement"}
    final = {f"{method}_{bits}" for method in ("round_to_nearest", "gptq") for bits in ("8", "3", "3_group7")}
    final |= {"unigram", "lm_loss", "cka", "saturation", "noise_relative_0.5", "truncation_1", "truncation_0.25"}
    final |= {"finetune_code_lr0.001", "finetune_code_lr0.01", "finetune_code_best", "curvature", "llc"}
    final |= {"projections", "movement"}
    assert names[12] > final
    assert len(names[12] - final) == 4  # the quiz, and its fine-tuning
    result = stored(evaluated, "run1", "gptq_3")
    assert result["settings"]["bits"] == 3
    assert result["fingerprint"]
    assert result["seconds"] > 0


def test_results_with_other_settings_are_not_read(evaluated, config):
    changed = dataclasses.replace(config, tokens_per_domain=200)
    assert set(read_results(evaluated, "run1", 12, changed)) == {task_name(evaluated), "movement"}


def test_losses_come_with_errors_and_by_document(evaluated):
    stored_result = stored(evaluated, "run0", "lm_loss")
    numbers = stored_result["metrics"]
    for domain in ("prose", "code", "other"):
        of = stored_result["documents"][domain]
        assert sum(of["nats"]) / sum(of["tokens"]) == pytest.approx(numbers[domain], rel=1e-5)
        assert sum(of["tokens"]) == stored_result["tokens"][domain]
        assert numbers[f"perplexity/{domain}"] == pytest.approx(np.exp(numbers[domain]))
        assert 0 < numbers[f"standard_error/{domain}"] < 0.5
        assert 0 < numbers[f"bits_per_byte/{domain}"] < 8
    assert numbers["in_domain"] == numbers["prose"]
    assert numbers["out_of_domain"] == numbers["other"]  # code is held out for fine-tuning


@pytest.mark.parametrize("method", ["round_to_nearest", "gptq"])
def test_loss_increases_with_fewer_bits(evaluated, method):
    for run in ("run0", "run1"):
        eight, three = (metrics(evaluated, run, f"{method}_{bits}") for bits in (8, 3))
        assert abs(eight["rise/macro"]) < abs(three["rise/macro"])
        assert 0 < eight["error/weight"] < three["error/weight"] < 1
        exact = metrics(evaluated, run, "lm_loss")["macro"]
        assert three["rise/macro"] == pytest.approx(three["macro"] - exact, abs=1e-6)
        assert three["rise_standard_error/macro"] > 0


@pytest.mark.parametrize("method", ["round_to_nearest", "gptq"])
def test_groups_that_do_not_divide_the_inputs_are_adapted_and_say_so(evaluated, method):
    grouped, columns = (stored(evaluated, "run0", f"{method}_3{suffix}") for suffix in ("_group7", ""))
    assert grouped["metrics"]["smallest_group"] == 4  # of 16 inputs and 64
    assert "smallest_group" not in columns["metrics"]
    for path, of in grouped["matrices"].items():
        assert of["weight"] < columns["matrices"][path]["weight"]
    before = metrics(evaluated, "run0", "lm_loss")["in_domain"]
    share = grouped["metrics"]["in_domain"] / before - 1
    assert grouped["metrics"]["relative_rise/in_domain"] == pytest.approx(share, abs=1e-6)


def test_gptq_in_groups_is_calibrated_on_documents(cohort, index, config, checkpoints):
    data = EvalData(checkpoints, cohort, index, config)
    tokens_NL, is_text_NL = quantization._calibration_documents(data, 256, 10)
    assert tokens_NL.shape[1] == 10
    assert 0.5 * 256 < is_text_NL.sum() <= 256
    assert len(tokens_NL) % config.batch_size == 0
    documents = index.documents("train", "prose")
    for row, (document, is_text) in enumerate(zip(documents, is_text_NL, strict=False)):
        np.testing.assert_array_equal(tokens_NL[row][is_text], document[:10][: is_text.sum()])


def test_gptq_leaves_less_output_error_than_rounding_on_every_matrix(evaluated):
    for run in ("run0", "run1"):
        matrices = stored(evaluated, run, "gptq_3")["matrices"]
        assert len(matrices) == 7  # of the one block
        for of in matrices.values():
            assert 0 < of["output"] < of["output_rounded"]
            assert of["damping"] == pytest.approx(0.01)


def test_noise_raises_the_loss_and_a_full_rank_unembedding_keeps_it(evaluated):
    for run in ("run0", "run1"):
        assert metrics(evaluated, run, "noise_relative_0.5")["rise/macro"] > 0
        assert metrics(evaluated, run, "noise_relative_0.5")["draws_standard_error/macro"] > 0
        assert metrics(evaluated, run, "truncation_1")["rise/macro"] == pytest.approx(0, abs=1e-5)
        cut = metrics(evaluated, run, "truncation_0.25")
        assert cut["rise/macro"] > 0
        assert cut["kept_rank"] == 4


def test_tasks_have_accuracy_chance_and_error(evaluated):
    stored_result = metrics(evaluated, "run0", task_name(evaluated))
    assert stored_result["accuracy"] > 0.9
    assert (stored_result["chance"], stored_result["items"]) == (0.5, 20)
    assert stored_result["accuracy_standard_error"] is not None


def test_similarity_to_the_last_checkpoint_ends_at_one(evaluated):
    first, last = (metrics(evaluated, "run0", "cka", step) for step in (5, 12))
    assert set(last) == {"layer_0", "final_states"}
    assert last["final_states"] == pytest.approx(1, abs=1e-5)
    assert 0 < first["final_states"] < last["final_states"]


def test_saturation_is_computed_from_the_stored_losses(evaluated):
    stored_result = stored(evaluated, "run0", "saturation")
    assert stored_result["checkpoints"] == [5, 10, 12]
    losses = {step: metrics(evaluated, "run0", "lm_loss", step)["in_domain"] for step in (5, 10, 12)}
    assert stored_result["metrics"]["rise"] == pytest.approx(losses[12] - min(losses.values()), abs=1e-5)
    assert stored_result["metrics"]["highest_rank"] > 1
    assert 0 < stored_result["metrics"]["learning_rate_at_best"] <= 1


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
        stored_result = stored(evaluated, run, name)
        assert stored_result["metrics"]["target"] < stored_result["before"]["target"] - 0.3
        assert stored_result["metrics"]["target_accuracy"] == 1


def test_losses_do_not_depend_on_the_other_models_of_a_stack(cohort, evaluated, index, config):
    eval_data = EvalData(evaluated, cohort, index, config)
    both = ModelBatch(eval_data, (("run0", 12), ("run1", 12))).losses.by_domain["prose"]
    separate = ModelBatch(eval_data, (("run1", 12),)).losses.by_domain["prose"]
    assert both[1] == pytest.approx(separate[0], rel=1e-6)
    assert jax.tree.leaves(eval_data.load([("run1", 5), ("run0", 12)]))[0].shape[0] == 2


def test_projections_are_aligned_as_their_inputs_say(evaluated, index, cohort, config):
    found = metrics(evaluated, "run1", "projections")
    windows = first_windows(EvalData(evaluated, cohort, index, config), 3)
    config, params = load_run(evaluated, "run1")
    kept = np.asarray(windows.weights_NL) > 0
    final = np.asarray(model.hidden(config, params, windows.inputs_NL).final_BLD)[kept]
    w_VD = np.asarray(params["unembedding"])[: config.vocab_size]
    rms = [np.sqrt(np.mean(np.square(x, dtype=np.float64))) for x in (final @ w_VD.T, final, w_VD)]
    ratio = np.log(rms[0] / (rms[1] * rms[2])) / np.log(config.d_model)
    assert found["log_alignment_ratio/unembedding"] == pytest.approx(ratio, abs=1e-4)
    dimension = config.d_model ** (2 * (1 - ratio))
    assert found["effective_dimension/unembedding"] == pytest.approx(dimension, rel=1e-3)
    ratios = [value for name, value in found.items() if name.startswith("log_alignment_ratio/")]
    assert len(ratios) == 7 * config.n_layers + 1
    assert found["log_alignment_ratio"] == pytest.approx(np.mean(ratios))
    # What the second half of a block reads is the activation between its matrices.
    assert found["effective_dimension/blocks_0/mlp/down"] <= config.d_ff * 2
    assert metrics(evaluated, "run0", "projections") != found


def test_movement_is_since_the_checkpoint_before(evaluated):
    found = {step: stored(evaluated, "run1", "movement", step)["metrics"] for step in (5, 10, 12)}
    assert set(found[5].values()) == {None}
    for name, of in (
        ("unembedding", lambda params: params["unembedding"]),
        ("blocks_0/mlp/up", lambda params: params["blocks_0"]["mlp"]["up"]),
    ):
        a, b = (np.asarray(of(load_run(evaluated, "run1", step)[1]), np.float64).ravel() for step in (10, 12))
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        assert found[12][f"cosine/{name}"] == pytest.approx(cosine, rel=1e-6)
        growth = np.log(np.linalg.norm(b) / np.linalg.norm(a)) / np.log(12 / 10)
        assert found[12][f"norm_growth/{name}"] == pytest.approx(growth, rel=1e-5)


def test_curvature_and_learning_coefficient_are_measured_at_the_last_checkpoint(evaluated):
    first = metrics(evaluated, "run0", "curvature")
    assert {*first} == {
        "trace", "trace_standard_error", "top_eigenvalue", "critical_sharpness", "critical_sharpness/code",
    }  # fmt: skip
    assert all(math.isfinite(value) for value in first.values())
    assert first["trace"] != metrics(evaluated, "run1", "curvature")["trace"]
    found = metrics(evaluated, "run0", "llc")
    assert found["epsilon"] in (pytest.approx(1e-6), pytest.approx(1e-5))
    assert found["diverged"] == found["left"] == found["coarse"] == 0
    assert math.isfinite(found["coefficient"])
