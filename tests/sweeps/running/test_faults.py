"""Real processes, killed, without disk space, and concurrent; the same command then resumes to bit-equal results."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import chex
import numpy as np
import pytest

from olmo_jax.checkpoint import load_run, run_steps
from olmo_jax.logs.metrics import read_jsonl
from tests.sweeps import forked

KILLS = 30
CONFIG = """
from olmo_jax.config import TrainConfig, from_config_dict
from sweeps.planning.grid import product
from sweeps.planning.stack_config import StackConfig
from sweeps.planning.plan import sweep_config

def get_config():
    train = from_config_dict(TrainConfig, dict(
        name="fault", tokens=240 * 64,
        model=dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32),
        data=dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                  train_domains=("prose",), sequence_length=16, batch_size=4, max_epochs=99.0, root={root!r}),
        probe=dict(every=40, documents=10, document_tokens=12,
                   unembedding=dict(metrics=("mean_cosine",)), final_states=dict(metrics=("mean_cosine",))),
        checkpoint=dict(every=10), mesh=dict(member=1)))
    grid = product({{"data.batch_size": [4, 8], "optimizer.weight_decay": [0.1, 5.0], "tokens": [240 * 64, 130 * 64]}})
    grid[0]["name"] = "trunk"
    twin = {{"name": "twin", "branch.parent": "trunk@120"}}  # with the trunk's settings
    mean = {{"name": "mean", "branch.parent": "trunk@120", "branch.average_last": 3, "tokens": 120 * 64}}
    grid = [mean, twin, *grid]
    return sweep_config(train, grid, parts=StackConfig(most_members=2))
