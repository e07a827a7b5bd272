"""Former names of modules: the modules of today, with a warning."""

import importlib
import subprocess
import sys

import pytest

from olmo_jax.moved import MOVED


@pytest.mark.parametrize("former", MOVED)
def test_a_former_name_resolves_to_the_current_module(former):
    sys.modules.pop(former, None)
    with pytest.warns(FutureWarning, match=f"{former} has moved to {MOVED[former]};"):
        module = importlib.import_module(former)
    assert module is importlib.import_module(MOVED[former])
    assert module.__name__ == module.__spec__.name == MOVED[former]


def test_a_former_import_warns_once_at_the_users_line(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import json\nfrom sweeps.grid import product\n"
        "from sweeps import grid\nimport sweeps.grid\nprint(product({}))\n"
    )
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[{}]\n"
    assert done.stderr.count("FutureWarning") == 1
    assert "mine.py:2: FutureWarning: sweeps.grid has moved to sweeps.planning.grid;" in done.stderr


def test_a_former_name_can_be_run():
    command = [sys.executable, "-m", "sweeps.directions", "no/such/folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "sweeps.directions has moved to sweeps.studies.paper_a.effects;" in done.stderr
    assert "FileNotFoundError" in done.stderr and "no/such/folder/results.parquet" in done.stderr
