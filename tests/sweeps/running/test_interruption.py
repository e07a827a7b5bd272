"""A real process is asked to stop in the middle of training and resumed; test_faults.py covers kills."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import pytest

from olmo_jax.checkpoint import load_run
from tests.sweeps import forked

CONFIG = """
from ml_collections import ConfigDict
from olmo_jax.config import TrainConfig, to_config_dict
from sweeps.planning.grid import product

def get_config():
    train = to_config_dict(TrainConfig(name="kill", tokens=400 * 64))
    train.model.update(dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32))
    train.data.update(dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                           train_domains=("prose",), sequence_length=16, batch_size=4, max_epochs=99.0,
                           root={root!r}))
    train.probe.update(dict(every=20, documents=10, document_tokens=12))
    train.checkpoint.every = 30
    train.mesh.member = 1
    return ConfigDict(dict(train=train, grid=product({{"optimizer.weight_decay": [0.1, 5.0]}})))
"""


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interruption")
    path = folder / "sweep.py"
    path.write_text(CONFIG.format(corpus=str(corpus), root=str(folder / "data")))
    return path


def start(config, workdir, stderr=None):
    return forked.start(["train", f"--config={config}", f"--workdir={workdir}"], config.parent / "cache", stderr)


def finish(config, workdir):
    process = start(config, workdir)
    process.join(300)
    assert process.exitcode == 0


def wait_for_step(workdir, process, step):
    """Wait for a checkpoint at or beyond `step` while the process still trains."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        written = [int(p.name) for p in pathlib.Path(workdir).glob("cohorts/*/checkpoints/*") if p.name.isdigit()]
        if max(written, default=0) >= step:
            return
        assert process.is_alive()
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint at step {step}")


@pytest.fixture(scope="module")
def undisturbed(config):
    workdir = config.parent / "undisturbed"
    finish(config, workdir)
    return workdir


def assert_same(workdir, undisturbed):
    runs = sorted(p.name for p in (undisturbed / "runs").iterdir())
    assert runs == sorted(p.name for p in (workdir / "runs").iterdir())
    for run in runs:
        a, b = (w / "runs" / run / "metrics.jsonl" for w in (workdir, undisturbed))
        assert a.read_bytes() == b.read_bytes()
        assert len(a.read_text().splitlines()) == 401
        chex.assert_trees_all_equal(load_run(workdir, run)[1], load_run(undisturbed, run)[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_exits_with_75_after_a_checkpoint(config, undisturbed, tmp_path, number):
    workdir, stderr = tmp_path / "w", tmp_path / "stderr"
    process = start(config, workdir, stderr)
    wait_for_step(workdir, process, 60)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == 75, stderr.read_text()
    rows = [len((p / "metrics.jsonl").read_text().splitlines()) for p in (workdir / "runs").iterdir()]
    steps = [int(p.name) for p in workdir.glob("cohorts/*/checkpoints/*") if p.name.isdigit()]
    assert set(rows) == {max(steps) + 1}, "nothing trained is lost"
    finish(config, workdir)
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_a_restart_compiles_nothing(config, tmp_path):
    """Compiled programs are stored in the working directory; a new process reuses all of them."""
    workdir = tmp_path / "w"
    command = [sys.executable, "-m", "sweeps.cli", "train", f"--config={config}", f"--workdir={workdir}"]
    logging = {"JAX_LOGGING_LEVEL": "DEBUG"}
    unset = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | logging

    def misses_and_hits():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
        return (done.stderr.lower().count(f"persistent compilation cache {what}") for what in ("miss", "hit"))

    misses, _ = misses_and_hits()
    assert misses > 0
    for folder in ("runs", "cohorts"):
        shutil.rmtree(workdir / folder)
    misses, hits = misses_and_hits()
    assert misses == 0
    assert hits > 0