"""


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    path = folder / "sweep.py"
    path.write_text(CONFIG.format(corpus=str(corpus), root=str(folder / "data")))
    return path


@pytest.fixture(scope="module")
def start(config):
    """Starts `olmo-jax train` in a process of its own."""

    def train(workdir, stderr=None):
        return forked.start(["train", f"--config={config}", f"--workdir={workdir}"], config.parent / "cache", stderr)

    return train


@pytest.fixture
def run_to_end(start, tmp_path):
    """`run_to_end(workdir)`: the exit code of `olmo-jax train` and its messages."""

    def code_and_message(workdir):
        process = start(workdir, tmp_path / "stderr")
        process.join(300)
        return process.exitcode, (tmp_path / "stderr").read_text()

    return code_and_message


@pytest.fixture
def finish(run_to_end):
    """`finish(workdir)`: the messages of `olmo-jax train`, which has to succeed."""

    def message(workdir):
        code, err = run_to_end(workdir)
        assert code == 0, err
        return err

    return message


@pytest.fixture(scope="module")
def undisturbed(config, start):
    workdir = config.parent / "undisturbed"
    process = start(workdir)
    process.join(300)
    assert process.exitcode == 0
    return workdir


def committed(workdir):
    return [p for p in pathlib.Path(workdir).glob("cohorts/*/checkpoints/*") if p.name.isdigit()]


def assert_same(workdir, undisturbed):
    runs = sorted(p.name for p in (undisturbed / "runs").iterdir())
    assert runs == sorted(p.name for p in (workdir / "runs").iterdir())
    for run in runs:
        metrics, status = ((w / "runs" / run / name for w in (workdir, undisturbed)) for name in
                           ("metrics.jsonl", "status.json"))  # fmt: skip
        mine, theirs = (p.read_bytes() for p in metrics)
        assert mine == theirs
        one, other = (json.loads(p.read_text()) for p in status)
        assert one == other
        assert one["state"] == "done"
        assert run_steps(workdir, run) == run_steps(undisturbed, run)
        chex.assert_trees_all_equal(load_run(workdir, run)[1], load_run(undisturbed, run)[1])
        assert all(isinstance(row, dict) for row in read_jsonl(workdir / "runs" / run / "timings.jsonl"))
    trunk, twin = (next(run for run in runs if run.startswith(name)) for name in ("trunk", "twin"))
    chex.assert_trees_all_equal(load_run(workdir, twin)[1], load_run(workdir, trunk)[1])


@pytest.mark.slow
def test_resume_after_kills_at_random_moments_is_bit_equal(start, finish, undisturbed, tmp_path):
    """Kills occur while it starts, prepares, compiles, trains and writes: after some time or some more checkpoints."""
    rng, workdir = np.random.default_rng(0), tmp_path / "w"
    killed = 0
    while killed < KILLS:
        process, before, since = start(workdir), len(committed(workdir)), time.monotonic()
        if killed % 4:
            more, wait = rng.integers(0, 3), rng.uniform(0, 0.4)
            while len(committed(workdir)) < before + more and process.is_alive() and time.monotonic() - since < 120:
                time.sleep(0.005)
            time.sleep(wait)
        else:  # while it starts; once it has written a checkpoint it is past that, on a fast machine sooner
            end = since + rng.uniform(0, 4)
            while time.monotonic() < end and len(committed(workdir)) == before:
                time.sleep(0.005)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
    assert killed == KILLS, "the sweep ended before it was killed often enough; make it longer"
    finish(workdir)
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_two_processes_divide_the_stacks_of_a_sweep(start, undisturbed, tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    assert_same(tmp_path, undisturbed)
    for run in (tmp_path / "runs").iterdir():  # nothing was done twice
        rows = [row["step"] for row in read_jsonl(run / "timings.jsonl") if row["event"] == "steps"]
        assert rows == sorted(set(rows))


@pytest.mark.slow
def test_a_suspended_process_gives_up_a_stack_taken_over_by_another(start, finish, undisturbed, tmp_path):
    """The first process is suspended, not dead: the second waits for a minute without a heartbeat, shortened here."""
    workdir = tmp_path / "w"
    first = start(workdir)
    while not committed(workdir):
        assert first.is_alive()
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    (lock,) = workdir.glob("cohorts/*/lock.json")
    lock.unlink()  # as the second does once the minute is over
    finish(workdir)
    os.kill(first.pid, signal.SIGCONT)
    first.join(120)
    assert first.exitcode is not None
    assert_same(workdir, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], check=False,
                             capture_output=True, text=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_training_resumes_with_space(run_to_end, finish, undisturbed, small_disk):
    workdir = small_disk / "sweep"
    code, err = run_to_end(workdir)
    assert code == 1, err
    (line,) = (line for line in err.splitlines() if line.startswith("olmo-jax: "))
    assert "space" in line.lower()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    finish(workdir)
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_damaged_files_are_set_aside_or_named(config, start, run_to_end, finish, undisturbed, tmp_path):
    """A checkpoint with changed bytes, metrics truncated within a line, a missing shard: each after a stop."""
    workdir = tmp_path / "w"
    process = start(workdir)
    while len(committed(workdir)) < 4:
        assert process.is_alive()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    process.join(120)
    assert process.exitcode == 75

    shard = next((config.parent / "data").glob("**/train*prose*"))
    shutil.move(shard, tmp_path / "shard")
    with contextlib.ExitStack() as back:
        back.callback(shutil.move, tmp_path / "shard", shard)
        code, err = run_to_end(workdir)
        (line,) = (line for line in err.splitlines() if line.startswith("olmo-jax: "))
        assert code == 1
        assert shard.name in line

    last = max(committed(workdir), key=lambda p: (p.stat().st_mtime_ns, int(p.name)))
    data = max((p for p in last.glob("params/**/d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    data.write_bytes(bytes(b ^ (i % 97 == 0) for i, b in enumerate(data.read_bytes())))
    run = next(p for p in (workdir / "runs").iterdir() if (p / "metrics.jsonl").exists())
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + '{"step": 999, "los')
    err = finish(workdir)
    assert "set aside" in err
    assert list(workdir.glob("cohorts/*/broken/*"))
    assert_same(workdir, undisturbed)
