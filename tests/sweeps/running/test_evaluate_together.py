"""Two processes evaluate one sweep: each takes stacks that the other hasn't taken, and nothing is done twice."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.sweeps.running.test_interruption import CONFIG

# `olmo-jax` with each result noted as it is written. The first of a process waits until the other has one to write.
NOTING = """
import os, pathlib, sys, time
from eval import results
from sweeps import cli

folder, write = pathlib.Path(sys.argv.pop(1)), results.write

def noted(workdir, run, step, evaluation, *rest):
    (folder / f"{os.getpid()}.at_work").touch()
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.at_work"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    with (folder / "written.txt").open("a") as file:
        file.write(f"{os.getpid()} {run} {step} {evaluation.name}\\n")
    write(workdir, run, step, evaluation, *rest)

results.write = noted
sys.exit(cli.main(sys.argv[1:]))
"""
LIGHT = "EvalConfig(tokens_per_domain=200, quantize=QuantizeConfig(bits=()))"


@pytest.mark.slow
def test_two_processes_divide_the_evaluations_of_a_sweep(corpus, tmp_path):
    config, workdir = tmp_path / "sweep.py", tmp_path / "w"
    text = CONFIG.format(corpus=str(corpus), root=str(tmp_path / "data")).replace("400", "20")
    text = text.replace('{"optimizer.weight_decay": [0.1, 5.0]}', '{"data.batch_size": [4, 2]}')
    text = text.replace("train=train,", f"train=train, evaluation=to_config_dict({LIGHT}),")
    config.write_text(f"from eval.config import EvalConfig, QuantizeConfig\n{text}")
    (tmp_path / "noting.py").write_text(NOTING)
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path.cwd())}
    train = [sys.executable, "-m", "sweeps.cli", "train", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run(train, env=environment, check=True, timeout=300)

    evaluate = [sys.executable, str(tmp_path / "noting.py"), str(tmp_path), "evaluate", f"--workdir={workdir}"]
    two = [subprocess.Popen(evaluate, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate(timeout=300)[1] for process in two]
    assert [process.returncode for process in two] == [0, 0], messages

    written = [line.split(" ", 1) for line in (tmp_path / "written.txt").read_text().splitlines()]
    assert {int(pid) for pid, _ in written} == {process.pid for process in two}
    assert set(collections.Counter(result for _, result in written).values()) == {1}
    by_run = collections.defaultdict(set)
    for pid, result in written:
        by_run[result.split()[0]].add(pid)
    assert all(len(pids) == 1 for pids in by_run.values()), "a stack is one process's"
    files = list(workdir.glob("runs/*/results/*.json"))
    assert len(files) == len(written)
    assert all(json.loads(file.read_text())["metrics"] for file in files)
    for err in messages:
        last = [line for line in err.splitlines() if line.startswith("evaluate: ")][-1]
        done, total = last.removeprefix("evaluate: ").split()[0].split("/")
        assert done == total, err
    assert any("by another process" in err for err in messages)
    again = subprocess.run(evaluate, env=environment, capture_output=True, text=True, timeout=120)
    assert "evaluate: nothing is left to do" in again.stderr
