"""Result files: which cases count as done, which are measured again, how damaged files are reported."""

import json
import types

import pytest

from benchmarks.gpu import child, results, sweep
from benchmarks.gpu.part import Column, UnfinishedError, UsageError, all_parts, chosen_parts, missing_modules
from olmo_jax.config.validation import ConfigError
from olmo_jax.logs import metrics

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "jax": "0.11.2", "jaxlib": "0.11.2", "commit": "abc", "driver": "1"}
FILE = "squares-nvidia-h100-80gb-hbm3.json"


def squares(measure=None, **changes):
    """A part whose cases are numbers and which measures their squares; `calls` lists the measured cases."""
    calls = []

    def square(case):
        calls.append(case["number"])
        return {"square": case["number"] ** 2}

    fields = {
        "NAME": "squares",
        "TITLE": "Squares.",
        "VERSION": 1,
        "NEEDS": (),
        "COLUMNS": (Column("square", "square", "d"),),
        "cases": lambda scale: {f"n{i}": {"number": i} for i in (2, 3)},
        "measure": measure or square,
        "calls": calls,
    }
    return types.SimpleNamespace(**(fields | changes))


def run(part, folder, machine=MACHINE, seconds=60.0):
    return child.measure_part(part, "full", folder, machine, seconds)


def measured(folder):
    return {name: entry["measured"] for name, entry in json.loads((folder / FILE).read_text())["cases"].items()}


def test_a_result_records_device_versions_command_commit_and_date(tmp_path):
    assert run(squares(), tmp_path) == child.DONE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    entry = json.loads((tmp_path / FILE).read_text())["cases"]["n3"]
    assert entry["measured"] == {"square": 9}
    assert entry["machine"] == MACHINE
    assert entry["command"] == "python -m benchmarks.gpu --only=squares"
    assert len(entry["date"]) == len("2026-01-01")


def test_a_case_with_a_result_is_not_measured_again(tmp_path, capsys):
    run(squares(), tmp_path)
    again = squares()
    assert run(again, tmp_path) == child.DONE
    assert again.calls == []
    assert "squares: 2 of 2 cases have results in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"VERSION": 2}, MACHINE),
        ({}, MACHINE | {"jax": "0.12.0"}),
        ({"cases": lambda scale: {"n2": {"number": 2, "size": 1}, "n3": {"number": 3, "size": 1}}}, MACHINE),
    ],
    ids=["part", "jax", "shape"],
)
def test_a_changed_version_or_shape_is_measured_again(tmp_path, changes, machine):
    run(squares(), tmp_path)
    other = squares(**changes)
    run(other, tmp_path, machine)
    assert other.calls == [2, 3]


def test_a_case_that_was_stopped_is_continued_by_the_next_start(tmp_path, capsys):
    starts = []

    def resumed(case):
        starts.append(case["number"])
        if len(starts) < 3:
            raise UnfinishedError("stopped at a checkpoint")
        return {"square": case["number"] ** 2}

    part = squares(resumed)
    assert [run(part, tmp_path) for _ in range(3)] == [child.UNFINISHED, child.UNFINISHED, child.DONE]
    assert starts == [2, 2, 2, 3]
    assert "squares n2: stopped at a checkpoint; run the same command to continue with it" in capsys.readouterr().out


@pytest.mark.slow
def test_a_command_that_takes_too_long_is_stopped_at_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_SECONDS", 25.0)
    with pytest.raises(UnfinishedError, match="stopped at a checkpoint"):
        sweep.run(["train", "--config=demo"], tmp_path / "work")
    with pytest.raises(RuntimeError, match="ended with exit code 2: .*no key 'nope'"):
        sweep.run(["train", "--config=demo", "--config.nope=1"], tmp_path / "other")


def test_the_seconds_of_a_sweep_are_those_of_all_its_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda arguments, workdir: None)
    runs = tmp_path / "runs" / "a"
    runs.mkdir(parents=True)
    (runs / "config.json").write_text(json.dumps({"folder": "cohort"}))
    rows = [("steps", 2.0), ("compile", 3.0), ("steps", 1.0)]
    numbers = dict.fromkeys(metrics._STEPS_FIELDS, 1)
    lines = [json.dumps(numbers | {"step": 1, "event": event, "seconds": seconds}) for event, seconds in rows]
    (runs / "timings.jsonl").write_text("\n".join([*lines, '{"step": 1, "ev']))  # the last is cut off by a kill
    stages = [{"stage": "train", "seconds": 5.0}, {"stage": "train", "seconds": 2.0}, {"stage": "report", "seconds": 1}]
    (tmp_path / "stages.jsonl").write_text("\n".join(map(json.dumps, stages)))
    seconds = sweep.carry_out(["run"], tmp_path)
    assert (seconds["total_s"], seconds["steps_s"], seconds["compile_s"], seconds["runs"]) == (8, 3, 3, 1)


