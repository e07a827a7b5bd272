"""Imported models through the command line: a history of revisions, evaluated and exported like a run of our own."""

import contextlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from etils import epath
from safetensors.numpy import load_file, save_file

from olmo_jax import hf, model
from olmo_jax.checkpoint import load_run, run_steps
from olmo_jax.config import ConfigError
from olmo_jax.config.presets import OLMO, PYTHIA
from olmo_jax.data.tokenizer import train_bpe
from olmo_jax.weights import WeightsError
from sweeps import cli
from sweeps.models.import_run import _plain, revisions
from sweeps.report import export
from tests.olmo_jax.hf.gguf_files import convert, tokenizer_metadata
from tests.sweeps.models.publish import CONFIG, SMALL, publish

STEPS = {"step1": 1, "step4-tokens8K": 4, "step16-tokens32K": 16}


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "looked_at.py"
    path.write_text(CONFIG.format(corpus=str(corpus)))
    return path


@pytest.fixture(scope="module")
def published(corpus, vary, tmp_path_factory):
    """A folder of revisions of a small sequential Pythia, each with its tokenizer, as downloaded."""
    folder = tmp_path_factory.mktemp("published") / "pythia-small"
    return publish(folder, vary(PYTHIA["14m-sequential"], SMALL), corpus, STEPS)


def run(*arguments):
    return cli.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def imported(published, config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imported") / "work"
    assert run("import", published, f"--config={config}", f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture(scope="module")
def run_id(imported):
    (path,) = (imported / "runs").iterdir()
    return path.name


def test_revisions_become_one_run_with_a_history(imported, published, run_id):
    assert run_id.startswith("pythia-small-")
    assert run_steps(imported, run_id) == [1, 4, 16]
    for name, step in STEPS.items():
        expected_config, expected = hf.import_checkpoint(published / name)
        config, params = load_run(imported, run_id, step)
        assert config == expected_config
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    rows = [json.loads(line) for line in (imported / "runs" / run_id / "metrics.jsonl").open()]
    assert [(row["step"], row["tokens"]) for row in rows] == [(1, None), (4, 8000), (16, 32000)]
    assert len({row["unembedding/effective_rank"] for row in rows}) == 3
    assert all("final_states/mean_cosine" in row for row in rows)
    origin = json.loads((imported / "runs" / run_id / "imported.json").read_text())
    assert [origin["revisions"][str(step)]["name"] for step in STEPS.values()] == list(STEPS)


def test_imported_runs_are_evaluated_tabulated_and_reported(
    imported, published, config, run_id, capsys, monkeypatch, tmp_path
):
    # Figures don't depend on the origin of a run, and test_cli covers those of a sweep.
    monkeypatch.setattr(export, "write_figures_beside", lambda *_: contextlib.nullcontext())
    assert run("import", published, f"--config={config}", f"--workdir={imported}", "--run") == 0
    assert run("status", f"--workdir={imported}") == 0
    out = capsys.readouterr().out
    assert f"Report: {imported / 'report' / 'index.html'}" in out
    assert "xxx" in out
    assert "all that is trained is evaluated" in out
    table = pd.read_parquet(imported / "results.parquet")
    assert table["step"].tolist() == [1, 4, 16]
    assert table["final"].tolist() == [False, False, True]
    assert table["tokens"].fillna(-1).tolist() == [-1, 8000, 32000]
    assert table["lm_loss/in_domain"].notna().all()
    last = table[table["final"]].iloc[0]
    for column in (
        "round_to_nearest_4/macro",
        "finetune_code_lr0.01/forgetting",
        "unembedding_gauge_fixed/mean_cosine",
    ):
        assert np.isfinite(last[column])
    assert last["config.imported"] == "GPTNeoXForCausalLM"
    assert not last["config.model.parallel"]
    # Its training settings are unknown, and our defaults must not be shown in their place.
    unknown = ("optimizer", "batch_size", "seed", "config.tokens", "weight_decay_dose")
    assert [c for c in table.columns if any(word in c for word in unknown)] == []
    assert run_id in (imported / "report" / "index.html").read_text()
    shown = pd.read_csv(imported / "report" / "tables" / "imported_losses.csv")
    assert shown["measured"].tolist()[::2] == ["Loss", "Rise after rounding weights to 4 bits"]
    expected = [last["lm_loss/macro"], last["round_to_nearest_4/rise/macro"]]
    np.testing.assert_allclose(shown["nats_per_token"][::2], expected)
    geometry = pd.read_csv(imported / "report" / "tables" / "imported_geometry.csv").set_index("metric")
    fixed = last["unembedding_gauge_fixed/mean_cosine"]
    assert geometry.loc["mean_cosine", "unembedding_gauge_fixed"] == pytest.approx(fixed)
    shutil.copytree(imported, tmp_path / "copy", ignore=shutil.ignore_patterns("cohorts", "report", "results.*"))
    assert run("report", f"--workdir={tmp_path / 'copy'}") == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "copy" / "results.parquet"), table)


