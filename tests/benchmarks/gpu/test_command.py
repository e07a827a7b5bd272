"""python -m benchmarks.gpu: which arguments it refuses, and a part measured from end to end on the CPU."""

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
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err


def test_the_full_scale_needs_an_accelerator(capsys, tmp_path):
    assert command.main([f"--results={tmp_path}", "--only=cohorts"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("--scale=full: JAX has no accelerator here")
    assert len(printed.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_the_folder_of_measurements(capsys):
    assert command.main(["--scale=dry", f"--results={results.FOLDER}"]) == 2
    assert "a dry run makes none" in capsys.readouterr().err


def test_listing_shows_parts_and_cases(capsys):
    assert command.main(["--list", "--only=cohorts"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("cohorts: ")
    assert "d64_M1 d64_M8 d64_M32 d64_M128" in printed


@pytest.mark.slow
def test_a_part_is_measured_in_a_separate_process_and_resumed(capfd, tmp_path):
    before = sorted(results.FOLDER.iterdir())
    arguments = ["--scale=dry", "--only=cohorts", f"--results={tmp_path}"]
    assert command.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "cohorts d16_M2: " in printed
    entry = json.loads((tmp_path / "cohorts-cpu.json").read_text())["cases"]["d16_M2"]
    assert entry["measured"]["tokens_per_s"] == pytest.approx(2 * 8 * 8 / (entry["measured"]["step_ms"] / 1e3))
    assert entry["measured"]["memory_gb"] > 0
    assert command.main(arguments) == 0
    assert "cohorts: 1 of 1 cases have results in" in capfd.readouterr().out
    assert sorted(results.FOLDER.iterdir()) == before


@pytest.mark.slow
def test_a_part_that_used_its_time_share_resumes_after_the_others(monkeypatch, tmp_path):
    calls = []

    def measure(part, *_):
        calls.append(part.NAME)
        return child.UNFINISHED if calls == ["cohorts"] else child.DONE

    monkeypatch.setattr(command, "_measure", measure)
    monkeypatch.setattr(command, "_machine", lambda _: {"platform": "gpu", "device": "x", "jax": "1", "commit": "c"})
    assert command.main([f"--results={tmp_path}", "--only=cohorts", "--only=loop"]) == 0
    assert calls == ["cohorts", "loop", "cohorts"]


@pytest.mark.slow
def test_an_exhausted_time_limit_is_reported_with_exit_code_75(capfd, tmp_path):
    assert command.main(["--scale=dry", "--only=models", f"--results={tmp_path}", "--minutes=0.00001"]) == 75
    assert "models: time is up" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
