"""The experiments on local dimension: their resolved plans, and each experiment run from its data to a verdict."""

import contextlib
import json
import shutil

import pytest

from olmo_jax.config import ConfigError
from olmo_jax.probes.texts import evaluation_sets
from sweeps import cli
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import read_sweep, resolve
from sweeps.report import export
from sweeps.studies.paper_b.claim import CLAIMS

GROKKING, TEXT = "sweeps/studies/paper_b/grokking.py", "sweeps/studies/paper_b/local_dimension.py"


def plan_of(path):
    return resolve(read_sweep(load_config([f"--config={path}"])), fingerprint=lambda data: "x")


def test_the_grokking_experiment_is_one_cohort_of_45_runs_as_published():
    (cohort,) = plan_of(f"{GROKKING}:paper").cohorts
    assert len(cohort.runs) == 45
    points = {(run.config.data.arithmetic.train_fraction, run.config.data_seed) for run in cohort.runs}
    assert points == {(round(0.05 * k, 2), seed) for k in range(2, 11) for seed in range(5)}
    run = cohort.runs[0].config
    model, adamw, texts = run.model, run.optimizer, run.probe.texts
    assert (run.data.arithmetic.modulus, run.total_steps, run.warmup_steps, run.data.batch_size) == (
        197,
        400_000,
        10,
        512,
    )
    assert (model.n_layers, model.d_model, model.n_heads, model.d_ff, model.dropout) == (2, 128, 4, 512, 0.1)
    assert (model.mlp, model.positions, model.norm_at) == ("gelu", "learned", "before")
    assert (adamw.learning_rate, adamw.beta1, adamw.beta2, adamw.weight_decay) == (1e-3, 0.9, 0.98, 0.01)
    assert (adamw.schedule, adamw.final_fraction) == ("linear", 0.0)
    assert (run.probe.every, texts.points, texts.neighbors, texts.states) == (500, 3000, 64, ("layer_1",))


@pytest.mark.parametrize("operation, words", [("divide", 62), ("subtract", 62), ("permute", 27)])
def test_arithmetic_operations_are_selectable(operation, words):
    (cohort,) = plan_of(f"{GROKKING}:cpu,operation={operation}").cohorts
    assert cohort.shape.model.vocab_size == words
    assert {run.config.data.arithmetic.operation for run in cohort.runs} == {operation}


@pytest.mark.parametrize("scale", ["gpu", "cpu", "smoke"])
@pytest.mark.parametrize("operation", ["add", "divide", "permute"])
def test_every_scale_has_enough_states_to_measure(scale, operation):
    (cohort,) = plan_of(f"{GROKKING}:{scale},operation={operation}").cohorts
    (evaluation_set,) = evaluation_sets([run.config for run in cohort.runs], None)
    assert evaluation_set.points_MKT.shape[:2] == (len(cohort.runs), 2)


@pytest.mark.parametrize("experiment", ["shift", "exhaustion", "overfitting"])
def test_other_experiments_are_cohorts_of_six_seeds(experiment):
    (cohort,) = plan_of(f"{TEXT}:{experiment}").cohorts
    assert [(run.config.init_seed, run.config.data_seed) for run in cohort.runs] == [(i, i) for i in range(6)]


@pytest.mark.parametrize(
    "argument, message",
    [
        (f"{GROKKING}:laptop", "grokking.py has no scale 'laptop'; choose paper, gpu, cpu, smoke"),
        (f"{GROKKING}:cpu,operation=multiply", "no option 'operation=multiply'"),
        (f"{TEXT}:dropout", "local_dimension.py has no argument 'dropout'; use shift, exhaustion, overfitting"),
    ],
)
def test_an_unknown_argument_is_refused(argument, message):
    with pytest.raises(ConfigError, match=message):
        load_config([f"--config={argument}"])


@pytest.mark.parametrize(
    "override, message",
    [
        ("--config.train.probe.texts.points=3000", "points = 3000: the text train"),
        ("--config.train.probe.texts.neighbors=60", "points = 60: leaves a point fewer than"),
        ("--config.train.probe.texts.states=('layer_1',)", "the model has no 'layer_1'"),
        ("--config.train.probe.texts.names=('train','prose')", "equations have no text 'prose'"),
        ("--config.train.data.sequence_length=8", "sequence_length = 8: must be 4"),
    ],
)
def test_impossible_measurements_are_one_line_before_training(capsys, tmp_path, override, message):
    code = cli.main(["run", f"--config={GROKKING}:smoke", override, f"--workdir={tmp_path / 'w'}"])
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and message in err[-1]
    assert not list(tmp_path.glob("w/cohorts/*"))


def data_of(page):
    return json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument, name",
    [
        (f"{GROKKING}:smoke", "grokking"),
        (f"{TEXT}:shift,smoke", "shift"),
        (f"{TEXT}:exhaustion,smoke", "exhaustion"),
        (f"{TEXT}:overfitting,smoke", "overfitting"),
    ],
)
def test_each_experiment_ends_with_a_verdict_on_its_page(capsys, monkeypatch, tmp_path, argument, name):
    assert cli.main(["run", f"--config={argument}", f"--workdir={tmp_path / 'w'}"]) == 0
    assert CLAIMS[name] in capsys.readouterr().out
    page = (tmp_path / "w/report/index.html").read_text()
    assert CLAIMS[name] in page
    data = data_of(page)
    bands = data["datasets"]["bands"]
    assert bands["mean"] and all(value is not None for value in bands["mean"])
    assert (tmp_path / "w/report/figures/claim_curves.svg").stat().st_size > 10_000
    left = shutil.ignore_patterns("cohorts", "report", "results.*")
    shutil.copytree(tmp_path / "w", tmp_path / "copy", ignore=left)
    monkeypatch.setattr(export, "write_figures_beside", lambda *_: contextlib.nullcontext())  # only the page is written
    assert cli.main(["report", f"--workdir={tmp_path / 'copy'}"]) == 0
    copied = data_of((tmp_path / "copy/report/index.html").read_text())
    assert copied["datasets"] == data["datasets"], "a copy without checkpoints says the same"
    if name == "shift":
        assert set(data["datasets"]["quantiles"]["when"]) == {"before", "after"} and data["datasets"]["sensitivity"]
    assert "probes&#39; share of training" in page