@pytest.mark.slow
def test_repeating_an_import_keeps_runs_and_adds_new_revisions(published, config, tmp_path, capsys):
    folder = pathlib.Path(shutil.copytree(published, tmp_path / "pythia-small"))
    moved = shutil.move(folder / "step4-tokens8K", tmp_path / "aside")
    (folder / "step1" / "tokenizer.json").unlink()  # one of all revisions is enough
    arguments = ("import", folder, f"--config={config}", f"--workdir={tmp_path / 'work'}")
    assert run(*arguments) == 0
    (place,) = (tmp_path / "work" / "runs").iterdir()
    assert run_steps(tmp_path / "work", place.name) == [1, 16]
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "work" / "cohorts").rglob("*") if p.is_file()}
    shutil.move(moved, folder / "step4-tokens8K")
    assert run(*arguments) == 0
    assert run_steps(tmp_path / "work", place.name) == [1, 4, 16]
    rows = [json.loads(line) for line in (place / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 4, 16]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())

    # A second model beside it.
    other = (
        "import",
        folder / "step16-tokens32K",
        "--name=other",
        f"--config={config}",
        f"--workdir={tmp_path / 'work'}",
    )
    assert run(*other) == 0
    assert len(list((tmp_path / "work" / "runs").iterdir())) == 2
    assert run("status", f"--workdir={tmp_path / 'work'}") == 0
    assert run("report", f"--workdir={tmp_path / 'work'}") == 0
    assert run("export", "*", f"--workdir={tmp_path / 'work'}", f"--to={tmp_path / 'out'}") == 1
    assert "matches 2 runs" in capsys.readouterr().err


def test_an_interrupted_import_resumes(published, config, tmp_path, monkeypatch):
    arguments = ("import", published, f"--config={config}", f"--workdir={tmp_path / 'work'}")
    import_checkpoint = hf.import_checkpoint

    def once_too_often(folder):
        if folder.name.startswith("step16"):
            raise KeyboardInterrupt
        return import_checkpoint(folder)

    monkeypatch.setattr(hf, "import_checkpoint", once_too_often)
    assert run(*arguments) == 75
    (place,) = (tmp_path / "work" / "runs").iterdir()
    assert run_steps(tmp_path / "work", place.name) == [1, 4]
    monkeypatch.undo()
    assert run(*arguments) == 0
    assert run_steps(tmp_path / "work", place.name) == [1, 4, 16]


