"""An exact name takes precedence over a pattern, and generated file names stay within the length limit."""

import os

import pytest
from etils import epath

from eval import results
from olmo_jax.checkpoint import CheckpointError
from olmo_jax.config.validation import ConfigError, folder_name
from olmo_jax.files import write_json
from olmo_jax.storage import names, paths
from olmo_jax.storage.run_files import matching_runs

LOOKS_LIKE_A_PATTERN = "lr[1e-2]*-0a1b"


def test_an_existing_name_matches_itself_and_otherwise_is_a_pattern():
    existing = ["lr[1e-2]", "lr1", "lre"]
    assert names.matching(existing, "lr[1e-2]") == ["lr[1e-2]"]
    assert names.matching(existing, "lr[1e]") == ["lr1", "lre"]
    assert names.matching(existing, "lr*") == existing
    assert names.matching(existing, "lr2") == []


def test_runs_are_found_by_their_exact_ids(tmp_path):
    for run in (LOOKS_LIKE_A_PATTERN, "lr1-0a1b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        write_json(tmp_path / "runs" / run / "config.json", {})
    assert matching_runs(tmp_path, LOOKS_LIKE_A_PATTERN) == [LOOKS_LIKE_A_PATTERN]
    assert matching_runs(tmp_path, "*0a1b") == sorted([LOOKS_LIKE_A_PATTERN, "lr1-0a1b"])
    with pytest.raises(CheckpointError, match="no run 'lr2'"):
        matching_runs(tmp_path, "lr2")


@pytest.mark.parametrize("name", ["noise[1]", "quant*", "plain", "what?@3"])
def test_results_below_a_folder_with_brackets_are_found(tmp_path, name):
    workdir, run = epath.Path(tmp_path / "w[0-9]"), LOOKS_LIKE_A_PATTERN
    evaluation = results.Evaluation("noise", name, {"scale": 1})
    results.write(workdir, run, 8, evaluation, "print", results.Measured({"macro": 2.5}, {}), 0.1)
    assert results.steps(workdir, run) == [8]
    assert results.read_all(workdir, run, 8)[name]["metrics"] == {"macro": 2.5}
    assert results.read(workdir, run, 8, evaluation)["run_id"] == run
    assert results.damaged(workdir, run) == []


@pytest.mark.parametrize(
    "text", ["/データ/" + "言" * 20 + "/tasks.jsonl", "x" * 5000, "/" * 300, "ö" * 120, os.fsdecode(b"caf\xe9") * 60]
)
def test_file_names_are_bounded_and_unique_per_text(tmp_path, text):
    name = names.file_name(text)
    assert len(name.encode()) <= names.LONGEST
    assert name != names.file_name(text + "x")
    # With all that a result's name gets around it.
    (tmp_path / f"finetune_{name}_lr0.000123@123456789.json").touch()


def test_short_names_keep_their_quoting():
    assert names.file_name("a/b c+d:é") == "a%2Fb c+d%3A%C3%A9"


@pytest.mark.parametrize("name", ["", ".x", "a/b", "a\nb", "a\0b", os.fsdecode(b"caf\xe9"), "x" * 300, "言" * 81])
def test_invalid_folder_names_are_refused(name):
    with pytest.raises(ConfigError, match=r"config.name = .*folder"):
        folder_name(name, "config.name")


def test_an_existing_path_matches_itself(tmp_path, monkeypatch):
    (tmp_path / "a[1].txt").touch()
    (tmp_path / "a1.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.matching("~/a[1].txt") == [tmp_path / "a[1].txt"]
    assert paths.matching("~/a[0-9].txt") == [tmp_path / "a1.txt"]
    assert paths.matching(str(tmp_path / "*.txt")) == [tmp_path / "a1.txt", tmp_path / "a[1].txt"]
    assert paths.local("~/x/~y") == tmp_path / "x" / "~y"
