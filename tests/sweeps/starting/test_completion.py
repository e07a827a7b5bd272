"""Completion, as a shell asks for it: by environment variables, with the answer in a file."""

import os
import pathlib
import subprocess
import sys

import pytest

from sweeps import cli

ROOT = pathlib.Path(__file__).parents[3]


def completions(line, folder):
    answer = folder / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run([sys.executable, "-m", "sweeps.cli"], env=os.environ | asked, cwd=folder, check=True)
    return [each.strip() for each in answer.read_text().splitlines()]


def test_verbs_options_configurations_and_settings_are_completed(tmp_path):
    (tmp_path / "demo").mkdir()
    assert completions("olmo-jax re", tmp_path) == ["report"]
    assert completions("olmo-jax plan --fl", tmp_path) == ["--flops"]
    assert completions("olmo-jax plan --config gro", tmp_path) == ["grokking"]
    assert completions("olmo-jax status --workdir de", tmp_path) == ["demo/"]
    assert completions("olmo-jax run --config=demo --config.train.optimizer.weight", tmp_path) == [
        "--config.train.optimizer.weight_decay="
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_names_the_command(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    assert "olmo-jax" in capsys.readouterr().out
    assert cli.main(["completion", "cmd"]) == 2