@pytest.mark.slow
def test_geometry_and_generation_of_an_imported_run_and_of_its_folder(imported, published, run_id, capsys):
    assert run("geometry", imported, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert [(row["name"], row["gauge"]) for row in rows] == [
        ("embedding", "none"), ("unembedding", "none"), ("unembedding", "affine_layer_norm"),
    ]  # fmt: skip
    how = ("--prompt=the rank", "--tokens=8", "--json")
    assert run("generate", "pythia-*", f"--workdir={imported}", *how) == 0
    (ours,) = json.loads(capsys.readouterr().out)["continuations"]
    assert (ours["run"], ours["step"]) == (run_id, 16)
    assert run("generate", published / "step16-tokens32K", *how) == 0
    (theirs,) = json.loads(capsys.readouterr().out)["continuations"]
    assert ours["texts"] == theirs["texts"]
    assert run("generate", run_id, f"--workdir={imported}", "--step=1", *how) == 0
    assert json.loads(capsys.readouterr().out)["continuations"][0]["step"] == 1
    drawn = ("--temperature=1.5", "--top_p=0.9", "--samples=3", "--seed=4")
    assert run("generate", run_id, f"--workdir={imported}", *how, *drawn) == 0
    texts = json.loads(capsys.readouterr().out)["continuations"][0]["texts"]
    assert len(set(texts)) > 1
    assert run("generate", run_id, f"--workdir={imported}", "--prompt=the rank", "--tokens=4") == 0
    assert f"{run_id} at step 16:\n  the rank|" in capsys.readouterr().out


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_import_paths_may_use_home_brackets_and_links(published, run_id, imported, home, capsys):
    """As a snapshot in Hugging Face's cache: links to blobs without a suffix."""
    snapshot = home / "hub [x]" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted((published / "step16-tokens32K").iterdir())):
        (snapshot / file.name).symlink_to(shutil.copy(file, home / f"{i}"))
    how = ("--prompt=the rank", "--tokens=4", "--json")
    assert run("generate", "~/hub [x]/snapshots/abc", *how) == 0
    assert json.loads(capsys.readouterr().out)["continuations"][0]["texts"]
    assert [revision.step for revision in revisions(epath.Path(snapshot))] == [1]
    assert run("export", run_id, f"--workdir={imported}", "--to=~/out [x]") == 0
    assert (home / "out [x]" / "model.safetensors").exists()


def spoilt(folder, file, content):
    (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda f: spoilt(f, "tokenizer.json", bytes(50)), 2, ["tokenizer.json", "isn't a tokenizer.json"]),
        (lambda f: (f / "tokenizer.json").unlink(), 2, ["has no tokenizer.json"]),
        (lambda f: spoilt(f, "config.json", b"\xff" * 50), 2, ["config.json", "isn't a model's configuration"]),
        (
            lambda f: spoilt(f, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
            1,
            ["git lfs pull"],
        ),
        (lambda f: shutil.rmtree(f), 1, ["no such folder"]),
        (lambda f: (shutil.rmtree(f), f.touch()), 1, ["is a file; give the folder"]),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "import"])
def test_a_damaged_model_folder_is_one_line(published, config, tmp_path, capsys, verb, change, code, words):
    folder = pathlib.Path(shutil.copytree(published / "step1", tmp_path / "step1"))
    change(folder)
    more = ("--prompt=a",) if verb == "generate" else (f"--config={config}", f"--workdir={tmp_path / 'work'}")
    capsys.readouterr()
    assert run(verb, folder, *more) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"olmo-jax: {folder}")
    assert all(word in line for word in words), line


def test_a_prompt_that_is_not_utf8_is_refused(published, capsys):
    assert run("generate", published / "step1", "--prompt=a\udcff") == 2
    assert "olmo-jax: --prompt='a\\udcff': isn't UTF-8 at character 1" in capsys.readouterr().err


def test_an_overlong_name_is_shortened_to_a_valid_file_name():
    assert _plain("pythia-14m") == "pythia-14m"
    assert _plain("..a b/c\udcff") == "a_b_c_"
    assert _plain("x" * 242) == "x" * 242
    names = ["東京" * 120, "東京" * 121, "x" * 243]
    assert len({_plain(name) for name in names}) == 3
    assert max(len(_plain(name).encode()) for name in names) <= 242