def test_a_changed_commit_is_not_measured_again(tmp_path):
    run(squares(), tmp_path)
    other = squares()
    run(other, tmp_path, MACHINE | {"commit": "def"})
    assert other.calls == []


def test_each_device_has_a_separate_result_file(tmp_path):
    run(squares(), tmp_path)
    run(squares(), tmp_path, MACHINE | {"device": "NVIDIA H200"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "squares-nvidia-h200.json"]


def test_a_part_stopped_by_the_time_limit_resumes_at_the_next_case(tmp_path):
    first, second = squares(), squares()
    assert run(first, tmp_path, seconds=-1.0) == child.UNFINISHED
    assert first.calls == []
    results.record(
        tmp_path / FILE,
        first,
        "n2",
        results.entry_of(first, results.key_of(first, {"number": 2}, MACHINE), MACHINE, "full")
        | {"measured": {"square": 4}},
    )
    assert run(second, tmp_path) == child.DONE
    assert second.calls == [3]


def test_a_failed_case_leaves_no_result_and_the_others_run(tmp_path, capsys):
    def fails_at_2(case):
        if case["number"] == 2:
            raise RuntimeError("the kernel\nfell over")
        return {"square": case["number"] ** 2}

    assert run(squares(measure=fails_at_2), tmp_path) == child.FAILED
    assert measured(tmp_path) == {"n3": {"square": 9}}
    assert "squares n2: failed: the kernel fell over" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [ConfigError("needs 90 GB of a device"), RuntimeError("RESOURCE_EXHAUSTED: out of memory"), MemoryError()]
)
def test_out_of_memory_is_a_result(tmp_path, error):
    def measure(case):
        raise error

    assert run(squares(measure=measure), tmp_path) == child.DONE
    assert all("does_not_fit" in entry for entry in results.read(tmp_path / FILE).values())
    again = squares()
    run(again, tmp_path)
    assert again.calls == []


@pytest.mark.parametrize("content", ["", '{"part": "squ', "\0" * 64, "[]", '{"cases": 3}'])
def test_a_damaged_result_file_is_reported_once_and_measured_again(tmp_path, capsys, content):
    (tmp_path / FILE).write_text(content)
    part = squares()
    assert run(part, tmp_path) == child.DONE
    assert part.calls == [2, 3]
    assert measured(tmp_path) == {"n2": {"square": 4}, "n3": {"square": 9}}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert FILE in lines[0]
    assert "measured again" in lines[0]


def test_one_damaged_case_leaves_the_other_results_of_its_file(tmp_path, capsys):
    run(squares(), tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    content["cases"]["n2"] = {"measured": 4}
    (tmp_path / FILE).write_text(json.dumps(content))
    part = squares()
    run(part, tmp_path)
    assert part.calls == [2]
    assert "measured again" in capsys.readouterr().err


def test_a_file_in_place_of_the_result_folder_is_refused(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(UsageError, match="results can't be written there .* --results"):
        results.check_writable(tmp_path / "results")


def test_parts_are_found_by_listing_the_package():
    parts = all_parts()
    assert list(parts) == sorted(parts)
    assert {"cohorts", "loop", "processes", "models", "geometry", "gptq", "evaluation", "grokking"} <= parts.keys()
    assert {"paper", "do_rank"} <= parts.keys()
    for part in parts.values():
        for scale in ("full", "dry"):
            cases = part.cases(scale)
            assert cases
            assert json.loads(json.dumps(cases)) == cases


def test_an_unknown_part_is_refused_with_the_known_names():
    with pytest.raises(UsageError, match="--only=nope: there is no such part; choose from cohorts, .*processes"):
        chosen_parts(["nope"])


def test_missing_modules_are_named():
    assert missing_modules(squares(NEEDS=("json", "no_such_module"))) == ["no_such_module"]
