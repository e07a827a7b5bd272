"""Every benchmark starts as a file and as a module, and its name shadows no package."""

import importlib.machinery
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_benchmark_file_shadows_an_importable_module(path):
    """`python benchmarks/NAME.py` puts the folder of the benchmarks first on sys.path."""
    places = [place for place in sys.path if pathlib.Path(place or ".").resolve() != ROOT / "benchmarks"]
    assert importlib.machinery.PathFinder.find_spec(path.stem, [*places, str(ROOT)]) is None
    assert path.stem not in sys.stdlib_module_names


def process(path, as_file):
    return pytest.param(path, as_file, id=f"{path.stem}-{'file' if as_file else 'module'}",
                        marks=[] if (path.stem, as_file) == ("train", True) else pytest.mark.slow)  # fmt: skip


@pytest.mark.parametrize(("path", "as_file"), [process(path, as_file) for path in FILES for as_file in (True, False)])
def test_every_benchmark_prints_its_usage(path, as_file, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *([str(path)] if as_file else ["-m", f"benchmarks.{path.stem}"]), "--help"]
    folder = tmp_path if as_file else ROOT
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage:")


@pytest.mark.oracle
def test_the_reference_training_loop_takes_steps():
    pytest.importorskip("torch")
    case = {"vocabulary": 64, "width": 16, "layers": 1, "heads": 2, "batch": 2, "length": 8, "threads": 1}
    command = [sys.executable, str(ROOT / "benchmarks" / "train_peer.py"), json.dumps(case | {"compiled": False})]
    ended = subprocess.run(command, input="1\n2\n", capture_output=True, text=True)
    assert [float(line) > 0 for line in ended.stdout.splitlines()] == [True, True], ended.stderr