def test_export_returns_the_imported_model(imported, published, run_id, tmp_path):
    assert run("export", run_id, f"--workdir={imported}", "--step=4", f"--to={tmp_path / 'out'}") == 0
    source = published / "step4-tokens8K"
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", source))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == json.loads(
        (source / "tokenizer.json").read_text()
    )
    small = ("--dtype=bfloat16", "--shard_mb=0.01", f"--to={tmp_path / 'parts'}")
    assert run("export", run_id, f"--workdir={imported}", *small) == 0
    assert len(list((tmp_path / "parts").glob("model-0000*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["import", "{p}/none"], 1, ["none", "no such folder"]),
        (["import", "{p}/.."], 1, ["neither a model", "step3000-tokens12B"]),
        (["import", "{p}", "--step=3"], 2, ["--step=3", "folder of revisions"]),
        (["import", "{p}/step1", "--name=pythia-small"], 2, ["was imported from", "--name"]),
        (["import", "{p}/step1", "--config.train.data.colour=1"], 2, ["colour", "config.train.data"]),
        (["import"], 2, ["PATH"]),
        (["generate", "nobody", "--prompt=a"], 1, ["no run 'nobody'", "pythia-small-"]),
        (["generate", "pythia-*", "--prompt=a", "--step=3"], 1, ["no checkpoint at step 3", "1, 4, 16"]),
        (["generate", "pythia-*", "--prompt=" + "the rank of " * 20], 2, ["prompt has", "context is 24", "shorten"]),
        (["generate", "pythia-*", "--prompt=a", "--tokens=24"], 2, ["--tokens = 24", "leaves room for"]),
        (["generate", "pythia-*"], 2, ["--prompt"]),
        (["generate", "pythia-*", "--prompt=a", "--samples=0"], 2, ["--samples = 0"]),
        (["generate", "pythia-*", "--prompt=a", "--samples=2"], 2, ["--samples=2", "--temperature"]),
        (["generate", "pythia-*", "--prompt=a", "--seed=-1"], 2, ["--seed = -1"]),
        (["export", "{id}", "--to={t}/x", "--shard_mb=0"], 2, ["shard_bytes = 0"]),
        (["import", "{p}/step1", "--step=-3"], 2, ["--step = -3"]),
        (["import", "{p}", "--config.train.model.d_model=8"], 2, ["--config.train.model.d_model", "doesn't apply"]),
        (["import", "{p}", "--config.train.probe.documents=9"], 2, ["other probes", "--name"]),
        (["export", "nobody", "--to={t}/x"], 1, ["no run 'nobody'"]),
        (["export", "{id}", "--to={t}/x", "--dtype=int8"], 2, ["dtype = 'int8'", "bfloat16"]),
        (["export", "{id}", "--to={p}"], 1, ["already exists"]),
        (["export", "*", "--to={t}/x", "--step=3"], 1, ["no checkpoint at step 3"]),
        (["export", "{id}"], 2, ["--to"]),
    ],
)
def test_bad_input_is_one_line(imported, published, config, run_id, tmp_path, capsys, arguments, code, words):
    arguments = [a.format(p=published, id=run_id, t=tmp_path) for a in arguments]
    if arguments[0] == "import":
        arguments.append(f"--config={config}")
    before = sorted(imported.rglob("*"))
    capsys.readouterr()
    assert run(*arguments, f"--workdir={imported}") == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("olmo-jax: ")]
    assert all(word in line for word in words), line
    assert sorted(imported.rglob("*")) == before


