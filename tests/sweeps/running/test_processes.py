"""One cohort over two local processes with two devices each matches training in one process."""

import json
import os
import socket

import chex
import pytest

from olmo_jax.checkpoint import load_run, run_steps
from olmo_jax.config import ConfigError
from olmo_jax.execution import processes as hosts
from olmo_jax.logs.metrics import read_jsonl
from tests.sweeps import forked

CONFIG = """
from olmo_jax.config import TrainConfig, from_config_dict
from sweeps.planning.grid import together
from sweeps.planning.plan import sweep_config

def get_config(mesh):
    member, data = map(int, mesh.split("x"))
    train = from_config_dict(TrainConfig, dict(
        name="hosts", tokens=12 * 64, mesh=dict(member=member, data=data),
        model=dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32),
        data=dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                  train_domains=("prose",), sequence_length=16, batch_size=4, root={root!r}),
        probe=dict(every=4, documents=10, document_tokens=12), checkpoint=dict(every=5)))
    return sweep_config(train, together({{"init_seed": [0, 1, 2], "tokens": [12 * 64, 7 * 64, 12 * 64]}}))
"""


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    path = folder / "sweep.py"
    path.write_text(CONFIG.format(corpus=str(corpus), root=str(folder / "data")))
    return path


@pytest.fixture(scope="module")
def train(config):
    """`train(mesh, workdir, processes, devices)`: exit codes and messages of so many processes of one training."""

    def codes_and_messages(mesh, workdir, processes, devices):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        command = ["train", f"--config={config}:{mesh}", f"--workdir={workdir}"]
        started = []
        for i in range(processes):
            at = [f"--hosts=127.0.0.1:{port},{processes},{i}"] if processes > 1 else []
            stderr = config.parent / f"stderr-{i}"
            started.append(forked.start(command + at, config.parent / "cache", stderr, XLA_FLAGS=flags))
        for process in started:
            process.join(300)
        messages = [(config.parent / f"stderr-{i}").read_text() for i in range(processes)]
        return [process.exitcode for process in started], "\n".join(messages)

    return codes_and_messages


@pytest.fixture(scope="module")
def one_process(config, train):
    """The working directory of one process."""
    workdir = config.parent / "alone"
    codes, errors = train("1x1", workdir, 1, 1)
    assert codes == [0], errors
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["4x1", "2x2"])
def test_training_over_two_processes_matches_one(train, one_process, tmp_path, mesh):
    """Members are split over both processes, or batches are as well."""
    two_processes = tmp_path / "both"
    codes, errors = train(mesh, two_processes, 2, 2)
    assert codes == [0, 0], errors
    runs = sorted(p.name for p in (one_process / "runs").iterdir())
    assert runs == sorted(p.name for p in (two_processes / "runs").iterdir())
    for run in runs:
        assert run_steps(one_process, run) == run_steps(two_processes, run)
        ours, theirs = (read_jsonl(w / "runs" / run / "metrics.jsonl") for w in (two_processes, one_process))
        assert [row.keys() for row in ours] == [row.keys() for row in theirs]
        for row, expected in zip(ours, theirs, strict=True):
            assert row == pytest.approx(expected, rel=2e-3, abs=1e-4)
        chex.assert_trees_all_close(
            load_run(two_processes, run)[1], load_run(one_process, run)[1], rtol=2e-3, atol=2e-5
        )
        status = [json.loads((w / "runs" / run / "status.json").read_text()) for w in (one_process, two_processes)]
        assert status[0] == status[1]


@pytest.mark.parametrize("given", ["here", "localhost:1,2", "localhost:1,2,2", "localhost,2,0"])
def test_invalid_process_addresses_are_refused(given):
    with pytest.raises(ConfigError, match="needs 'auto' or HOST:PORT,COUNT,PLACE"):
        hosts.initialize(given)
