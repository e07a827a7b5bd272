"""The command line on invalid input (one line, an exit code, nothing written) and on a small sweep."""

import contextlib
import functools
import itertools
import json
import math
import pathlib
import re
import shlex
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from etils import epath

from eval.config import EvalConfig
from geometry.probe import metric, summarize
from geometry.registry import metric_of
from sweeps import cli
from sweeps.arguments import parse
from sweeps.judge import kept, probing
from sweeps.planning.config_file import load_config, override_evaluation
from sweeps.report import export, item
from sweeps.report.item import Figure, items, sections
from sweeps.running import stage_times
from sweeps.table.columns import final_rows
from sweeps.table.table import read_table
from sweeps.verbs import VERBS
from tests.sweeps.report.test_items import OWN

RUN = """
from ml_collections import ConfigDict
from olmo_jax.config import TrainConfig, to_config_dict
from sweeps.planning.grid import product, together

def get_config(arg=""):
    train = to_config_dict(TrainConfig(name="cli", tokens=8 * 64))
    train.model.update(dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32))
    train.data.update(dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                           train_domains=("prose",), sequence_length=16, batch_size=4))
    train.probe.update(dict(every=4, documents=10, document_tokens=12))
    train.optimizer.learning_rate = 1e-2
    train.mesh.member = 1
    if arg == "raises":
        no_such_name
    if arg == "one":
        return train
    if arg == "unequal":
        grid = together({{"optimizer.learning_rate": [1e-3, 1e-2, 1e-1], "init_seed": [0, 1]}})
    elif arg == "two":
        grid = product({{"data.batch_size": [4, 8], "init_seed": [0, 1]}})
    else:
        grid = product({{"optimizer.weight_decay": [0.1, 5.0], "init_seed": [0, 1, 2] if arg == "larger" else [0, 1]}})
    evaluation = dict(tokens_per_domain=200, quantize=dict(bits=(3,), methods=('round_to_nearest',)), finetune=dict(
        targets=("code",), learning_rates=(1e-2,), tokens=256, batch_size=4))
    return ConfigDict(dict(train=train, grid=grid, evaluation=evaluation))
"""


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(RUN.format(corpus=str(corpus)))
    return path


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A whole sweep, run once through the command line."""
    workdir = tmp_path_factory.mktemp("finished") / "sweep"
    assert cli.main(["run", f"--config={config}", f"--workdir={workdir}"]) == 0
    return workdir


def refused(capsys, arguments, code):
    assert cli.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("olmo-jax: ")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.optimizer.weigth_decay=1", ["small.py", "config.optimizer", "weigth_decay", "'weight_decay'"]),
        ("--config.optimzer.weight_decay=1", ["small.py", "no key 'optimzer'", "'optimizer'"]),
        ("--config.model.d_model=big", ["small.py", "config.model.d_model", "big"]),
        ("--config.tokens=1.5e0", ["small.py", "config.tokens = '1.5e0'", "needs a whole number such as 1000 or 1e3"]),
        ("--config.model.d_model=0", ["config.model.d_model", "0", "positive"]),
        ("--config.model.n_heads=3", ["config.model.n_heads", "16", "divisor"]),
        ("--config.data.batch_size=-4", ["config.data.batch_size", "-4"]),
        ("--config.tokens=3", ["config.tokens", "less than one step"]),
        ("--config.mapping=both", ["config.mapping", "vmap"]),
        ("--config.model.init_std=inf", ["config.model.init_std", "finite"]),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_bad_override_is_one_line_and_exit_code_2(config, capsys, tmp_path, verb, override, words):
    workdir = tmp_path / "new"
    line = refused(capsys, [verb, f"--config={config}:one", override, f"--workdir={workdir}"], 2)
    assert all(word in line for word in words), line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["plan"], 2, ["needs --config=FILE"]),
        (["plan", "--config=missing.py"], 2, ["missing.py", "no file"]),
        (["train", "--config=x.py"], 2, ["needs --workdir"]),
        (["plan", "--config={config}:unequal"], 2, ["optimizer.learning_rate': 3", "'init_seed': 2"]),
        (["plan", "--config={config}", "--config.train.optimizer.weight_decay=1"], 2,
         ["set by the points of the file's grid"]),
        (["plan", "--config={config}:one", "--config.data.files=('nothing*.txt',)"], 1, ["nothing*.txt"]),
        (["plan", "--config={config}:one", "--config.data.tokenizer=no.json"], 1, ["no.json"]),
        (["prepare", "--config={config}:one", "--config.data.train_domains=('poetry',)", "--workdir={new}"], 1,
         ["poetry", "prose"]),
        (["train", "--config={config}:one", "--config.model.vocab_size=200", "--config.data.bpe_vocab_size=300",
          "--workdir={new}"], 2, ["config.model.vocab_size", "200", "300"]),
        (["train", "--config={config}:one", "--config.mesh.data=3", "--workdir={new}"], 2,
         ["config.mesh.data = 3", "batch_size = 4", "divisor"]),
        (["train", "--config={config}:one", "--config.mesh.member=9", "--workdir={new}"], 2, ["9 devices", "are 8"]),
        (["train", "--config={config}", "--config.evaluation.finetune.targets=('poetry',)", "--workdir={new}"], 2,
         ["config.evaluation.finetune.targets", "poetry", "code, other, prose"]),
        (["train", "--config={config}:one", "--config.data.sequence_length=100000", "--config.tokens=400000",
          "--config.model.context_length=100000", "--workdir={new}"], 1, ["fewer than one window"]),
        (["train", "--config={config}:one", "--config.data.sequence_length=100000", "--config.tokens=400000",
          "--workdir={new}"], 2, ["config.model.context_length = 2048", "100000", "raise it"]),
        (["plan", "--config={config}:raises"], 2, ["small.py", "no_such_name"]),
        (["status", "--workdir={new}"], 2, ["new", "no sweep.json"]),
        (["report", "--workdir={new}"], 2, ["new", "no sweep.json"]),
        (["evaluate", "--workdir={new}", "--steps=last"], 2, ["--steps", "'last'", "final, all, or steps"]),
        (["train", "--config={config}", "--config.evaluation.quantize.bits=(9,)", "--workdir={new}"], 2,
         ["config.evaluation.quantize.bits = (9,)", "2 to 8"]),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_trains_nothing(config, capsys, tmp_path, arguments, code, words):
    arguments = [a.format(config=config, new=tmp_path / "new") for a in arguments]
    line = refused(capsys, arguments, code)
    assert all(word in line for word in words), line
    assert not (tmp_path / "new" / "runs").exists()


@pytest.mark.filterwarnings("ignore:list indices must be integers:SyntaxWarning")
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"x = 1\n\0\0\0\0", [", line 2: contains a NUL byte, so it is damaged"]),
        (b"x = 1\n\nname = 'caf\xe9'\n", [", line 3: (unicode error)"]),
        (b"def get_config():\n    return (\n", [", line 2: '(' was never closed"]),
        (b"def get_config():\n    return [1]['a']\n", [", line 2: TypeError: list indices must be integers"]),
        (b"import sys\n\nsys.exit('stop')\n", [", line 3: SystemExit: stop"]),
        (b"def get_config():\n    raise KeyError('vocabulary')\n", [", line 2: KeyError: 'vocabulary'"]),
        (b"", ["get_config"]),
    ],
)
def test_a_config_file_that_python_cannot_run_is_named_with_its_line(capsys, tmp_path, monkeypatch, source, words):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # as in a process of its own
    path = tmp_path / "c.py"
    path.write_bytes(source)
    line = refused(capsys, ["plan", f"--config={path}"], 2)
    assert all(word in line for word in [str(path), *words]), line


def test_an_argument_that_a_config_file_refuses_is_one_sentence(capsys):
    line = refused(capsys, ["plan", "--config=demo:smok"], 2)
    assert line.endswith("demo.py: demo.py has no argument 'smok'; leave it out, or give 'smoke'")


@pytest.mark.parametrize(
    ("config", "override", "said"),
    [
        (
            "demo",
            "optimizer.learning_rate=1",
            "demo.py: config has no key 'optimizer'; did you mean --config.train.optimizer.learning_rate?",
        ),
        ("olmo:4m", "train.tokens=1", "olmo.py: config has no key 'train'; did you mean --config.tokens?"),
        ("demo", "train.optimizr.eps=1", "demo.py: config.train has no key 'optimizr'; did you mean 'optimizer'?"),
    ],
)
def test_an_override_of_another_kind_of_configuration_is_answered_with_the_right_one(capsys, config, override, said):
    assert refused(capsys, ["plan", f"--config={config}", f"--config.{override}"], 2).endswith(said)


def test_an_unknown_verb_or_argument_is_named_once_with_where_to_look(capsys):
    line = refused(capsys, ["statsu"], 2)
    assert line.startswith("olmo-jax: argument VERB") and line.endswith("; olmo-jax --help says more")
    line = refused(capsys, ["demo", "--size=big"], 2)
    assert line.startswith("olmo-jax: olmo-jax demo: argument --size") and "olmo-jax demo --help" in line


def test_config_paths_that_are_folders_or_contain_a_colon_are_refused(capsys, tmp_path):
    assert "is a folder; give the path of a .py file" in refused(capsys, ["plan", f"--config={tmp_path}"], 2)
    (tmp_path / "a:b.py").touch()
    assert "the file's name contains a ':'" in refused(capsys, ["plan", f"--config={tmp_path}/a:b.py"], 2)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e3", 1000), ("1_000", 1000), ("2**10", 1024), ("0x400", 1024), ("2.5e3", 2500), ("64.0", 64)],
)
def test_integers_may_be_written_in_any_python_notation(config, text, number):
    assert load_config([f"--config={config}:one", f"--config.tokens={text}"]).tokens == number
    assert override_evaluation(EvalConfig(), [f"--config.evaluation.tokens_per_domain={text}"]) == (
        EvalConfig(tokens_per_domain=number)
    )
    named = load_config([f"--config={config}:one", f"--config.name={text}"])
    assert named.name == text, "text stays what it is"


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("--config.tokens=1e-3", "config.tokens = '1e-3': needs a whole number such as 1000 or 1e3"),
        ("--config.tokens=1e999999999", "config.tokens = '1e999999999': needs a whole number"),
        ("--config.tokens=nan", "config.tokens = 'nan': needs a whole number"),
        ("--config.optimizer.learning_rate=high", "config.optimizer.learning_rate = 'high': needs a number such as"),
        ("--config.mesh.fsdp=maybe", "config.mesh.fsdp = 'maybe': needs true or false"),
        ("--config.data.train_domains=('a',", "config.data.train_domains = \"('a',\": needs a tuple such as"),
        (
            "--config.model=big",
            "config.model = 'big': is a group of settings; set them one by one, such as --config.mo",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_expected_type(config, capsys, override, wanted):
    assert wanted in refused(capsys, ["plan", f"--config={config}:one", override], 2)


def test_a_tilde_is_expanded_in_every_path(config, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(config, tmp_path / "c.py")
    for given in ("--config=~/c.py:one", "--config=~/c.py"):
        assert cli.main(["plan", given, "--json"]) == 0
    capsys.readouterr()
    for arguments in (
        ["status", "--workdir=~/x"],
        ["geometry", "~/x"],
        ["generate", "~/x", "--prompt=a"],
        ["import", "~/x", "--workdir=~/w"],
        ["compare", "~/x", "~/y", "--to=~/z"],
    ):
        assert cli.main(arguments) in (1, 2)
        assert f"{tmp_path}/x" in capsys.readouterr().err, arguments
    assert parse(["run", "--config=c.py", "--workdir=~/x", "--mirror=~/m"])[0].mirror == f"{tmp_path}/m"
    assert parse(["run", "--config=c.py", "--workdir=~/x", "--mirror=s3://~/m"])[0].mirror == "s3://~/m"
    assert parse(["export", "a", "--workdir=~/x", "--to=~/m"])[0].to == f"{tmp_path}/m"
    assert {path.name for path in tmp_path.iterdir()} <= {"c.py", "__pycache__"}


@pytest.mark.parametrize("name", ["weights 100%", "\u30e2\u30c7\u30eb\u3000x", "lr[1e-2]", "\xa0", "\U0001fae9"])
def test_a_working_directory_may_have_any_other_name(config, capsys, tmp_path, name):
    assert cli.main(["plan", f"--config={config}:one", f"--workdir={tmp_path / name}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_the_command_shown_on_pages_is_utf8(monkeypatch):
    shown = []
    plan = VERBS["plan"]._replace(carry_out=lambda command: shown.append(command.text) or 0)
    monkeypatch.setitem(VERBS, "plan", plan)
    assert cli.main(["plan", "--config=c.py", "--config.data.files=('\udcff.txt',)"]) == 0
    assert rb"\udcff.txt" in shown[0].encode()


def test_an_invalid_working_directory_is_refused_before_anything_runs(config, capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    cases = [("file", "file is a file"), ("file/below", "file is a file"), ("link", "is a broken link")]
    for name, words in [*cases, ("\udcff", "needs a name in UTF-8"), ("a\nb", "without control characters")]:
        line = refused(capsys, ["run", f"--config={config}", f"--workdir={tmp_path / name}"], 2)
        assert words in line


def test_help_and_an_unknown_verb(capsys):
    assert cli.main(["--help"]) == 0
    assert "prepare" in capsys.readouterr().out
    assert cli.main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_fits_a_screen_and_ends_with_an_example_that_parses(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([verb, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    _, _, command = lines[-1].partition("example: ")
    (words,) = re.findall(r"olmo-jax ([^\")]*)", command)
    arguments, _ = parse(shlex.split(words))
    assert arguments.verb == verb


def test_plan_prints_only_json_and_writes_nothing(config, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", f"--config={config}", "--json"]) == 0
    (cohort,) = json.loads(capsys.readouterr().out)["cohorts"]
    assert [run["config"]["optimizer"]["weight_decay"] for run in cohort["runs"]] == [0.1, 0.1, 5.0, 5.0]
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["plan", f"--config={config}"]) == 0
    assert "4 runs in 1 cohort(s)" in capsys.readouterr().out


def test_a_sweep_ends_with_a_complete_table_and_a_page(finished):
    table = pd.read_parquet(finished / "results.parquet")
    assert len(table) == 4
    assert table["final"].all()
    columns = {
        "run_id", "cohort", "configuration", "step", "tokens", "diverged_at", "parameters", "parameters_non_embedding",
        "weight_decay_dose", "config.optimizer.weight_decay", "config.init_seed", "train/loss",
        "unembedding/effective_rank", "unembedding_gauge_fixed/mean_cosine", "final_states/effective_rank_percent",
        "lm_loss/in_domain", "lm_loss/out_of_domain", "lm_loss/code", "unigram/in_domain", "round_to_nearest_3/macro",
        "finetune_code_lr0.01/forgetting",
    }  # fmt: skip
    assert columns <= set(table.columns)
    assert table[sorted(columns - {"diverged_at"})].notna().all(axis=None)
    assert table["configuration"].nunique() == 2
    page = (finished / "report" / "index.html").read_text()
    assert all(run in page for run in table["run_id"])


def test_each_stage_of_a_sweep_is_timed_once(finished):
    rows = stage_times.read(epath.Path(finished))
    assert [row["stage"] for row in rows] == ["prepare", "train", "evaluate", "report"]
    ends = [row["time"] for row in rows]
    assert all(end - row["seconds"] >= before - 0.1 for row, end, before in zip(rows[1:], ends[1:], ends, strict=False))


def test_repeating_a_command_repeats_no_work(config, finished, capsys):
    def times():
        kept = [p for p in pathlib.Path(finished).rglob("*") if p.is_file()]
        return {p: p.stat().st_mtime_ns for p in kept if p.suffix != ".lock"}

    before = times()
    assert cli.main(["run", f"--config={config}", f"--workdir={finished}"]) == 0
    out = capsys.readouterr().out
    assert "Report: " in out
    assert times() == before


def test_status_lists_the_runs_of_a_finished_sweep(config, finished, capsys):
    assert cli.main(["status", f"--workdir={finished}"]) == 0
    out = capsys.readouterr().out
    assert out.count("done") == 4
    assert "8/8" in out


def test_status_and_report_need_neither_the_config_file_nor_the_text(finished, corpus, capsys, tmp_path):
    moved = shutil.move(corpus, tmp_path / "elsewhere.jsonl")
    try:
        assert cli.main(["status", f"--workdir={finished}"]) == 0
        assert "all that is trained is evaluated" in capsys.readouterr().out
        assert cli.main(["report", f"--workdir={finished}"]) == 0
    finally:
        shutil.move(moved, corpus)


def test_a_page_is_rewritten_only_if_metrics_have_grown(finished, monkeypatch, tmp_path):
    monkeypatch.setattr(export, "write_figures_beside", lambda *_: contextlib.nullcontext())
    workdir = tmp_path / "sweep"
    shutil.copytree(finished, workdir)
    page = workdir / "report" / "index.html"
    before = page.stat().st_mtime_ns
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    assert page.stat().st_mtime_ns == before
    with next(workdir.glob("runs/*/metrics.jsonl")).open("a") as metrics:
        metrics.write('{"step": 10000, "loss": 1.0}\n')
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    assert page.stat().st_mtime_ns > before


def test_a_single_figure_is_redrawn_and_an_unknown_one_refused(finished, capsys):
    figure = finished / "report" / "figures" / "training_loss.svg"
    before = figure.read_bytes()
    figure.unlink()
    page = (finished / "report" / "index.html").stat().st_mtime_ns
    assert cli.main(["report", f"--workdir={finished}", "--figure=training_loss"]) == 0
    assert "training_loss.svg" in capsys.readouterr().out
    assert figure.read_bytes() == before
    assert (finished / "report" / "index.html").stat().st_mtime_ns == page
    line = refused(capsys, ["report", f"--workdir={finished}", "--figure=trainingloss"], 1)
    assert "no figure 'trainingloss'; the nearest is 'training_loss', and the figures are:" in line


def test_a_published_table_of_another_study_is_refused(finished, capsys, tmp_path):
    page = finished / "report" / "index.html"
    before = page.stat().st_mtime_ns
    (tmp_path / "published.csv").write_text("params,data,seed,step\n")
    line = refused(capsys, ["report", f"--workdir={finished}", f"--join={tmp_path}/published.csv"], 2)
    assert "no runs of a study that takes a published table (datadecide)" in line
    assert page.stat().st_mtime_ns == before


def test_a_report_writes_figures_tables_and_column_descriptions(finished):
    folder = finished / "report"
    files = {ending: {p.stem for p in folder.glob(f"figures/*.{ending}")} for ending in ("svg", "pdf")}
    drawn = {
        "training_loss",
        "geometry_over_training",
        "spectra",
        "loss_against_geometry",
        "quantisation",
        "finetuning",
    }
    assert files["svg"] == files["pdf"] > drawn
    page = (folder / "index.html").read_text()
    assert all(f'data-figure="{name}"' in page for name in files["svg"])
    usual = [one.name for one in items(Figure) if not sections()[one.section].optional]
    assert all(f'id="{name.replace("_", "-")}"' in page for name in usual if name not in files["svg"])
    assert {p.suffix for p in folder.glob("tables/*")} == {".csv", ".tex"}
    described = json.loads((finished / "results.schema.json").read_text())
    table = pd.read_csv(finished / "results.csv")
    assert list(described) == list(table.columns) == list(pd.read_parquet(finished / "results.parquet").columns)
    assert [c for c, d in described.items() if d["meaning"] == "not described"] == []


@pytest.mark.slow
def test_items_of_a_configuration_file_reach_the_report(finished, corpus, monkeypatch, capsys, tmp_path):
    items()
    monkeypatch.setattr(item, "_ITEMS", dict(item._ITEMS))
    monkeypatch.setattr(item, "_SECTIONS", dict(item._SECTIONS))
    monkeypatch.setattr(
        export, "write_figures_beside", functools.partial(only, export.write_figures_beside, "rank_histogram")
    )
    workdir, mine = tmp_path / "sweep", tmp_path / "small.py"
    shutil.copytree(finished, workdir)
    mine.write_text(RUN.format(corpus=str(corpus)) + OWN)
    arguments = ["report", f"--workdir={workdir}", f"--config={mine}"]
    assert cli.main(arguments) == 0
    page = (workdir / "report/index.html").read_text()
    assert "My &lt;question&gt;</h2>" in page and 'data-figure="rank_histogram"' in page
    assert (workdir / "report/figures/rank_histogram.svg").stat().st_size > 1000
    assert len(pd.read_csv(workdir / "report/tables/rank_table.csv")) == 4
    written = (workdir / "report/index.html").stat().st_mtime_ns
    assert cli.main(arguments) == 0 and (workdir / "report/index.html").stat().st_mtime_ns == written

    mine.write_text(mine.read_text().replace("if ranks.empty:", "if ranks.no_such_attribute:"))
    capsys.readouterr()
    for _ in range(2):  # an error is no state that a second call takes for whole
        line = refused(capsys, arguments, 1)
        assert "without the items that failed: rank_histogram: AttributeError: " in line and "small.py, line " in line
    page = (workdir / "report/index.html").read_text()
    assert "rank_histogram failed: AttributeError" in page and 'id="rank_table"' in page


def only(write, name, folder, shown, formats):
    """Draw only one of the figures, to save the time of the others."""
    return write(folder, [one for one in shown if one.item.name == name], formats)


@pytest.mark.slow
def test_runs_trained_on_eight_devices_are_evaluated_on_fewer(config, capsys, tmp_path):
    workdir = tmp_path / "work"
    arguments = [f"--config={config}:one", "--config.mesh.data=4", f"--workdir={workdir}"]
    assert cli.main(["train", *arguments]) == 0
    sweep = json.loads((workdir / "sweep.json").read_text())
    sweep["cohorts"][0]["runs"][0]["config"]["mesh"]["data"] = 400  # as on a machine with more devices than here
    (workdir / "sweep.json").write_text(json.dumps(sweep))
    assert cli.main(["evaluate", f"--workdir={workdir}", "--only=lm_loss", "--runs=*", "--steps=final"]) == 0
    assert {p.name for p in workdir.glob("runs/*/results/*")} == {"lm_loss@8.json"}
    capsys.readouterr()
    line = refused(capsys, ["evaluate", f"--workdir={workdir}", "--only=trivia"], 2)
    assert "--only = 'trivia': isn't an evaluation of this configuration; choose from gptq, lm_loss" in line
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 0
    changed = "--config.evaluation.quantize.bits=(2,)"
    assert cli.main(["evaluate", f"--workdir={workdir}", changed, "--only=round_to_nearest_2"]) == 0
    assert [p.name for p in workdir.glob("runs/*/results/*_2@*")] == ["round_to_nearest_2@8.json"]
    line = refused(capsys, ["evaluate", f"--workdir={workdir}", "--config.train.tokens=9"], 2)
    assert "--config.train.tokens: only settings of config.evaluation can be changed in a recorded sweep" in line
    line = refused(capsys, ["evaluate", f"--workdir={workdir}", "--config.evaluation.quantize.bitz=(2,)"], 2)
    assert "bitz" in line
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    assert {"round_to_nearest_2/macro", "round_to_nearest_3/macro"} <= {*pd.read_parquet(workdir / "results.parquet")}
    changed = "--config.evaluation.tokens_per_domain=100"
    assert cli.main(["evaluate", f"--workdir={workdir}", changed, "--only=unigram"]) == 0
    assert "unigram: stored results are outdated and are replaced" in capsys.readouterr().err
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    assert "are left out: lm_loss, round_to_nearest_2, saturation; `olmo-jax evaluate`" in capsys.readouterr().err
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == 0
    capsys.readouterr()
    assert cli.main(["status", f"--workdir={workdir}"]) == 0
    assert "all that is trained is evaluated" in capsys.readouterr().out


def test_status_works_before_training_and_evaluate_too_early_is_refused(config, capsys, tmp_path):
    from sweeps.planning import plan as plans
    from sweeps.planning import record as records

    plan = plans.resolve(plans.read_sweep(load_config([f"--config={config}:one"])))
    records.pin(epath.Path(tmp_path), plan, {})
    assert cli.main(["status", f"--workdir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "waiting" in out
    assert "nothing is trained yet" in out
    assert "train first" in refused(capsys, ["evaluate", f"--workdir={tmp_path}"], 2)
    assert "train first" in refused(capsys, ["report", f"--workdir={tmp_path}"], 2)
    begun = tmp_path / "cohorts" / plan.cohorts[0].folder
    begun.mkdir(parents=True)
    assert "train first" in refused(capsys, ["evaluate", f"--workdir={tmp_path}"], 2)
    begun.rename(begun.with_name("another"))
    assert "holds another, which sweep.json doesn't name" in refused(capsys, ["evaluate", f"--workdir={tmp_path}"], 2)


def test_a_boolean_option_needs_no_value(config, capsys):
    assert cli.main(["plan", f"--config={config}:one", "--config.tensorboard", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cohorts"][0]["runs"][0]["config"]["tensorboard"] is True


def test_another_sweep_in_the_directory_is_refused_without_changes(config, finished, capsys):
    before = (finished / "sweep.json").read_bytes()
    arguments = ["run", f"--config={config}", "--config.train.tokens=1024", f"--workdir={finished}"]
    line = refused(capsys, arguments, 2)
    assert "a sweep that this one doesn't contain" in line
    assert "tokens: 512 in the directory, 1024 in this sweep" in line
    assert (finished / "sweep.json").read_bytes() == before


def test_a_changed_corpus_is_refused_with_both_fingerprints(config, corpus, capsys, tmp_path):
    text = tmp_path / "mine.jsonl"
    shutil.copy(corpus, text)
    override = f"--config.data.files=('{text}',)"
    arguments = ["prepare", f"--config={config}:one", override, f"--workdir={tmp_path / 'w'}"]
    assert cli.main(arguments) == 0
    index = json.loads((tmp_path / "w" / "data" / "main" / "index.json").read_text())
    with text.open("a") as file:
        file.write(json.dumps({"text": "one more document of text", "domain": "prose"}) + "\n")
    capsys.readouterr()
    line = refused(capsys, arguments, 1)
    assert index["fingerprint"].split("-")[0] in line
    assert "workdir" in line
    assert json.loads((tmp_path / "w" / "data" / "main" / "index.json").read_text()) == index


def test_an_invalid_text_file_is_refused_before_training(config, capsys, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good text, then \xff\xfe")
    (tmp_path / "empty.txt").write_bytes(b"")
    for name, word in (("bad.txt", "UTF-8"), ("empty.txt", "empty")):
        override = f"--config.data.files=('{tmp_path / name}',)"
        arguments = ["train", f"--config={config}:one", override, f"--workdir={tmp_path / 'w'}"]
        line = refused(capsys, [*arguments, "--config.data.domain_field=", "--config.data.train_domains=()"], 1)
        assert name in line
        assert word in line
        assert not (tmp_path / "w" / "runs").exists()


def test_the_plan_reports_costs_and_detectable_effects(config, capsys):
    assert cli.main(["plan", f"--config={config}", "--flops=1e9"]) == 0
    out = capsys.readouterr().out
    assert "4 runs in 1 cohort(s), 1 compiled program(s), 2,048 tokens" in out
    assert "at 1e+09 FLOP/s (as stated)" in out
    assert re.search(r"about 0\.0\d+ epochs", out)
    assert "a difference of 5.7 standard deviations over seeds" in out
    assert "-1" in refused(capsys, ["plan", f"--config={config}", "--flops=-1"], 2)


def test_training_beyond_max_epochs_is_refused(config, capsys, tmp_path):
    arguments = ["train", f"--config={config}:one", "--config.tokens=64000", f"--workdir={tmp_path / 'w'}"]
    line = refused(capsys, arguments, 2)
    assert "config.data.max_epochs = 1.0" in line
    assert "64,000" in line
    assert not (tmp_path / "w" / "runs").exists()
    assert cli.main([*arguments[:2], "--config.tokens=6400", "--config.data.max_epochs=9", arguments[3]]) == 0


@pytest.mark.slow
def test_a_single_cohort_can_be_selected(config, capsys, tmp_path):
    two = [f"--config={config}:two", f"--workdir={tmp_path}"]
    for bad in ("2", "-1", "nothing"):
        assert f"--cohort = '{bad}': isn't one of" in refused(capsys, ["run", *two, f"--cohort={bad}"], 2)
    assert not (tmp_path / "sweep.json").exists()
    assert cli.main(["run", *two, "--cohort=1"]) == 0
    assert cli.main(["status", f"--workdir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.count("done") == 2
    assert out.count("waiting") == 2
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_a_larger_grid_extends_a_finished_sweep(config, finished, capsys, tmp_path):
    workdir = tmp_path / "sweep"
    shutil.copytree(finished, workdir)
    before = {p: p.read_bytes() for p in (workdir / "runs").rglob("*") if p.is_file()}
    assert cli.main(["run", f"--config={config}:larger", f"--workdir={workdir}"]) == 0
    assert all(p.read_bytes() == content for p, content in before.items()), "finished runs stay as they are"
    assert len(list((workdir / "runs").iterdir())) == 6
    table = pd.read_parquet(workdir / "results.parquet")
    assert table["run_id"].nunique() == 6
    assert table["cohort"].nunique() == 1
    capsys.readouterr()
    line = refused(capsys, ["run", f"--config={config}", f"--workdir={workdir}"], 2)
    assert "2 of its 6 runs aren't in this sweep" in line
    assert "init_seed: 0 and 1 and 2 in the directory, 0 and 1 in this sweep" in line


def test_an_empty_disk_resumes_from_the_mirror(config, capsys, tmp_path):
    arguments = ["train", f"--config={config}:one", f"--mirror={tmp_path / 'mirror'}"]
    first, second = (tmp_path / name for name in ("first", "second"))
    assert cli.main([*arguments, f"--workdir={first}"]) == 0
    assert cli.main([*arguments, f"--workdir={second}", "--config.mesh.data=2"]) == 0  # another topology
    (run,) = (p.name for p in (first / "runs").iterdir())
    for name in ("metrics.jsonl", "status.json"):
        assert (first / "runs" / run / name).read_bytes() == (second / "runs" / run / name).read_bytes()
    capsys.readouterr()
    line = refused(capsys, [*arguments[:2], "--mirror=ftp://x", f"--workdir={first}"], 2)
    assert "--mirror = 'ftp://x'" in line


def test_invalid_engines_and_processes_are_refused(config, capsys, tmp_path):
    where = [f"--config={config}", f"--workdir={tmp_path / 'w'}"]
    assert "--engine = 'lsf': needs one of slurm, local, sky" in refused(capsys, ["launch", *where, "--engine=lsf"], 2)
    assert "--minutes" in refused(capsys, ["launch", *where, "--engine=slurm", "--minutes=0"], 2)
    assert "HOST:PORT,COUNT,PLACE" in refused(capsys, ["train", *where, "--hosts=here"], 2)
    assert not (tmp_path / "w").exists()


def test_integer_exponents_are_exact_and_bounded():
    from sweeps.planning.config_file import _whole

    assert _whole("1e28") == 10**28
    assert _whole("1e999999") is None


def test_judge_gives_a_card_and_says_what_is_lacking(finished, tmp_path, capsys, registry):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import jax.numpy as jnp\nfrom geometry.probe import metric\n\n"
        "@metric\ndef largest_row_norm(measured):\n    return jnp.max(jnp.linalg.norm(measured.x_ND, axis=1))\n"
    )
    capsys.readouterr()
    assert cli.main(["judge", str(mine), "effective_rank", "--json", f"--workdir={finished}"]) == 0
    cards = {card["metric"]: card for card in json.loads(capsys.readouterr().out)}
    assert {*cards} == {"unembedding/largest_row_norm", "unembedding/effective_rank"}
    found = {finding["test"]: finding for finding in cards["unembedding/largest_row_norm"]["findings"]}
    assert [*found] == ["gauge", "null", "noise", "gain", "cause"]
    assert found["gauge"]["verdict"] == "fail"
    assert found["gain"]["verdict"] == found["cause"]["verdict"] == "can't tell"
    assert "--config=do_rank:cpu" in found["cause"]["remedy"]
    assert cards["unembedding/largest_row_norm"]["runs"] == 4
    assert cli.main(["judge", "final_states/effective_rank", "--json", f"--workdir={finished}"]) == 0
    (card,) = json.loads(capsys.readouterr().out)
    found = {finding["test"]: finding for finding in card["findings"]}
    assert found["gauge"]["verdict"] == "pass" and "no transformation moves it" in found["gauge"]["text"]
    assert "of shuffled rows" in found["null"]["text"]
    assert cli.main(["judge", "--all", f"--workdir={finished}"]) == 0
    assert "unembedding_gauge_fixed/effective_rank " in capsys.readouterr().out
    assert (finished / "judge" / "index.html").exists()


def test_what_a_table_lacks_is_measured_as_training_would_have(finished):
    table = final_rows(read_table(finished)).rows.set_index("run_id")
    known = ["final_states/effective_rank", "unembedding_gauge_fixed/effective_rank", "unembedding/mean_cosine"]
    found = kept.values(epath.Path(finished), [*known, "alignment/principal", "layer_0_centred/isoscore"], table.index)
    pd.testing.assert_frame_equal(
        found[known].sort_index(), table[known].sort_index(), rtol=1e-5, check_names=False, check_dtype=False
    )
    assert found["alignment/principal"].between(0, 1).all()
    assert found["layer_0_centred/isoscore"].between(0, 1).all()
    sharp = kept.values(epath.Path(finished), ["sharpness/critical", "sharpness/top_eigenvalue"], [*table.index][:1])
    assert (sharp > 0).all(axis=None)


@pytest.fixture
def measuring(finished, tmp_path, monkeypatch):
    """A copy of the sweep, its runs, and a list to which each measurement adds its columns and runs."""
    workdir = epath.Path(shutil.copytree(finished, tmp_path / "sweep"))
    (workdir / "judge" / kept.FILE).unlink(missing_ok=True)
    calls, measure = [], probing.measure

    def recorded(at, columns, of):
        calls.append((columns, of))
        return measure(at, columns, of)

    monkeypatch.setattr(probing, "measure", recorded)
    return workdir, final_rows(read_table(finished)).rows["run_id"].tolist(), calls


STABLE_RANK = "unembedding/stable_rank"


def test_what_was_measured_once_is_kept(measuring):
    workdir, runs, calls = measuring
    columns = [STABLE_RANK, "layer_7/isoscore"]
    once = kept.values(workdir, columns, runs[:2])
    assert once[STABLE_RANK].notna().all() and once["layer_7/isoscore"].isna().all()  # there is no such layer
    pd.testing.assert_frame_equal(kept.values(workdir, columns, runs[:2]), once)
    longer = kept.values(workdir, columns, runs)
    pd.testing.assert_frame_equal(longer.loc[runs[:2]], once)
    assert calls == [(columns, runs[:2]), (columns, runs[2:])] and longer[STABLE_RANK].notna().all()


def test_calls_at_the_same_time_keep_what_each_of_them_measured(measuring, monkeypatch):
    workdir, runs, calls = measuring
    measure, other = probing.measure, "unembedding/partition_isotropy"

    def interrupted(at, columns, of):
        yield from measure(at, columns, of)
        monkeypatch.setattr(probing, "measure", measure)
        kept.values(workdir, [other], runs[:1])
        yield from measure(at, columns, of)

    monkeypatch.setattr(probing, "measure", interrupted)
    kept.values(workdir, [STABLE_RANK], runs)
    calls.clear()
    assert kept.values(workdir, [STABLE_RANK], runs).notna().all(axis=None)
    assert kept.values(workdir, [other], runs[:1]).notna().all(axis=None)
    assert not calls


@pytest.mark.parametrize("damage", ["cut", "value", "step", "version"])
def test_what_is_damaged_or_of_another_step_is_measured_again(measuring, damage):
    workdir, runs, calls = measuring
    once = kept.values(workdir, [STABLE_RANK], runs)
    file = workdir / "judge" / kept.FILE
    stored = json.loads(file.read_text())
    if damage == "value":
        stored["runs"][runs[1]]["values"][STABLE_RANK] = "4"
    elif damage == "step":  # as of an imported run to which later revisions were added
        stored["runs"][runs[1]]["step"] -= 1
    else:
        stored["version"] = 0
    file.write_text("{" if damage == "cut" else json.dumps(stored))
    pd.testing.assert_frame_equal(kept.values(workdir, [STABLE_RANK], runs), once)
    assert calls[1:] == [([STABLE_RANK], runs if damage in ("cut", "version") else [runs[1]])]


@pytest.mark.parametrize("how", ["function", "values", "part", "again"])
def test_a_metric_of_the_users_is_measured_at_every_call(measuring, registry, how):
    workdir, runs, calls = measuring
    column = "unembedding/mine" if how != "again" else STABLE_RANK

    def mine(measured):
        return math.inf * measured.x_ND[0, 0] ** 0

    if how == "values":
        metric(values={"": "A constant."}, name="mine")(lambda measured: (mine(measured),))
    elif how == "part":
        metric_of("singular_values_D", name="mine", meaning="A constant.")(lambda s_D: math.inf * s_D[0] ** 0)
    elif how == "function":
        metric(mine)
    else:
        registry["stable_rank"] = mine
    for _ in range(2):
        found = kept.values(workdir, [column, "unembedding/mean_cosine"], runs)
        assert found[column].isna().all()  # infinite
        assert found["unembedding/mean_cosine"].notna().all()
    assert calls[1] == ([column], runs)


def test_where_nothing_can_be_written_nothing_is_kept(measuring, capsys):
    workdir, runs, calls = measuring
    shutil.rmtree(workdir / "judge", ignore_errors=True)
    (workdir / "judge").write_text("")
    for _ in range(2):
        assert kept.values(workdir, [STABLE_RANK], runs[:1]).notna().all(axis=None)
    assert len(calls) == 2
    assert "can't be written, so what is measured isn't kept" in capsys.readouterr().err


def test_states_are_those_that_training_measured(finished):
    table = final_rows(read_table(finished)).rows.set_index("run_id")
    sources = ["final_states", "layer_0"]
    found = probing.states(epath.Path(finished), sources, table.index)
    assert sorted((m.run_id, m.source) for m in found) == sorted(itertools.product(table.index, sources))
    (sets,) = set(table["config.probe.sets"])
    for matrix in found:
        target = f"{matrix.source}/effective_rank"
        value = float(summarize(matrix.x_ND, ("effective_rank",))["effective_rank"])
        if target in table:  # training averages over the sets, of which this is one
            spread = table.at[matrix.run_id, f"{matrix.source}_spread/effective_rank"]
            assert abs(value - table.at[matrix.run_id, target]) <= (sets - 1) / sets**0.5 * spread + 1e-4 * value


def test_local_dimensions_of_too_few_states_are_said_once(measuring, capsys):
    workdir, runs, _ = measuring
    kept.values(workdir, ["final_states/local_two_nn", "unembedding/local_two_nn"], runs)
    said = capsys.readouterr().err
    assert said.count("too few for 128 neighbours") == 1
    assert "final_states.validation/local_two_nn is of 2000 states" in said


def test_states_on_a_named_text_are_measured_and_recomputed_alike(measuring):
    workdir, runs, _ = measuring
    sources = ["final_states.validation", "layer_0.code"]
    recorded = (workdir / "sweep.json").read_text()
    assert '"points": 2000' in recorded and '"neighbors": 128' in recorded
    recorded = recorded.replace('"points": 2000', '"points": 100').replace('"neighbors": 128', '"neighbors": 16')
    (workdir / "sweep.json").write_text(recorded)
    columns = [f"{source}/effective_rank" for source in sources]
    found = kept.values(workdir, [*columns, "layer_9.code/isoscore"], runs)
    assert found["layer_9.code/isoscore"].isna().all()
    matrices = probing.states(workdir, sources, runs)
    assert sorted((m.run_id, m.source) for m in matrices) == sorted(itertools.product(runs, sources))
    for matrix in matrices:
        assert len(np.unique(matrix.x_ND, axis=0)) == 100
        value = summarize(matrix.x_ND, ("effective_rank",))["effective_rank"]
        np.testing.assert_allclose(found.at[matrix.run_id, f"{matrix.source}/effective_rank"], value, rtol=1e-5)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("    return measured.x_ND.sum(axis=0)", "returns an array of shape (16,) for an unembedding of"),
        ("    return (measured.x_ND[:, :3] @ measured.x_ND).sum()", "fails on an unembedding of"),
    ],
)
def test_judge_refuses_a_metric_that_gives_no_number(finished, tmp_path, capsys, code, words, registry):
    (tmp_path / "mine.py").write_text(f"from geometry.probe import metric\n\n@metric\ndef mine(measured):\n{code}\n")
    line = refused(capsys, ["judge", str(tmp_path / "mine.py"), f"--workdir={finished}"], 2)
    assert words in line
    assert "unembedding/mine" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one or several metrics, or give --all"),
        (["effective_rnk"], "did you mean effective_rank?"),
        (
            ["curvature/trace"],
            "`olmo-jax evaluate --only=curvature` with config.evaluation.curvature, and into the table by",
        ),
        (["effective_rank", "--interventions={finished}"], "no finished run has an intervention"),
        (["missing.py"], "missing.py: no such file"),
    ],
)
def test_judge_refuses_what_it_cannot_judge(finished, capsys, arguments, words):
    arguments = [argument.format(finished=finished) for argument in arguments]
    assert words in refused(capsys, ["judge", *arguments, f"--workdir={finished}"], 2 if "inter" not in words else 1)
