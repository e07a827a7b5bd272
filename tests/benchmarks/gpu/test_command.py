"""python -m benchmarks.gpu: what it refuses, and a part measured from end to end on this CPU."""

import json

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import child, results


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--only=nope", "there is no such part"),
        ("--scale=big", "invalid choice: 'big'"),
        ("--minutes=-1", "needs a positive number of minutes"),
        ("--minutes=nan", "needs a positive number of minutes"),
        ("--sacle=dry", "unrecognized arguments"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, argument, message):
    assert command.main([argument]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert message in said.err


def test_the_full_scale_needs_an_accelerator(capsys, tmp_path):
    assert command.main([f"--results={tmp_path}", "--only=cohorts"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("--scale=full: JAX has no accelerator here")
    assert len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_not_write_where_measurements_are(capsys):
    assert command.main(["--scale=dry", f"--results={results.FOLDER}"]) == 2
    assert "a dry run makes none" in capsys.readouterr().err


def test_listing_shows_parts_and_cases(capsys):
    assert command.main(["--list", "--only=cohorts"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("cohorts: ")
    assert "d64_M1 d64_M8 d64_M32 d64_M128" in said


def test_a_part_is_measured_in_a_process_of_its_own_and_then_resumed(capfd, tmp_path):
    before = sorted(results.FOLDER.iterdir())
    arguments = ["--scale=dry", "--only=cohorts", f"--results={tmp_path}"]
    assert command.main(arguments) == 0
    said = capfd.readouterr().out
    assert "cohorts d16_M2: " in said
    entry = json.loads((tmp_path / "cohorts-cpu.json").read_text())["cases"]["d16_M2"]
    assert entry["measured"]["tokens_per_s"] == pytest.approx(2 * 8 * 8 / (entry["measured"]["step_ms"] / 1e3))
    assert entry["measured"]["memory_gb"] > 0
    assert command.main(arguments) == 0
    assert "cohorts: 1 of 1 cases have results in" in capfd.readouterr().out
    assert sorted(results.FOLDER.iterdir()) == before


def test_a_part_that_had_its_share_goes_on_after_the_others(monkeypatch, tmp_path):
    calls = []

    def measure(part, *_):
        calls.append(part.NAME)
        return child.UNFINISHED if calls == ["cohorts"] else child.DONE

    monkeypatch.setattr(command, "_measure", measure)
    monkeypatch.setattr(command, "_machine", lambda _: {"platform": "gpu", "device": "x", "jax": "1", "commit": "c"})
    assert command.main([f"--results={tmp_path}", "--only=cohorts", "--only=loop"]) == 0
    assert calls == ["cohorts", "loop", "cohorts"]


def test_time_that_is_up_is_said_and_ends_with_75(capfd, tmp_path):
    assert command.main(["--scale=dry", "--only=models", f"--results={tmp_path}", "--minutes=0.00001"]) == 75
    assert "models: time is up" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
