"""The structure of the packages: imports run one way, and every command of the how-to pages works.

.ci/dist runs the README's commands, with only the wheel installed.
"""

import ast
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from olmo_jax import hf, model
from olmo_jax.config.presets import PYTHIA
from olmo_jax.data.tokenizer import train_bpe

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = ["geometry", "olmo_jax", "eval", "sweeps"]


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for layer in LAYERS
    for path in (ROOT / layer).rglob("*.py")
}
# Which of the folders of sweeps/ must not import which, and why.
SEPARATE = {
    "sweeps.planning": ["sweeps.table", "sweeps.analysis", "sweeps.report"],  # a plan is made before there are results
    "sweeps.table": ["sweeps.analysis", "sweeps.report"],  # the table is what both are made from
    "sweeps.analysis": ["sweeps.report", "sweeps.studies"],  # statistics of any table
    "sweeps.report": ["sweeps.studies."],  # studies register themselves: the registry may be imported, a study may not
    "sweeps.running": ["sweeps.studies."],
}


def imported(path):
    """Yield the packages or modules that a file imports anywhere, also within functions and only for types."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in submodules)


def packages(path):
    return {name.partition(".")[0] for name in imported(path)}


def cycle(graph):
    """Return the names along a cycle of the graph, or [] if it has none."""
    done, trail = set(), []

    def visit(name):
        if name in trail:
            return trail[trail.index(name) :]
        if name in done:
            return []
        trail.append(name)
        results = next((results for after in sorted(graph[name]) if (results := visit(after))), [])
        trail.pop()
        done.add(name)
        return results

    return next((results for name in sorted(graph) if (results := visit(name))), [])


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    results = {str(path): above & packages(path) for path in (ROOT / layer).rglob("*.py")}
    assert {path: names for path, names in results.items() if names} == {}


@pytest.mark.parametrize("folder", SEPARATE)
def test_folders_of_sweeps_import_one_way(folder):
    files = {name: path for name, path in MODULES.items() if f"{name}.".startswith(f"{folder}.")}
    assert files
    forbidden = tuple(SEPARATE[folder])
    assert [
        (name, other) for name, path in files.items() for other in imported(path) if other.startswith(forbidden)
    ] == []


@pytest.mark.parametrize(
    ("graph", "results"),
    [
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c"]),
        ({"a": {"a"}}, ["a"]),
    ],
)
def test_the_cycle_search_detects_a_cycle(graph, results):
    assert cycle(graph) == results


def test_module_imports_have_no_cycle():
    graph = {name: {other for other in imported(path) if other in MODULES} for name, path in MODULES.items()}
    assert sum(map(len, graph.values())) > len(graph)
    assert cycle(graph) == []


def test_no_module_is_longer_than_400_lines():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("package", ["tensorflow", "torch", "clu"])
def test_nothing_here_imports(package):
    for layer in LAYERS:
        assert all(package not in packages(path) for path in (ROOT / layer).rglob("*.py"))


def test_help_answers_without_the_heavy_libraries():
    code = (
        "import sys, sweeps.cli; sweeps.cli.main(['--help']); sys.exit('jax' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, check=False).returncode == 0


# In an order in which each finds what it needs from the earlier ones.
PAGES = ["docs/how-to/sweeps.md", "docs/how-to/machines.md", "docs/how-to/models.md"]


def blocks(language, *pages):
    text = "\n".join((ROOT / page).read_text() for page in pages)
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


# Make documented commands small enough for a test; what they do stays the same.
LITTLE_EVALUATION = [
    "--config.evaluation.tokens_per_domain=512",
    "--config.evaluation.quantize.bits=(4,)",
    "--config.evaluation.quantize.calibration_tokens=512",
]
SMALLER = {
    "own_text:texts": [
        "--config.train.tokens=4096",
        "--config.train.data.bpe_vocab_size=512",
        "--config.train.model.vocab_size=512",
        "--config.train.model.d_model=32",
        "--config.train.model.d_ff=64",
        "--config.train.model.n_layers=1",
        "--config.train.probe.documents=16",
        "--config.train.probe.document_tokens=16",
        *LITTLE_EVALUATION,
    ],
    "import pythia-14m": ["--config.train.data.max_megabytes=0.5", *LITTLE_EVALUATION],
    "--config=olmo:4m": [
        "--config.tokens=8192",
        "--config.data.max_megabytes=0.5",
        "--config.data.bpe_vocab_size=512",
        "--config.data.batch_size=8",
        "--config.data.sequence_length=128",
        "--config.model.vocab_size=512",
        "--config.model.d_model=32",
        "--config.model.n_layers=1",
        "--config.probe.documents=16",
    ],
    "evaluate --workdir=runs/4m": LITTLE_EVALUATION,
}


def publish(folder):
    """Write a folder as it would be downloaded: a Pythia of one layer, and a tokenizer trained on this code."""
    config = dataclasses.replace(
        PYTHIA["14m"], vocab_size=512, d_model=32, n_layers=1, n_heads=2, d_ff=64, context_length=64
    )
    texts = [path.read_text() for path in sorted((ROOT / "olmo_jax").glob("*.py"))]
    train_bpe(texts, 400, "<|endoftext|>").save(pathlib.Path("tokenizer.json"))
    hf.export_checkpoint(config, model.init(config, jax.random.key(0)), folder, tokenizer="tokenizer.json")


# On one device, as for a user, but in one process, to save time.
CARRY_OUT = """
import json, sys
from sweeps import cli
for command in json.load(sys.stdin):
    if cli.main(command):
        sys.exit(f"failed: {command}")