def test_inconsistent_revisions_are_refused(published, config, tmp_path, capsys):
    def line(folder):
        capsys.readouterr()
        assert run("import", folder, f"--config={config}", f"--workdir={tmp_path / 'work'}") in (1, 2)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("olmo-jax: ")]
        assert not (tmp_path / "work" / "runs").exists()
        return line

    folder = pathlib.Path(shutil.copytree(published, tmp_path / "copy"))
    shutil.copytree(folder / "step1", folder / "step1-tokens1K")
    assert "have the same step" in line(folder)
    shutil.rmtree(folder / "step1-tokens1K")
    settings = json.loads((folder / "step1" / "config.json").read_text())
    (folder / "step1" / "config.json").write_text(json.dumps(settings | {"use_parallel_residual": True}))
    assert "is another model than" in line(folder)
    single = folder / "step16-tokens32K"
    for name in STEPS:
        (folder / name / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in line(single)
    save_file({"x": np.ones(3, np.float32)}, single / "model.safetensors")
    assert run("import", single, f"--config={config}", f"--workdir={tmp_path / 'work'}",
               f"--config.train.data.tokenizer={published.parent / 'tokenizer.json'}") == 1  # fmt: skip
    assert "lack the tensors embed_out.weight, gpt_neox" in capsys.readouterr().err


def test_revision_names_give_steps_tokens_and_stages(tmp_path, capsys):
    def folders(*names):
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "config.json").touch()
        return [(r.step, r.tokens) for r in revisions(epath.Path(tmp_path / names[0].split("/")[0]))]

    assert folders("a/step0", "a/step512", "a/step1000-tokens4B", "a/step2000-tokens8.5B-unsharded", "a/main") == [
        (0, None), (512, None), (1000, 4 * 10**9), (2000, 85 * 10**8),
    ]  # fmt: skip
    assert "left out, as their names give no step: main" in capsys.readouterr().err
    assert folders("b/stage2-ingredient1-step10-tokens3M", "b/stage2-ingredient1-step20-tokens6M") == [
        (10, 3 * 10**6), (20, 6 * 10**6),
    ]  # fmt: skip
    with pytest.raises(WeightsError, match=r"several stages \(stage1, stage2-ingredient1\)"):
        folders("c/stage1-step10", "c/stage2-ingredient1-step10")
    with pytest.raises(WeightsError, match=r"several seeds \(default, small-aux-2\)"):
        folders("d/step10-seed-default", "d/step10-seed-small-aux-2")
    assert folders("e/84B", "e/2BT", "e/240b_tokens") == [(n * 1000, n * 10**9) for n in (2, 84, 240)]
    assert folders("f/chck_20M", "f/chck_3M") == [(3, None), (20, None)]
    with pytest.raises(ConfigError, match="has a step in an unknown form; give the step with --step"):
        folders("my-step7-model")
    assert folders("step7-tokens2T") == [(7, 2 * 10**12)]
    assert folders("plain") == folders("7B") == [(1, None)]


@pytest.mark.slow
def test_a_single_step_0_is_final_and_a_history_ends_at_its_last_step(published, config, tmp_path):
    folder = pathlib.Path(shutil.copytree(published / "step1", tmp_path / "copy" / "step0"))
    work = f"--workdir={tmp_path / 'work'}"
    assert run("import", folder.parent, "--name=zero", f"--config={config}", work) == 0
    assert run("evaluate", work) == 0
    assert run("report", work) == 0
    table = pd.read_parquet(tmp_path / "work" / "results.parquet")
    assert table["final"].tolist() == [True]
    assert table["round_to_nearest_4/macro"].notna().all()

    # Later revisions extend the run; one that disappears from the source keeps its results.
    shutil.copytree(published / "step16-tokens32K", folder.parent / "step16")
    assert run("import", folder.parent, "--name=zero", f"--config={config}", work) == 0
    shutil.rmtree(folder.parent / "step16")
    assert run("import", folder.parent, "--name=zero", f"--config={config}", work) == 0
    assert run("report", work) == 0
    table = pd.read_parquet(tmp_path / "work" / "results.parquet")
    assert dict(zip(table["step"], table["final"], strict=True)) == {0: False, 16: True}

    # With other evaluation text it is another run.
    other = ("--config.train.data.train_domains=('code',)", "--config.evaluation.tokens_per_domain=99")
    assert run("import", folder.parent, "--name=zero", f"--config={config}", *other, work) == 0
    assert len(list((tmp_path / "work" / "runs").iterdir())) == 2
    assert json.loads((tmp_path / "work" / "sweep.json").read_text())["evaluation"]["tokens_per_domain"] == 99


