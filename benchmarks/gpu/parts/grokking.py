"""Measure the command for grokking at the scale `gpu` with weaker decay, from an empty directory to its report."""

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu import sweep
from benchmarks.gpu.part import Column

NAME = "grokking"
TITLE = "`olmo-jax run --config=grokking:gpu --config.train.optimizer.weight_decay=0.1`, 45 models."
VERSION = 2
NEEDS = sweep.NEEDS
COLUMNS = (*sweep.COLUMNS, Column("models that generalise", "generalised", "d"))
_DECAY = ["--config.train.optimizer.weight_decay=0.1"]
_GENERALISED = 0.9  # accuracy on the held-out equations


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        # Without geometry, which takes longest to compile.
        without = [f"--config.train.probe.{target}.metrics=()" for target in ("texts", "unembedding")]
        return {"smoke_decay0.1": {"command": ["train", "--config=grokking:smoke", *_DECAY, *without]}}
    return {"gpu_decay0.1": {"command": ["run", "--config=grokking:gpu", *_DECAY]}}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    command = case["command"]
    if command[0] == "train":
        with tempfile.TemporaryDirectory() as folder:
            return _measure(command, Path(folder) / "work")
    return _measure(command, sweep.workdir_of(NAME, VERSION, command[1:]))


def _measure(command: list[str], workdir: Path) -> dict[str, Any]:
    seconds = sweep.carry_out(command, workdir)
    accuracies = [_last(run / "metrics.jsonl", "texts.validation/accuracy") for run in (workdir / "runs").iterdir()]
    return seconds | {"generalised": sum(accuracy > _GENERALISED for accuracy in accuracies)}


def _last(path: Path, name: str) -> float:
    """Return the last value of a metric that isn't in every row."""
    rows = map(json.loads, path.read_text().splitlines())
    return [row[name] for row in rows if row.get(name) is not None][-1]