"""


def write_texts(folder):
    """Write so many documents that, whatever their text, some are drawn for validation."""
    for i, path in enumerate(sorted((ROOT / "olmo_jax").rglob("*.py"))):
        (folder / f"{i}.txt").write_text(path.read_text()[:5000])


@pytest.mark.slow
def test_the_commands_of_the_how_to_pages_work(tmp_path, monkeypatch):
    for folder in ("sweeps", "olmo_jax"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    lines = [line for line in "".join(blocks("console", *PAGES)).splitlines() if line.startswith("olmo-jax")]
    assert len(lines) == 32
    save_file({"lm_head.weight": np.ones((9, 4), np.float32)}, "model.safetensors")
    publish("pythia-14m")
    experiments = {
        "olmo-jax run --config=grokking:cpu --workdir=runs/grokking",
        "olmo-jax run --config=local_dimension:shift --workdir=runs/shift",
        "olmo-jax run --config=do_rank:cpu --workdir=runs/do-rank",
        "olmo-jax run --config=datadecide:4m,text=dolma/*.json.gz,tokenizer=neox.json --workdir=runs/datadecide",
        "olmo-jax report --workdir=runs/datadecide --join=ppl-results.parquet",
    }
    assert experiments < {*lines}, "the tests of the studies run them at the scale smoke, or test their parts"
    commands = []
    for line in lines:
        if line not in experiments:
            more = next((extra for file, extra in SMALLER.items() if file in line), [])
            commands.append([*shlex.split(line)[1:], *more])
    flags = re.sub("--xla_force_host_platform_device_count=[0-9]+", "", os.environ["XLA_FLAGS"])
    done = subprocess.run(
        [sys.executable, "-c", CARRY_OUT],
        input=json.dumps(commands),
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs/mine/report/index.html").exists()
    assert (tmp_path / "runs/4m/report/index.html").exists()
    assert (tmp_path / "runs/mine/report/figures/u_shapes.svg").exists()
    assert (tmp_path / "runs/tied-or-not/comparison.csv").exists()

    # The page's Python code, on the sweep just run instead of the demo.
    (tmp_path / "demo").symlink_to(tmp_path / "runs/mine")
    (code,) = blocks("python", *PAGES)
    with contextlib.redirect_stdout(None):
        exec(compile(code.replace("config.data.batch_size", "config.optimizer.learning_rate"), "sweeps.md", "exec"), {})


def test_the_configuration_of_the_page_on_branches_is_a_tree(tmp_path, monkeypatch, capsys):
    from sweeps import cli

    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)
    (code,) = blocks("python", "docs/how-to/branches.md")
    (tmp_path / "mine.py").write_text(code)
    assert cli.main(["plan", "--config=mine.py:*.txt", "--flops=1e12"]) == 0
    lines = capsys.readouterr().out.splitlines()
    drawn = [line.split("-")[0].strip() for line in lines[lines.index(TREE) + 1 :][:6]]
    assert drawn == ["trunk", "└─ decayed"] * 3
    for line in blocks("console", "docs/how-to/branches.md"):
        assert cli.main([*shlex.split(line.strip())[1:], "--json"]) == 0


TREE = "branches, with steps counted from the root:"
MINE = '''
import jax.numpy as jnp

from geometry.probe import metric
from sweeps.configs import own_text


@metric
def longest_row(measured):
    """Length of the longest row."""
    return jnp.max(jnp.linalg.norm(measured.x_ND, axis=1))


def get_config(files):
    config = own_text.get_config(files)
    probe = config.train.probe
    probe.unembedding.metrics += ("longest_row",)
    probe.unembedding.every = 10
    probe.layers.metrics = ("longest_row", "effective_rank")
    return config
'''


@pytest.mark.slow
def test_a_sweeps_own_metric_reaches_the_probe_the_table_and_the_report(tmp_path, monkeypatch, registry):
    """The decorated function in the sweep's own file suffices."""
    from sweeps import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    write_texts(tmp_path)
    small = SMALLER["own_text:texts"]
    assert cli.main(["run", "--config=mine.py:*.txt", "--workdir=work", *small]) == 0
    table = pd.read_parquet("work/results.parquet")
    assert (table["unembedding/longest_row"] > 0).all()
    assert (table["unembedding_gauge_fixed/longest_row"] > 0).all()
    assert (table["layer_0/longest_row"] > 0).all()
    rows = [json.loads(line) for line in next((tmp_path / "work/runs").iterdir()).joinpath("metrics.jsonl").open()]
    assert "unembedding/longest_row" in rows[0]
    page = (tmp_path / "work/report/index.html").read_text()
    assert "longest_row" in page

    # Another process, which doesn't know the metric, can read the results.
    command = [sys.executable, "-m", "sweeps.cli", "report", f"--workdir={tmp_path / 'work'}"]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == 0
    schema = json.loads((tmp_path / "work/results.schema.json").read_text())
    assert schema["layer_0/longest_row"]["meaning"] == "Of the states after block 0: length of the longest row."
