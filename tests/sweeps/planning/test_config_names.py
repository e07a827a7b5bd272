"""Configurations by name, from any folder, and by their former paths."""

import pathlib

import pytest

from sweeps.planning.config_file import load_config
from sweeps.planning.config_names import config_path, named_configs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_studies_and_configurations_are_available_by_name():
    assert {"demo", "own_text", "imported", "paper", "grokking", "local_dimension", "olmo", "pythia"} <= set(
        named_configs()
    )
    assert "claims" not in named_configs(), "a study's other files are none"


def test_no_two_files_share_a_name():
    root = pathlib.Path(load_config.__code__.co_filename).parents[2]
    folders = ("sweeps/configs", "sweeps/studies/*", "olmo_jax/configs")
    files = [
        file for folder in folders for file in root.glob(f"{folder}/*.py") if "\ndef get_config(" in file.read_text()
    ]
    assert len({file.stem for file in files}) == len(files) == len(named_configs())


def test_a_name_takes_an_argument_and_overrides():
    config = load_config(["--config=demo:smoke", "--config.train.optimizer.beta1=0.5"])
    assert config.train.optimizer.beta1 == 0.5
    assert config.train.tokens < load_config(["--config=demo"]).train.tokens


def test_a_users_file_takes_precedence_over_a_name():
    pathlib.Path("demo").write_text("x")
    assert config_path("demo") == "demo"


def test_a_folder_with_a_configuration_name_is_ignored():
    pathlib.Path("demo").mkdir()
    assert config_path("demo").endswith("sweeps/configs/demo.py")


@pytest.mark.parametrize(
    "former, name", [("sweeps/configs/paper.py", "paper"), ("./sweeps/configs/grokking.py", "grokking")]
)
def test_former_configuration_paths_work_and_warn_with_the_new_name(former, name, capsys):
    assert load_config([f"--config={former}:cpu"]) == load_config([f"--config={name}:cpu"])
    assert capsys.readouterr().err.count(f"use --config={name}") == 1


def test_other_config_paths_are_returned_unchanged():
    assert config_path("mine.py") == "mine.py"
    assert config_path("sweeps/configs/no.py") == "sweeps/configs/no.py"
