"""A sweep in a folder whose file system has no locks."""

import subprocess
import sys

import pytest

from olmo_jax.checkpoint import load_run, run_steps
from olmo_jax.storage.run_files import known_runs
from tests.olmo_jax.storage import nolocks
from tests.sweeps.running.test_interruption import CONFIG


@pytest.mark.slow
def test_a_sweep_trains_on_a_file_system_without_locks(corpus, tmp_path):
    config, workdir = tmp_path / "sweep.py", tmp_path / "shared" / "w"
    text = CONFIG.format(corpus=str(corpus), root=str(tmp_path / "shared" / "data"))
    config.write_text(text.replace("400", "20"))
    workdir.parent.mkdir()
    environment = nolocks.environment(workdir.parent, tmp_path)
    refused = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX)"
    probe = subprocess.run([sys.executable, "-c", refused, workdir.parent / "x"], env=environment, capture_output=True)
    assert b"Function not implemented" in probe.stderr
    command = [sys.executable, "-m", "sweeps.cli", "train", f"--config={config}", f"--workdir={workdir}"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    runs = known_runs(workdir)
    assert runs
    for run in runs:
        _, params = load_run(workdir, run)
        assert params and max(run_steps(workdir, run)) == 20
    left = [path for path in workdir.parent.rglob("*") if path.name.endswith((".owner", ".__lock", "lock.json"))]
    assert not left
