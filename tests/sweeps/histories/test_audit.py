"""Planted faults are found by `olmo-jax audit`, in folders and on a hub, and none in a clean history."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sweeps import cli
from tests.sweeps.histories.conftest import shard, swap

STEPS = list(range(0, 120, 10))


def audit(source, capsys, *more):
    """Return the exit code and the parsed JSON."""
    capsys.readouterr()
    code = cli.main(["audit", str(source), "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def faults(found):
    return {row["revision"]: row["verdict"] for row in found["revisions"] if row["verdict"] != "ok"}


def test_a_clean_history_has_no_fault(history, capsys):
    folder = history(STEPS)
    code, found = audit(folder, capsys)
    assert code == 0
    assert [row["step"] for row in found["revisions"]] == STEPS
    assert (faults(found), found["missing"]) == ({}, [])
    assert found["sampled"] == "model.layers.1.mlp.weight"
    sample = load_file(folder / "step30" / "model.safetensors")[found["sampled"]].astype(np.float32)[:32]
    row = found["revisions"][3]
    assert row["norm"] == pytest.approx(np.linalg.norm(sample))
    before = load_file(folder / "step20" / "model.safetensors")[found["sampled"]].astype(np.float32)[:32]
    assert row["to_previous"] == pytest.approx(np.linalg.norm(sample - before), rel=1e-5)
    s = np.linalg.svd(sample, compute_uv=False)
    p = s / s.sum()
    assert row["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)


def plant(folder):
    """Plant every fault; return the expected verdicts and missing steps."""
    shutil.rmtree(folder / "step90")
    swap(folder / "step40", folder / "step60")
    shutil.rmtree(folder / "step0")
    shutil.copytree(folder / "step110", folder / "step0")  # the final weights
    content = (folder / "step20" / "model.safetensors").read_bytes()
    (folder / "step20" / "model.safetensors").write_bytes(content[:-1000])
    return {"step0": "duplicate", "step20": "truncated", "step40": "out_of_order", "step60": "out_of_order"}, [90]


def test_every_planted_fault_is_found_and_no_other(history, capsys):
    folder = history(STEPS)
    expected, lost = plant(folder)
    code, found = audit(folder, capsys)
    assert code == 1
    assert (faults(found), found["missing"]) == (expected, lost)
    details = {row["revision"]: row["detail"] for row in found["revisions"]}
    assert details["step0"] == "has the same files of weights as step110"
    assert re.fullmatch(r"model.safetensors has 5\d\d,\d{3} of its 5\d\d,\d{3} bytes", details["step20"])
    assert details["step40"].startswith("its weights belong after step")
    assert cli.main(["audit", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "missing: 90" in out
    assert f"{folder}: 11 revisions, 4 with a problem" in out


@pytest.mark.slow
def test_a_history_on_the_hub_is_audited_with_little_read(history, serve, capsys):
    folder = history(range(0, 1500, 10))
    hub = serve(made__pythia=folder)
    code, found = audit("hub:made/pythia", capsys)
    assert (code, faults(found), found["missing"]) == (0, {}, [])
    sizes = sum((path / "model.safetensors").stat().st_size for path in folder.iterdir())
    assert found["bytes"] == sizes
    assert found["bytes_read"] == sum(hub.sent.values()) < 0.01 * sizes
    # Of each revision the list of its files, a header and a sample, the latter two by redirect.
    assert hub.requests <= 150 * 5 + 10
    assert hub.most_at_once <= 8
    _, locally = audit(folder, capsys)
    for key in ("norm", "effective_rank", "to_previous"):
        assert [row[key] for row in found["revisions"]] == [row[key] for row in locally["revisions"]]


def test_planted_faults_are_found_on_the_hub(history, serve, capsys):
    folder = history(STEPS)
    expected, lost = plant(folder)
    serve(made__pythia=folder)
    code, found = audit("hub:made/pythia", capsys)
    assert (code, faults(found), found["missing"]) == (1, expected, lost)


@pytest.mark.parametrize("spoil", ["short", "lost", "index"])
def test_checkpoints_in_several_files_are_checked_against_their_index(history, serve, capsys, spoil):
    folder = history(STEPS[:6])
    for path in folder.iterdir():
        shard(path)
    assert audit(folder, capsys)[0] == 0
    part = folder / "step30" / "model-00002-of-00002.safetensors"
    index = folder / "step30" / "model.safetensors.index.json"
    if spoil == "short":
        part.write_bytes(part.read_bytes()[:-1])
    elif spoil == "lost":
        part.unlink()
    else:
        index.write_text("<html>")
    serve(made__sharded=folder)
    for source in (folder, "hub:made/sharded"):
        code, found = audit(source, capsys)
        assert (code, faults(found)) == (1, {"step30": "truncated"})
        words = {"short": "bytes", "lost": "lacks model-00002", "index": "isn't an index"}[spoil]
        assert words in found["revisions"][3]["detail"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x10\0\0\0", "ends within its header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n", "is a Git LFS pointer"),
        (b"\xff" * 40, "doesn't begin as"),
        (b"\x04\0\0\0\0\0\0\0nope", "doesn't begin as"),
        (b"\x02\0\0\0\0\0\0\0[]", "doesn't begin as"),
    ],
)
def test_files_that_are_no_weights_are_named(history, capsys, content, words):
    folder = history(STEPS[:5])
    (folder / "step20" / "model.safetensors").write_bytes(content)
    code, found = audit(folder, capsys)
    assert (code, faults(found)) == (1, {"step20": "truncated"})
    assert words in found["revisions"][2]["detail"]


def test_weights_that_are_not_finite_and_folders_without_weights_are_named(history, capsys):
    folder = history(STEPS[:6])
    file = folder / "step30" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.weight"][0, 0] = np.nan
    save_file(tensors, file)
    (folder / "step10" / "model.safetensors").unlink()
    _, found = audit(folder, capsys)
    assert faults(found) == {"step10": "truncated", "step30": "not_finite"}
    assert found["revisions"][1]["detail"] == "has no weights"


def test_pickles_are_compared_by_their_hashes_alone(history, capsys):
    folder = history(STEPS[:6])
    for i, path in enumerate(sorted(folder.iterdir())):
        (path / "model.safetensors").unlink()
        (path / "pytorch_model.bin").write_bytes(bytes([i]) * 5000)
    assert audit(folder, capsys)[0] == 0
    (folder / "step20" / "pytorch_model.bin").write_bytes(bytes([1]) * 5000)
    (folder / "step30" / "pytorch_model.bin").write_bytes(bytes(3000))
    _, found = audit(folder, capsys)
    assert faults(found) == {"step20": "duplicate", "step30": "truncated"}
    assert found["revisions"][2]["detail"] == "has the same files of weights as step10"
    assert "only pickles" in found["revisions"][0]["detail"]


def test_states_of_the_trainer_are_no_weights(history, capsys):
    folder = history(STEPS[:6])
    for path in folder.iterdir():
        (path / "rng_state.pth").write_bytes(b"the same in all")
        (path / "training_args.bin").write_bytes(b"this too")
    assert audit(folder, capsys)[0] == 0


def test_revisions_without_a_step_are_named(history, capsys):
    folder = history([0, 10, 20])
    shutil.copytree(folder / "step10", folder / "ema")
    _, found = audit(folder, capsys)
    assert found["unnamed"] == ["ema"]
    cli.main(["audit", str(folder)])
    assert "left out, as their names give no step: ema" in capsys.readouterr().out


def test_seeds_are_separate_trainings(history, capsys, tmp_path):
    for seed in (1, 2):
        for path in history([0, 10, 20, 30], seed, f"part{seed}").iterdir():
            shutil.move(path, tmp_path / f"{path.name}-seed-{seed}")
    folder = tmp_path / "both"
    folder.mkdir()
    for path in tmp_path.glob("step*"):
        shutil.move(path, folder / path.name)
    code, found = audit(folder, capsys)
    assert code == 0
    assert [(row["seed"], row["step"]) for row in found["revisions"]] == [
        (seed, step) for seed in ("1", "2") for step in (0, 10, 20, 30)
    ]


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_the_figure_marks_what_is_wrong(history, capsys, tmp_path, suffix):
    folder = history(STEPS)
    plant(folder)
    assert cli.main(["audit", str(folder), f"--figure={tmp_path / 'audit'}{suffix}"]) == 1
    drawn = (tmp_path / f"audit{suffix}").read_text()
    assert "out_of_order" in drawn
    assert "effective rank" in drawn


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{t}/none"], 1, "no such folder"),
        (["{t}/empty"], 1, "has no revision, and no revision whose name gives a step"),
        (["{t}/file"], 1, "is a file"),
        (["hub:pythia"], 1, "isn't a repository"),
        (["{h}", "--revisions=step5"], 2, "no revision is called step5"),
        (["{h}", "--figure=x.gif"], 2, "--figure"),
        (["{h}", "--figure=none/x.svg"], 2, "its folder doesn't exist"),
    ],
)
def test_bad_input_is_one_line(history, capsys, tmp_path, arguments, code, words):
    folder = history([0, 10])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert cli.main(["audit", *(a.format(t=tmp_path, h=folder) for a in arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert words in line