def test_the_named_tokenizer_is_used(published, config, corpus, tmp_path):
    mine = train_bpe([corpus.read_text()], 270, "<|endoftext|>")
    mine.save(tmp_path / "mine.json")
    named = f"--config.train.data.tokenizer={tmp_path / 'mine.json'}"
    assert run("import", published / "step1", f"--config={config}", named, f"--workdir={tmp_path / 'work'}") == 0
    (place,) = (tmp_path / "work" / "runs").iterdir()
    model_config, _ = load_run(tmp_path / "work", place.name)
    assert (model_config.vocab_size, model_config.padded_vocab_size) == (270, 384)


def test_imports_into_a_directory_of_trained_runs_are_refused(published, config, tmp_path, capsys, tiny):
    from olmo_jax.config import to_config_dict
    from sweeps.planning import plan as plans
    from sweeps.planning import record as records

    records.pin(epath.Path(tmp_path), plans.resolve(plans.read_sweep(to_config_dict(tiny))), {})
    assert run("import", published, f"--config={config}", f"--workdir={tmp_path}") == 2
    assert "holds runs that were trained (tiny-" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gguf_file_is_imported_with_its_tokenizer_and_quantisation(corpus, config, vary, tmp_path, capsys):
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    train_bpe(texts, 280, "<|endoftext|>").save(tmp_path / "tokenizer.json")
    bpe = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].__getitem__)
    small = {"vocab_size": len(tokens), "pad_vocab_to": 1, "d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64}
    llama = vary(OLMO["4m"], small | {"context_length": 24, "norm": "rms_norm"})
    hf.export_checkpoint(llama, model.init(llama, jax.random.key(0)), tmp_path / "folder")
    merges = [" ".join(pair) for pair in bpe["merges"]]
    metadata = tokenizer_metadata(tokens, "gpt2", "gpt-2", ["<|endoftext|>"], tokenizer__ggml__merges=merges)
    file = tmp_path / "small.gguf"
    convert(tmp_path / "folder", file, "llama", "Q8_0", **metadata, tokenizer__ggml__eos_token_id=0)
    work = tmp_path / "work"
    assert run("import", file, f"--config={config}", f"--workdir={work}", "--run") == 0
    (row,) = pd.read_parquet(work / "results.parquet").to_dict("records")
    assert row["run_id"].startswith("small-")
    assert row["config.imported_quantization"] == "Q8_0"
    assert row["config.imported"] == "LlamaForCausalLM"
    assert np.isfinite(row["round_to_nearest_4/macro"])
    _, exact = hf.import_checkpoint(tmp_path / "folder")
    _, params = load_run(work, row["run_id"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), params, exact)

    # Without a tokenizer that can be rebuilt: geometry works, and the error says what reading text needs.
    unknown = tokenizer_metadata(tokens, "gpt2", "tekken", tokenizer__ggml__merges=merges)
    convert(tmp_path / "folder", tmp_path / "other.gguf", "llama", **unknown, tokenizer__ggml__eos_token_id=0)
    capsys.readouterr()
    assert run("geometry", tmp_path / "other.gguf", "--metrics=effective_rank") == 0
    assert run("import", tmp_path / "other.gguf", f"--config={config}", f"--workdir={tmp_path / 'new'}") == 2
    assert "'tekken') can't be rebuilt" in capsys.readouterr().err
    assert not (tmp_path / "new" / "runs").exists()
    named = f"--config.train.data.tokenizer={tmp_path / 'tokenizer.json'}"
    assert run("import", tmp_path / "other.gguf", f"--config={config}", named, f"--workdir={tmp_path / 'new'}") == 0
