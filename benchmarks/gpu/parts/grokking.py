"""Measure the command for grokking at the scale `gpu` with weaker decay, from an empty directory to its report."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.part import Column

NAME = "grokking"
TITLE = "`olmo-jax run --config=grokking:gpu --config.train.optimizer.weight_decay=0.1`, 45 models."
VERSION = 1
NEEDS = (
    "grain",
    "tensorflow_datasets",
    "orbax",
    "tokenizers",
    "pandas",
    "statsmodels",
    "sklearn",
    "altair",
    "vl_convert",
)
COLUMNS = (
    Column("s in total", "command_s", ",.0f"),
    Column("s of steps", "steps_s", ",.0f"),
    Column("s of probes", "probe_s", ",.0f"),
    Column("s of checkpoints", "checkpoint_s", ",.1f"),
    Column("s compiling", "compile_s", ",.0f"),
    Column("models", "runs", "d"),
    Column("models that generalise", "generalised", "d"),
)
_ROOT = Path(__file__).parents[3]
_DECAY = ["--config.train.optimizer.weight_decay=0.1"]
_WORK = _ROOT / ".cache" / "gpu"
_GENERALISED = 0.9  # accuracy on the held-out equations


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        # Without geometry, which takes longest to compile.
        without = [f"--config.train.probe.{target}.metrics=()" for target in ("texts", "unembedding")]
        return {"smoke_decay0.1": _case("train", "smoke", [*_DECAY, *without])}
    return {"gpu_decay0.1": _case("run", "gpu", _DECAY)}


def _case(verb: str, scale: str, overrides: list[str]) -> dict[str, Any]:
    return {"command": [verb, f"--config=sweeps/studies/paper_b/grokking.py:{scale}", *overrides]}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds by event, over all starts of a resumed run, and those of the command if it ran in one go."""
    command = case["command"]
    if command[0] == "train":
        with tempfile.TemporaryDirectory() as folder:
            return _run(command, Path(folder) / "work")
    return _run(command, _WORK / "-".join(["grokking", *(re.sub("[^a-z0-9.]+", "-", word) for word in command[1:])]))


def _run(arguments: list[str], workdir: Path) -> dict[str, Any]:
    from_scratch = not workdir.exists()
    start = time.perf_counter()
    command = [sys.executable, "-m", "sweeps.cli", *arguments, f"--workdir={workdir}"]
    # As for a user, the cache of compiled programs is on.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    ended = subprocess.run(
        command, cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
        raise RuntimeError(f"`{' '.join(command[2:])}` ended with exit code {ended.returncode}: {last[0]}")
    seconds = dict.fromkeys(("steps", "probe", "checkpoint", "compile"), 0.0)
    for row in _timings(workdir):
        if row["event"] in seconds:
            seconds[row["event"]] += row["seconds"]
    accuracies = [_last(run / "metrics.jsonl", "texts.validation/accuracy") for run in (workdir / "runs").iterdir()]
    return {f"{event}_s": value for event, value in seconds.items()} | {
        "command_s": time.perf_counter() - start if from_scratch else None,
        "runs": len(accuracies),
        "generalised": sum(accuracy > _GENERALISED for accuracy in accuracies),
    }


def _timings(workdir: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of each stack once, since every run of a stack has the same rows."""
    folders: dict[str, Path] = {}
    for run in sorted((workdir / "runs").iterdir()):
        folders.setdefault(json.loads((run / "config.json").read_text())["folder"], run)
    for run in folders.values():
        yield from map(json.loads, (run / "timings.jsonl").read_text().splitlines())


def _last(path: Path, name: str) -> float:
    """Return the last value of a metric that isn't in every row."""
    rows = map(json.loads, path.read_text().splitlines())
    return [row[name] for row in rows if row.get(name) is not None][-1]
