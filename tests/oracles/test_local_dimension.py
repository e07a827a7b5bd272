"""Local dimension in the loop against scikit-dimension on the states of a run's checkpoint, in paper B's order."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from geometry.dimension import local_two_nn
from olmo_jax.checkpoint import load_run
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import (
    ArithmeticConfig,
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    ProbeConfig,
    TargetConfig,
    TextsConfig,
    TrainConfig,
)
from olmo_jax.config.presets import GROKKING
from olmo_jax.data.prepare import prepare
from olmo_jax.logs.metrics import read_jsonl
from olmo_jax.probes.texts import evaluation_sets, read_states
from olmo_jax.train import train_cohort, write_run_files

pytestmark = pytest.mark.oracle

TEXTS = TextsConfig(
    names=("train", "validation"), states=("layer_0", "final_states"), drawn=1200, points=500, neighbors=64
)
STEPS = 200


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of sums modulo 31, its working directory and its data."""
    workdir = epath.Path(tmp_path_factory.mktemp("sums"))
    run = TrainConfig(
        tokens=STEPS * 64 * 4,
        model=dataclasses.replace(GROKKING, vocab_size=34, n_layers=1, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        data=DataConfig(
            corpus="arithmetic", sequence_length=4, batch_size=64, arithmetic=ArithmeticConfig("add", 31, 0.5)
        ),
        probe=ProbeConfig(every=STEPS, final_states=TargetConfig(), texts=TEXTS),
        checkpoint=CheckpointConfig(every=STEPS),
        mesh=MeshConfig(member=1),
    )
    index = prepare(run.data, tmp_path_factory.mktemp("data"), lambda line: None)
    cohort = Cohort(shape_of(run, index.fingerprint), (Run("sums", run),))
    write_run_files(workdir, cohort)
    assert train_cohort(workdir, cohort, index, lambda: False)
    return workdir, run, index


@pytest.mark.parametrize("states", TEXTS.states)
@pytest.mark.parametrize("text", TEXTS.names)
def test_logged_local_dimension_matches_scikit_dimension_on_checkpoint_states(trained, states, text):
    import skdim

    workdir, run, index = trained
    config, params = load_run(workdir, "sums")
    (evaluation_set,) = evaluation_sets([run], index)
    drawn = read_states(TEXTS, config, evaluation_set, params, evaluation_set.points_MKT[0])[states]
    drawn_TD = np.asarray(drawn[TEXTS.names.index(text)])
    # Duplicates are dropped from what was drawn, then the first N kept.
    _, first = np.unique(drawn_TD, axis=0, return_index=True)
    x_ND = drawn_TD[np.sort(first)][: TEXTS.points]
    theirs_N = skdim.id.TwoNN().fit_pw(x_ND.astype(np.float64), n_neighbors=TEXTS.neighbors).dimension_pw_
    ours_N = np.asarray(local_two_nn(jnp.asarray(x_ND), TEXTS.neighbors, convention="skdim034"))
    np.testing.assert_allclose(ours_N, theirs_N, rtol=1e-3)
    (logged,) = [row for row in read_jsonl(workdir / "runs/sums/metrics.jsonl") if row["step"] == STEPS]
    np.testing.assert_allclose(logged[f"{states}.{text}/local_two_nn"], np.mean(theirs_N), rtol=1e-3)
    np.testing.assert_allclose(logged[f"{states}.{text}/local_two_nn_std"], np.std(theirs_N), rtol=1e-3)
    assert logged[f"{states}.{text}/points"] == len(x_ND)
    assert logged[f"{states}.{text}/duplicates"] == len(drawn_TD) - len(first)
