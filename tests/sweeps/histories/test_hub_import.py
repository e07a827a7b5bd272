"""Histories that are imported from a hub equal those imported from folders, however often the import is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from olmo_jax.checkpoint import load_run, run_steps
from olmo_jax.config import ModelConfig
from olmo_jax.config.presets import PYTHIA
from sweeps import cli
from tests.sweeps.histories.conftest import shard
from tests.sweeps.models.publish import CONFIG, SMALL, publish

STEPS = (0, 10, 20, 30)


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "looked_at.py"
    every = CONFIG.replace("evaluation = dict(", "evaluation = dict(all_checkpoints=True, ")
    path.write_text(every.format(corpus=str(corpus)))
    return path


@pytest.fixture(scope="module")
def llama(vary):
    small = SMALL | {"rotary_fraction": 1.0}
    return vary(ModelConfig(norm="rms_norm", mlp="swiglu"), small)


@pytest.fixture(scope="module")
def published(corpus, vary, tmp_path_factory):
    """Four revisions of a small Pythia, the second in two files, and main."""
    folder = tmp_path_factory.mktemp("published") / "pythia-small"
    names = {f"step{step}": step + 1 for step in STEPS} | {"main": 31}
    publish(folder, vary(PYTHIA["14m-sequential"], SMALL), corpus, names)
    shard(folder / "step10")
    return folder


@pytest.fixture(scope="module")
def local(published, config, tmp_path_factory):
    """The same revisions, imported from their folder and evaluated."""
    workdir = tmp_path_factory.mktemp("local") / "work"
    assert run("import", published, f"--config={config}", f"--workdir={workdir}") == 0
    assert run("evaluate", f"--workdir={workdir}") == 0
    return workdir


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def folder_of(workdir):
    (folder,) = (workdir / "runs").iterdir()
    return folder


def results_of(workdir):
    """Return the stored results of a run by file, without clock times."""
    results = {p.name: json.loads(p.read_text()) for p in sorted((folder_of(workdir) / "results").iterdir())}
    return {name: {k: v for k, v in result.items() if k != "seconds"} for name, result in results.items()}


def test_a_history_from_the_hub_equals_that_of_its_folders(published, local, config, serve, tmp_path, capsys):
    hub = serve(made__pythia=published)
    work = tmp_path / "work"
    name = "--name=pythia-small"
    capsys.readouterr()
    assert run("import", "hub:made/pythia", name, f"--config={config}", f"--workdir={work}", "--evaluate") == 0
    assert capsys.readouterr().out.startswith(f"{folder_of(local).name}\n")
    assert (folder_of(work) / "metrics.jsonl").read_text() == (folder_of(local) / "metrics.jsonl").read_text()
    # Without the results that need all checkpoints at once.
    ours, theirs = results_of(work), results_of(local)
    assert {name: result for name, result in theirs.items() if not re.match("cka|saturation", name)} == ours
    origin = json.loads((folder_of(work) / "imported.json").read_text())
    expected = json.loads((folder_of(local) / "imported.json").read_text())["revisions"]
    for step, entry in origin["revisions"].items():
        assert entry["sha256"] == expected[step]["sha256"]
        assert entry["verdict"] == "ok"
    assert origin["source"] == "hub:made/pythia"
    # Only the last one's weights are kept, and nothing that was fetched.
    assert run_steps(work, folder_of(work).name) == [30]
    assert not (work / "fetched").exists()
    table = pd.read_parquet(work / "results.parquet")
    assert table["step"].tolist() == list(STEPS)
    assert table["lm_loss/in_domain"].notna().all()
    assert table["verdict"].tolist() == ["ok"] * 4
    fetched = dict(hub.sent)
    assert run("import", "hub:made/pythia", name, f"--config={config}", f"--workdir={work}") == 0
    again = {file: count - fetched[file] for file, count in hub.sent.items()}
    assert again["made/pythia/model.safetensors"] < fetched["made/pythia/model.safetensors"] / 3  # the audit's


def test_kept_checkpoints_are_those_of_the_folders(published, local, config, serve, tmp_path):
    serve(made__pythia=published)
    work = tmp_path / "work"
    how = ("--name=pythia-small", f"--config={config}", f"--workdir={work}")
    assert run("import", "hub:made/pythia", "--revisions=step0,step1*", *how) == 0
    assert run_steps(work, folder_of(work).name) == [10]
    assert run("import", "hub:made/pythia", "--keep", *how) == 0
    run_id = folder_of(work).name
    assert run_steps(work, run_id) == list(STEPS)
    for step in STEPS:
        ours, theirs = (load_run(workdir, folder_of(workdir).name, step)[1] for workdir in (work, local))
        for path in ("embedding", "unembedding"):
            np.testing.assert_array_equal(ours[path], theirs[path])


def test_faults_of_the_history_are_in_the_table(published, config, serve, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    shutil.rmtree(folder / "step20")
    shutil.copytree(folder / "step30", folder / "step20")
    serve(made__pythia=folder)
    work = tmp_path / "work"
    assert run("import", "hub:made/pythia", f"--config={config}", f"--workdir={work}") == 0
    assert "hub:made/pythia at step20 is duplicate: has the same files of weights as step30" in capsys.readouterr().err
    assert run("report", f"--workdir={work}") == 0
    assert pd.read_parquet(work / "results.parquet")["verdict"].tolist() == ["ok", "ok", "duplicate", "ok"]


@pytest.mark.slow
def test_what_was_kept_stays_and_what_was_dropped_is_fetched_again_to_be_evaluated(published, config, serve, tmp_path):
    serve(made__pythia=published)
    work = tmp_path / "work"
    how = (f"--config={config}", f"--workdir={work}")
    assert run("import", "hub:made/pythia", "--revisions=step0,step10", *how) == 0
    assert run_steps(work, folder_of(work).name) == [10]
    assert run("import", "hub:made/pythia", "--revisions=step0,step10,step20", "--evaluate", *how) == 0
    assert {"lm_loss@0.json", "lm_loss@10.json", "lm_loss@20.json"} <= results_of(work).keys()
    assert run_steps(work, folder_of(work).name) == [20]
    assert run("import", "hub:made/pythia", "--keep", *how) == 0
    assert run_steps(work, folder_of(work).name) == list(STEPS)
    assert run("import", "hub:made/pythia", "--evaluate", *how) == 0
    assert run_steps(work, folder_of(work).name) == list(STEPS)
    assert len([name for name in results_of(work) if name.startswith("lm_loss@")]) == 4


def test_a_repository_without_a_history_is_imported_as_one_checkpoint(published, config, serve, tmp_path):
    shutil.copytree(published / "step30", tmp_path / "single" / "main")
    serve(made__single=tmp_path / "single")
    work = tmp_path / "work"
    assert run("import", "hub:made/single", f"--config={config}", f"--workdir={work}") == 0
    assert run_steps(work, folder_of(work).name) == [1]


@pytest.mark.slow
def test_without_a_network_a_history_is_imported_from_the_cache(published, config, serve, tmp_path):
    hub = serve(made__pythia=published)
    home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    listed = "[s('made/pythia', revision=f'step{n}') for n in (0, 20)]"
    steps = f"from huggingface_hub import snapshot_download as s; {listed}"
    subprocess.run([sys.executable, "-c", steps], env=os.environ | home, check=True, capture_output=True)
    offline = os.environ | home | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    work = tmp_path / "work"
    command = [sys.executable, "-m", "sweeps.cli", "import", "hub:made/pythia", f"--config={config}"]
    subprocess.run([*command, f"--workdir={work}"], env=offline, check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder_of(work) / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [0, 20]
    origin = json.loads((folder_of(work) / "imported.json").read_text())
    assert origin["revisions"]["20"]["name"] == "step20"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["revisions", "repositories"])
def test_seeds_become_replicates(published, config, serve, tmp_path, kind):
    """Seeds in the names of revisions, as DataDecide has them, or of repositories, as PolyPythias has."""
    sources = {1: "step0", 2: "step10"}
    if kind == "revisions":
        for seed, source in sources.items():
            for step in (0, 10):
                shutil.copytree(
                    published / source, tmp_path / "one" / f"step{step}-seed-{'default' if seed == 1 else 'x'}"
                )
        serve(made__model=tmp_path / "one")
        arguments = ["hub:made/model"]
    else:
        folders = {}
        for seed, source in sources.items():
            shutil.copytree(published / source, tmp_path / f"{seed}" / "step10")
            folders[f"made__model-seed{seed}"] = tmp_path / f"{seed}"
        serve(**folders)
        arguments = ["hub:made/model-seed{1..2}"]
    work = tmp_path / "work"
    assert run("import", *arguments, f"--config={config}", f"--workdir={work}") == 0
    assert run("report", f"--workdir={work}") == 0
    table = pd.read_parquet(work / "results.parquet")
    assert table["run_id"].nunique() == 2
    assert table["configuration"].nunique() == 1
    assert sorted(table["config.init_seed"].unique()) == [1, 2]
    assert {re.sub("-[0-9a-f]*$", "", run_id) for run_id in table["run_id"]} == {"model"}


def test_what_an_import_would_fetch_is_told(published, serve, tmp_path, capsys):
    hub = serve(made__pythia=published)
    capsys.readouterr()
    work = f"--workdir={tmp_path / 'work'}"
    assert run("import", "hub:made/pythia", "--dry-run", "--revisions=2", work) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["step0", "step30"]
    assert "2 revisions, 0.1 MB to fetch, 0 s at 100 Mbit/s" in lines[-1]
    assert not (tmp_path / "work").exists()
    assert sum(hub.sent.values()) == 0


def pickled(folder):
    (folder / "step20" / "model.safetensors").rename(folder / "step20" / "pytorch_model.bin")


def without_tokenizer(folder):
    for file in folder.glob("*/tokenizer.json"):
        file.unlink()


def other_width(folder):
    settings = json.loads((folder / "step20" / "config.json").read_text())
    (folder / "step20" / "config.json").write_text(json.dumps(settings | {"hidden_size": 32}))


def two_stages(folder):
    shutil.copytree(folder / "step0", folder / "stage2-step0")


def one_step_twice(folder):
    shutil.copytree(folder / "step20", folder / "step20-unsharded")


def cut_short(folder):
    file = folder / "step20" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "words"),
    [
        (pickled, [], 1, ["at step20", "pytorch_model.bin, a pickle, which can run any code"]),
        (without_tokenizer, [], 2, ["has no tokenizer.json"]),
        (other_width, [], 2, ["is another model than"]),
        (None, ["--revisions=step5"], 2, ["no revision is called step5"]),
        (None, ["--step=3"], 2, ["--step=3", "leave it out"]),
        (None, ["hub:made/none"], 1, ["hub:made/none", "no such repository"]),
        (None, ["hub:made/other"], 2, ["import others one by one"]),
        (two_stages, [], 2, ["several stages", "--revisions='stage2-*'"]),
        (one_step_twice, [], 2, ["step20 and step20-unsharded are of one step", "--revisions"]),
        (cut_short, [], 1, ["at step20", "damaged at its source", "--revisions"]),
        (None, ["--revisions=,"], 2, ["names no revision"]),
    ],
)
def test_bad_input_is_one_line(published, config, serve, tmp_path, capsys, spoil, arguments, code, words):
    folder = tmp_path / "copy"
    shutil.copytree(published, folder)
    if spoil:
        spoil(folder)
    serve(made__pythia=folder, made__other=folder)
    capsys.readouterr()
    work = tmp_path / "work"
    assert run("import", "hub:made/pythia", *arguments, f"--config={config}", f"--workdir={work}") == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("olmo-jax: ")]
    assert all(word in line for word in words), line
    assert not (work / "runs").exists()


def test_a_folder_takes_no_argument_of_the_hub(published, config, tmp_path, capsys):
    for more in ("--dry-run", "--keep", "--evaluate", "--revisions=3", str(published)):
        assert run("import", published, more, f"--config={config}", f"--workdir={tmp_path / 'work'}") == 2
    assert "only repositories of the hub" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "pythia"])
def test_an_import_that_is_killed_three_times_equals_an_undisturbed_one(
    family, corpus, vary, llama, config, serve, tmp_path
):
    architecture = llama if family == "llama" else vary(PYTHIA["14m-sequential"], SMALL)
    folder = publish(tmp_path / "small", architecture, corpus, {f"step{10 * i}": i for i in range(20)})
    how = (f"--config={config}", "--name=small")
    assert run("import", folder, *how, f"--workdir={tmp_path / 'local'}") == 0
    assert run("evaluate", f"--workdir={tmp_path / 'local'}") == 0
    hub = serve(made__small=folder)
    work = tmp_path / "work"
    command = [sys.executable, "-m", "sweeps.cli", "import", "hub:made/small", *how, "--evaluate", f"--workdir={work}"]

    def done():
        files = list((work / "runs").glob("*/metrics.jsonl"))
        return len(files[0].read_text().splitlines()) if files else 0

    for reached in (3, 9, 15):
        hub.broken = 1
        with subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and done() < reached:
                time.sleep(0.02)
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
    subprocess.run(command, env=os.environ, check=True, capture_output=True)
    assert (folder_of(work) / "metrics.jsonl").read_text() == (
        folder_of(tmp_path / "local") / "metrics.jsonl"
    ).read_text()
    ours, theirs = results_of(work), results_of(tmp_path / "local")
    assert {name: result for name, result in theirs.items() if not re.match("cka|saturation", name)} == ours
    assert run_steps(work, folder_of(work).name) == [190]
