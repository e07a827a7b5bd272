"""Runs that learn equations: the loss covers the answer, each member has its split, and resuming changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from olmo_jax import model
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import (
    ArithmeticConfig,
    ComputeConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    TargetConfig,
    TextsConfig,
    TrainConfig,
)
from olmo_jax.data.prepare import prepare
from olmo_jax.data.sources import arithmetic
from olmo_jax.logs.metrics import read_jsonl
from olmo_jax.train import train_cohort, write_run_files

BATCH, STEPS = 16, 40
FRACTIONS = (0.2, 0.9)


def config(fraction, seed=0):
    return TrainConfig(
        tokens=STEPS * BATCH * 4,
        data_seed=seed,
        model=ModelConfig(
            vocab_size=10, pad_vocab_to=1, d_model=32, n_layers=1, n_heads=2, d_ff=64, positions="learned"
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.0),
        data=DataConfig(
            corpus="arithmetic",
            sequence_length=4,
            batch_size=BATCH,
            arithmetic=ArithmeticConfig("add", 7, fraction),
        ),
        probe=ProbeConfig(
            every=10,
            unembedding=TargetConfig(),
            final_states=TargetConfig(),
            texts=TextsConfig(names=("train", "validation"), metrics=()),
        ),
        mesh=MeshConfig(member=1),
        compute=ComputeConfig(steps_per_call=1),
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return prepare(config(0.5).data, tmp_path_factory.mktemp("sums"), lambda line: None)


@pytest.fixture(scope="module")
def cohort(index):
    runs = tuple(Run(f"run{i}", config(fraction, seed=i)) for i, fraction in enumerate(FRACTIONS))
    return Cohort(shape_of(runs[0].config, index.fingerprint), runs)


def train(workdir, cohort, index, stop=lambda: False):
    write_run_files(workdir, cohort)
    return train_cohort(workdir, cohort, index, stop)


@pytest.fixture(scope="module")
def trained(cohort, index, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("trained"))
    assert train(workdir, cohort, index)
    return workdir


def rows_of(workdir, run):
    return read_jsonl(workdir / "runs" / run / "metrics.jsonl")


def test_shares_and_seeds_are_members_of_one_cohort(cohort, index):
    assert len({shape_of(run.config, index.fingerprint) for run in cohort.runs}) == 1


@pytest.mark.parametrize("place", range(len(FRACTIONS)))
def test_the_first_loss_covers_the_answers_of_the_members_batch(trained, cohort, place):
    run = cohort.runs[place].config
    params = model.init(run.model, jax.random.key(run.init_seed))
    of = run.data.arithmetic
    batch = arithmetic.equations(of)[arithmetic.Batches(of, BATCH, run.data_seed)[0]]
    logits = np.asarray(model.apply(run.model, params, batch[:, :4]).logits_BLV[:, -1], np.float64)
    nats = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(BATCH), batch[:, 4]]
    np.testing.assert_allclose(rows_of(trained, f"run{place}")[1]["loss"], nats.mean(), rtol=1e-5)


def test_training_accuracy_rises_and_is_logged(trained):
    few = [row for row in rows_of(trained, "run0") if "texts.train/accuracy" in row]
    assert [row["step"] for row in few] == [0, 10, 20, 30, 40]
    assert few[-1]["texts.train/accuracy"] >= 0.9 and few[0]["texts.train/accuracy"] < 0.5
    assert few[-1]["texts.validation/accuracy"] < 0.5  # nine of 49 sums aren't enough to generalise


def test_stop_and_resume_is_bit_equal(trained, cohort, index, tmp_path):
    calls = iter(range(100))
    workdir = epath.Path(tmp_path)
    assert not train(workdir, cohort, index, lambda: next(calls) >= 12)
    assert train(workdir, cohort, index)
    for run in cohort.runs:
        assert rows_of(workdir, run.id) == rows_of(trained, run.id)


@pytest.mark.slow
def test_an_early_ending_member_leaves_the_others_equations_unchanged(trained, cohort, index, tmp_path):
    """An ended run leaves the member axis, and its split of the equations has to leave with it."""
    short = Run("short", dataclasses.replace(config(0.5, seed=7), tokens=12 * BATCH * 4))
    joined = Cohort(cohort.shape, (cohort.runs[0], short, cohort.runs[1]))
    workdir = epath.Path(tmp_path)
    assert train(workdir, joined, index)
    for run in cohort.runs:
        for results, expected in zip(rows_of(workdir, run.id), rows_of(trained, run.id), strict=True):
            for name in ("loss", "texts.train/loss", "texts.validation/loss"):
                if name in expected:
                    np.testing.assert_allclose(results[name], expected[name], rtol=1e-3)
