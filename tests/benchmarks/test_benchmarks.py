"""Every benchmark starts, as a file and as a module, and hides no package by its name."""

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
def test_its_name_hides_nothing_that_can_be_imported(path):
    """`python benchmarks/NAME.py` puts its folder first."""
    places = [place for place in sys.path if pathlib.Path(place or ".").resolve() != ROOT / "benchmarks"]
    assert importlib.machinery.PathFinder.find_spec(path.stem, [*places, str(ROOT)]) is None
    assert path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=[] if path.stem == "train" else pytest.mark.slow, id=path.stem) for path in FILES]
)
def test_a_process_of_its_own_tells_its_usage(path, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ways = [([str(path)], tmp_path), (["-m", f"benchmarks.{path.stem}"], ROOT)]
    for command, folder in ways[:1] if path.stem == "train" else ways:
        command = [sys.executable, *command, "--help"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("usage:")


@pytest.mark.oracle
def test_the_peer_of_training_takes_steps():
    pytest.importorskip("torch")
    case = {"vocabulary": 64, "width": 16, "layers": 1, "heads": 2, "batch": 2, "length": 8, "threads": 1}
    command = [sys.executable, str(ROOT / "benchmarks" / "train_peer.py"), json.dumps(case | {"compiled": False})]
    ended = subprocess.run(command, input="1\n2\n", capture_output=True, text=True)
    assert [float(line) > 0 for line in ended.stdout.splitlines()] == [True, True], ended.stderr
