"""A sweep's evaluation killed at random moments: finished results aren't repeated, and all results are complete."""

import json
import os
import random
import shutil
import signal
import time

import pandas
import pytest

from tests.sweeps import forked

KILLS = 12
CONFIG = """
from eval.config import EvalConfig
from olmo_jax.config import TrainConfig, from_config_dict
from sweeps.planning.grid import product
from sweeps.planning.plan import sweep_config

def get_config():
    train = from_config_dict(TrainConfig, dict(
        name="fault", tokens=20 * 64,
        model=dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32),
        data=dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                  train_domains=("prose",), sequence_length=16, batch_size=4, root={root!r}),
        probe=dict(every=10, documents=10, document_tokens=12), checkpoint=dict(every=4), mesh=dict(member=1)))
    grid = product({{"data.batch_size": [4, 8], "optimizer.weight_decay": [0.1, 5.0]}})
    evaluation = from_config_dict(EvalConfig, dict(
        tokens_per_domain=400, batch_size=8, quantize=dict(bits=(4, 3), calibration_tokens=256),
        finetune=dict(targets=("code", "other"), learning_rates=(1e-3, 1e-2), tokens=20 * 64, batch_size=4, points=2),
        perturb=dict(relative=(0.1, 0.5), kept_ranks=(0.5, 0.25), draws=2), dynamics=dict(cka=True, cka_tokens=64)))
    return sweep_config(train, grid, evaluation)
"""


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    path = folder / "sweep.py"
    path.write_text(CONFIG.format(corpus=str(corpus), root=str(folder / "data")))
    return path


@pytest.fixture(scope="module")
def start(config):
    """Starts `olmo-jax` in a process of its own."""
    return lambda arguments, stderr=None: forked.start(arguments, config.parent / "cache", stderr)


@pytest.fixture(scope="module")
def evaluation(start):
    """Starts `olmo-jax evaluate` in a process of its own."""
    return lambda workdir: start(["evaluate", f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def trained(config, start):
    workdir = config.parent / "trained"
    process = start(["train", f"--config={config}", f"--workdir={workdir}"])
    process.join(300)
    assert process.exitcode == 0
    return workdir


def results(workdir):
    return {str(p.relative_to(workdir)): p for p in workdir.glob("runs/*/results/*.json")}


def written(workdir):
    """Return the modification time and content of each result."""
    return {name: (p.stat().st_mtime_ns, p.read_bytes()) for name, p in results(workdir).items()}


@pytest.mark.slow
def test_evaluation_resumes_after_kills_without_repeating_results(trained, evaluation, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    for workdir in (undisturbed, killed):
        shutil.copytree(trained, workdir)
    process = evaluation(undisturbed)
    process.join(600)
    assert process.exitcode == 0
    expected = {name: json.loads(p.read_text()) for name, p in results(undisturbed).items()}
    assert len(expected) > 80

    rng, kills, safe = random.Random(0), 0, {}
    while kills < KILLS:
        process = evaluation(killed)
        least, since = len(safe) + rng.randint(1, len(expected) // (2 * KILLS)), time.monotonic()
        while len(results(killed)) < least and process.is_alive() and time.monotonic() - since < 120:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        assert process.is_alive(), "the evaluation ended before it was killed often enough; make it longer"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        now = written(killed)
        assert {name: now[name] for name in safe} == safe  # complete, and not repeated
        assert all(json.loads(text)["metrics"] for _, text in now.values())
        safe = now
    process = evaluation(killed)
    process.join(600)
    assert process.exitcode == 0
    now = written(killed)
    assert {name: now[name] for name in safe} == safe
    assert now.keys() == expected.keys()
    for name, (_, text) in now.items():
        result = json.loads(text)
        assert result["settings"] == expected[name]["settings"]
        for metric, value in expected[name]["metrics"].items():
            # GPTQ's flips and a fine-tuning's steps pass on what a stack of fewer models rounds otherwise.
            close = pytest.approx(value, rel=2e-3, abs=2e-3) if value is not None else None
            assert result["metrics"][metric] == close, (name, metric)
    assert not [p for p in killed.glob("runs/*/results/*") if p.suffix != ".json"]

    times = {name: moment for name, (moment, _) in now.items()}
    process = evaluation(killed)
    process.join(300)
    assert process.exitcode == 0
    assert {name: moment for name, (moment, _) in written(killed).items()} == times


OWN = """
import dataclasses
from eval.columns import Result
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from olmo_jax.config.validation import Settings

@dataclasses.dataclass(frozen=True)
class Nothing(Settings):
    pass

@evaluator
class Broken(Evaluator[Nothing]):
    kind = "broken"
    config_type = Nothing
    results = (Result("one", "The number one", "units", "evaluation"),)

    def evaluations(self):
        return [Evaluation("broken", "broken", {{}})]

    def measure(self, models, evaluation):
        {body}

def get_config():
    config = _plain()
    config.evaluation.own = {{"broken": {{}}}}
    return config
"""


@pytest.mark.slow
def test_a_user_evaluation_that_raises_is_reported_and_one_that_works_reaches_table_and_schema(
    config, trained, start, tmp_path
):
    workdir, file, errors = tmp_path / "work", tmp_path / "own.py", tmp_path / "stderr"
    shutil.copytree(trained, workdir)
    arguments = ["evaluate", f"--workdir={workdir}", f"--config={file}", "--only=broken,unigram"]
    plain = config.read_text().replace("get_config", "_plain")
    for body, code in (("raise KeyError('row')", 1), ("return [Measured({'one': 1.0}, {})] * len(models.models)", 0)):
        file.write_text(plain + OWN.format(body=body))
        process = start(arguments, errors)
        process.join(300)
        assert process.exitcode == code
        said, failed = errors.read_text(), workdir.glob("cohorts/*/failed.txt")
        if code:
            assert said.strip().splitlines()[-1].endswith("correct it and run the same command again")
            assert "Traceback" not in said
            assert {path.read_text().split(":")[0] for path in failed} == {"evaluation broken failed"}
        else:
            assert not list(failed)
    assert len({name for name in results(workdir) if "unigram@" in name}) == 4
    assert len({name for name in results(workdir) if "broken@" in name}) == 4
    # A process that doesn't read the configuration file has no code of the evaluation.
    process = start(["report", f"--workdir={workdir}"], errors)
    process.join(300)
    assert process.exitcode == 0, errors.read_text()
    schema = json.loads((workdir / "results.schema.json").read_text())
    assert schema["broken/one"]["meaning"] == "Broken: the number one." and schema["broken/one"]["unit"] == "units"
    table = pandas.read_parquet(workdir / "results.parquet")
    assert table.loc[table["final"], "broken/one"].tolist() == [1.0] * 4
    assert "broken/one" in (workdir / "results.csv").read_text().splitlines()[0]
