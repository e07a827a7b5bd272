"""Local dimension of checkpoints by points and neighbours, and of texts before, during and after fine-tuning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from eval.check import check_evaluation
from eval.config import DimensionConfig, EvalConfig, FinetuneConfig, QuantizeConfig
from eval.eval_data import EvalData
from eval.evaluate import Choice, evaluate, jobs
from eval.evaluators import finetuning
from geometry.dimension import local_two_nn
from olmo_jax.checkpoint import load_run
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import ArithmeticConfig, ConfigError, DataConfig, ProbeConfig, TargetConfig, TextsConfig
from olmo_jax.data.prepare import prepare
from olmo_jax.logs.metrics import read_jsonl
from olmo_jax.probes.texts import evaluation_sets, read_states
from olmo_jax.train import train_cohort, write_run_files
from tests.eval.stored import metrics, stored
from tests.plain import plain

TEXTS = TextsConfig(
    names=("validation", "code"), metrics=("local_two_nn", "local_two_nn_std"), documents=12, points=60, neighbors=8
)
PLAIN = EvalConfig(
    tokens_per_domain=300,
    batch_size=8,
    quantize=QuantizeConfig(bits=()),
    dimension=DimensionConfig((40, 60), (8, 16)),
)


@pytest.fixture(scope="module")
def cohort(tiny, index, vary):
    probe = ProbeConfig(every=4, final_states=TargetConfig(), texts=TEXTS)
    runs = [Run(f"run{i}", vary(tiny, {"init_seed": i, "probe": probe})) for i in range(2)]
    return Cohort(shape_of(runs[0].config, index.fingerprint), tuple(runs))


@pytest.fixture(scope="module")
def workdir(cohort, index, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("trained"))
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    assert evaluate(workdir, cohort, index, PLAIN, lambda job: True, Choice(only=("local_dimension",)))
    return workdir


@pytest.mark.parametrize("points, neighbors", plain([(40, 8), (60, 16)], (40, 8), unpack=True))
def test_local_dimension_uses_the_requested_points_and_neighbours(workdir, cohort, index, points, neighbors):
    measured = metrics(workdir, "run1", "local_dimension")
    config, params = load_run(workdir, "run1")
    sets = evaluation_sets([run.config for run in cohort.runs], index)
    for evaluation_set in sets:
        states = read_states(TEXTS, config, evaluation_set, params, evaluation_set.points_MKT[0])["final_states"][0]
        _, first = np.unique(np.asarray(states), axis=0, return_index=True)
        x_ND = jnp.asarray(np.asarray(states)[np.sort(first)][:points])
        expected = jnp.nanmean(local_two_nn(x_ND, neighbors, convention="skdim034"))
        name = f"final_states.{evaluation_set.names[0]}/n{points}_l{neighbors}"
        assert measured[f"{name}/local_two_nn"] == pytest.approx(float(expected), rel=1e-3)
        assert measured[f"{name}/points"] == points


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": (10**6,)}, r"dimension.points = \(1000000,\): config.probe.texts.points = 1000000: the text"),
        ({"points": (16,), "neighbors": (16,)}, "among 16 points, none has 16 neighbours"),
        ({"points": (40,), "neighbors": (2,)}, "needs numbers of at least 3"),
    ],
)
def test_more_points_than_available_states_are_refused_before_training(cohort, index, changes, message):
    requested = DimensionConfig(**({"neighbors": (8,)} | changes))
    with pytest.raises(ConfigError, match=message):
        requested.check("config.evaluation.dimension")
        check_evaluation(dataclasses.replace(PLAIN, dimension=requested), cohort, index)


def test_an_evaluation_without_texts_is_refused(cohort, index, tiny):
    plain = Cohort(shape_of(tiny, index.fingerprint), (Run("plain", tiny),))
    with pytest.raises(ConfigError, match="needs texts; name some in config.train.probe.texts"):
        check_evaluation(PLAIN, plain, index)


@pytest.mark.slow
def test_fine_tuning_measures_each_text_before_and_during_training(workdir, cohort, index):
    """The "validation" text of a fine-tuning is that of its target domain."""
    tuning = FinetuneConfig(targets=("code",), learning_rates=(1e-2,), tokens=8 * 64, batch_size=4, points=2)
    config = dataclasses.replace(PLAIN, finetune=tuning)
    assert evaluate(workdir, cohort, index, config, lambda job: True, Choice(only=("finetune_code_lr*",)))
    result = stored(workdir, "run0", "finetune_code_lr0.01")
    rows = [result["before"], *result["along"]]
    for row in rows:
        of_target, by_name = (row[f"geometry/final_states.{text}/local_two_nn"] for text in TEXTS.names)
        assert of_target == by_name > 0
    assert rows[0]["geometry/texts.code/loss"] > rows[-1]["geometry/texts.code/loss"]
    assert rows[0]["geometry/final_states.code/local_two_nn"] != rows[-1]["geometry/final_states.code/local_two_nn"]


def test_task_loss_covers_answers_only_and_all_members_share_the_items(cohort, index, quiz):
    config = FinetuneConfig(targets=(f"task:{quiz}",), item_tokens=16, train_items=6)
    texts = dataclasses.replace(TEXTS, names=("train", "code"), documents=20, points=20)
    shape = cohort.shape.with_config(probe=dataclasses.replace(cohort.shape.config.probe, texts=texts))
    eval_data = EvalData(epath.Path(), dataclasses.replace(cohort, shape=shape), index, PLAIN)
    train, code = finetuning.item_sets(eval_data, str(quiz), config)
    assert (train.names, code.names) == (("train",), ("code",))
    assert len(train.inputs_NL) == 6  # of 20
    answer = eval_data.tokenizer.encode([" the of and"])[0].tolist()
    for targets_L, scored_L in zip(train.targets_NL, train.scored_NL, strict=True):
        assert targets_L[scored_L].tolist() == answer
    batches = finetuning.item_batches(eval_data, str(quiz), dataclasses.replace(config, batch_size=4))
    items_trained_on = {tuple(row) for step in range(9) for row in batches(step)[0][0].tolist()}
    assert len(items_trained_on) == 6


@pytest.mark.slow
def test_equations_have_a_local_dimension_and_no_text_evaluations(tiny, vary, tmp_path):
    texts = TextsConfig(names=("train", "validation"), metrics=("local_two_nn",), points=30, neighbors=8)
    data = DataConfig(name="sums", corpus="arithmetic", sequence_length=4, arithmetic=ArithmeticConfig("add", 7))
    changes = {
        "data": dataclasses.replace(data, batch_size=4),
        "tokens": 6 * 16,
        "probe": ProbeConfig(every=3, final_states=TargetConfig(), texts=texts),
    }
    runs = [
        Run(f"run{i}", vary(tiny, changes | {"data_seed": i, "data.arithmetic.train_fraction": share}))
        for i, share in enumerate((0.4, 0.6))
    ]
    index = prepare(data, tmp_path / "data", lambda line: None)
    cohort = Cohort(shape_of(runs[0].config, index.fingerprint), tuple(runs))
    workdir = epath.Path(tmp_path / "work")
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    config = dataclasses.replace(PLAIN, dimension=DimensionConfig((30,), (8,)))
    check_evaluation(config, cohort, index)
    assert {job.evaluation.kind for job in jobs(workdir, cohort, config)} == {"local_dimension"}
    assert evaluate(workdir, cohort, index, config, lambda job: True)
    for run in runs:
        logged = read_jsonl(workdir / "runs" / run.id / "metrics.jsonl")[-1]["final_states.train/local_two_nn"]
        measured = metrics(workdir, run.id, "local_dimension", 6)["final_states.train/n30_l8/local_two_nn"]
        assert measured == pytest.approx(logged, rel=1e-3)
    with pytest.raises(ConfigError, match="finetune.targets = .*: needs text, and the data have only equations"):
        check_evaluation(dataclasses.replace(config, finetune=FinetuneConfig(targets=("code",))), cohort, index)


def test_models_of_a_stack_are_measured_independently(workdir):
    first, second = (metrics(workdir, run, "local_dimension") for run in ("run0", "run1"))
    assert first.keys() == second.keys() and first != second
    assert jax.tree.all(jax.tree.map(np.isfinite, first))
