"""`olmo-jax geometry`: values against numpy in float64, our runs against their logged probes, and invalid usage."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from olmo_jax.checkpoint import load_run
from sweeps import cli
from sweeps.models.geometry import DEFAULT_METRICS

CONFIG = """
from ml_collections import ConfigDict
from olmo_jax.config import TrainConfig, to_config_dict
from sweeps.planning.grid import product

def get_config(arg=""):
    train = to_config_dict(TrainConfig(name="table", tokens=8 * 64))
    train.model.update(dict(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32))
    train.data.update(dict(corpus="text_files", files=({corpus!r},), domain_field="domain", bpe_vocab_size=300,
                           train_domains=("prose",), sequence_length=16, batch_size=4))
    train.probe.update(dict(every=4, documents=10, document_tokens=12))
    train.checkpoint.every = 4
    train.mesh.member = 1
    return ConfigDict(dict(train=train, grid=product({{"init_seed": [0, 1]}})))
"""


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """Two runs of 8 steps, trained through the command line."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "config.py").write_text(CONFIG.format(corpus=str(corpus)))
    assert cli.main(["train", f"--config={folder / 'config.py'}", f"--workdir={folder / 'work'}"]) == 0
    return folder / "work"


@pytest.fixture
def table(capsys):
    """`table(PATH, option...)`: the list of rows that --json prints."""

    def rows(path, *options):
        capsys.readouterr()
        assert cli.main(["geometry", str(path), "--json", *options]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed.keys() == {"path", "tensors"}
        assert printed["path"] == str(path)
        return printed["tensors"]

    return rows


def by_numpy(w_VD):
    """The default metrics by their definitions (methods.md section 2), in float64."""
    w_VD = np.asarray(w_VD, np.float64)
    s_D = np.linalg.svd(w_VD, compute_uv=False)
    p_D = s_D / s_D.sum()
    rank = np.exp(-(p_D * np.log(p_D)).sum())
    unit_VD = w_VD / np.linalg.norm(w_VD, axis=1, keepdims=True)
    rows, columns = w_VD.shape
    along = w_VD @ np.linalg.svd(w_VD)[2].T
    z = np.exp(np.concatenate([along, -along], axis=1)).sum(0)
    v_D = np.linalg.eigvalsh(np.cov(w_VD.T))
    v_D = v_D * np.sqrt(columns) / np.linalg.norm(v_D)
    defect = np.linalg.norm(v_D - 1) / np.sqrt(2 * (columns - np.sqrt(columns)))
    return {
        "effective_rank": rank,
        "effective_rank_percent": 100 * rank / columns,
        "stable_rank": (s_D**2).sum() / s_D[0] ** 2,
        "mean_cosine": ((unit_VD.sum(0) ** 2).sum() - rows) / (rows * (rows - 1)),
        "partition_isotropy": z.min() / z.max(),
        "condition_number": s_D[0] / s_D[-1],
        "isoscore": ((columns - defect**2 * (columns - np.sqrt(columns))) ** 2 - columns) / (columns * (columns - 1)),
    }


def random(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, columns)) * rng.uniform(0.1, 0.5, columns) + 0.05).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_geometry_values_match_numpy_in_float64(tmp_path, table, dtype):
    w_VD = random(60, 12).astype(dtype)
    save_file({"lm_head.weight": w_VD}, tmp_path / "m.safetensors")
    (row,) = table(tmp_path / "m.safetensors")
    values = row.pop("metrics")
    assert row == {
        "name": "lm_head.weight", "run_id": None, "step": None, "shape": [60, 12], "dtype": np.dtype(dtype).name,
        "gauge": "none",
    }  # fmt: skip
    assert list(values) == list(DEFAULT_METRICS)
    assert values == pytest.approx(by_numpy(w_VD), rel=1e-3)


def test_a_wide_array_is_measured_raw_and_gauge_fixed(tmp_path, table):
    w_VD = random(8, 30)
    np.save(tmp_path / "w.npy", w_VD)
    raw, fixed = table(tmp_path / "w.npy", "--gauge=affine_layer_norm", "--metrics=stable_rank,mean_cosine")
    assert (raw["name"], raw["gauge"]) == ("w", "none")
    assert (fixed["name"], fixed["gauge"]) == ("w", "affine_layer_norm")
    for row, matrix in ((raw, w_VD), (fixed, w_VD - w_VD.mean(0))):
        expected = by_numpy(matrix)
        assert row["metrics"] == pytest.approx({name: expected[name] for name in ("stable_rank", "mean_cosine")}, 1e-3)


def test_nan_metrics_are_null_in_json_and_a_dash_in_the_table(tmp_path, table, capsys):
    broken = random(8, 3)
    broken[0, 0] = np.nan
    np.save(tmp_path / "w.npy", broken)
    (row,) = table(tmp_path / "w.npy", "--metrics=effective_rank")
    assert row["metrics"] == {"effective_rank": None}
    assert cli.main(["geometry", str(tmp_path / "w.npy"), "--metrics=effective_rank"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["w", "8", "x", "3", "float32", "-"]


def test_embeddings_are_measured_by_default_and_all_matrices_otherwise(tmp_path, table):
    path = tmp_path / "m.safetensors"
    save_file({"model.embed_tokens.weight": random(9, 4), "layers.0.up": random(5, 4), "lm_head.weight": random(9, 4),
               "norm": np.ones(4, np.float32), "conv": np.ones((2, 2, 2), np.float32)}, path)  # fmt: skip
    assert [row["name"] for row in table(path)] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert [row["name"] for row in table(path, r"--tensors=layers\.\d")] == ["layers.0.up"]
    assert len(table(path, "--tensors=")) == 3
    save_file({"layers.0.up": random(5, 4), "layers.1.up": random(6, 4)}, path)
    assert [row["name"] for row in table(path)] == ["layers.0.up", "layers.1.up"]


def test_an_exact_tensor_name_selects_only_that_tensor(tmp_path, table, capsys):
    path = tmp_path / "m[1].safetensors"
    names = ["w", "w.0", "wx0", "w[0", "w(.*)", "w(x)", "bias"]
    save_file({name: random(5, 4) if name != "bias" else np.ones(4, np.float32) for name in names}, path)
    for name in names[:-1]:
        assert [row["name"] for row in table(path, f"--tensors={name}", "--metrics=stable_rank")] == [name]
    assert len(table(path, "--tensors=w.*", "--metrics=stable_rank")) == 6
    for pattern, code, word in (
        ("bias", 1, "is a matrix"),
        ("w[", 2, "nor a regular"),
        ("a{99999999999}", 2, "nor a regular"),
    ):
        assert cli.main(["geometry", str(path), f"--tensors={pattern}"]) == code
        assert word in capsys.readouterr().err


def test_a_trainer_folder_is_no_working_directory(tmp_path, table):
    (tmp_path / "runs" / "Nov24_host").mkdir(parents=True)
    (tmp_path / "runs" / "Nov24_host" / "events.out.tfevents.1").touch()
    save_file({"lm_head.weight": random(9, 4)}, tmp_path / "model.safetensors")
    assert [row["name"] for row in table(tmp_path)] == ["lm_head.weight"]


def test_every_run_has_its_unembedding_raw_and_gauge_fixed(trained, table):
    rows = table(trained)
    runs = sorted(path.name for path in (trained / "runs").iterdir())
    assert [(row["run_id"], row["name"], row["gauge"]) for row in rows] == [
        (run, name, gauge)
        for run in runs
        for name, gauge in (("embedding", "none"), ("unembedding", "none"), ("unembedding", "layer_norm"))
    ]
    assert {row["step"] for row in rows} == {8}
    assert all(row["shape"] == [300, 16] for row in rows)
    w_VD = load_run(trained, runs[0])[1]["unembedding"][:300].astype(np.float64)
    fixed_VD = w_VD - w_VD.mean(0)
    fixed_VD -= fixed_VD.mean(1, keepdims=True)
    assert rows[1]["metrics"] == pytest.approx(by_numpy(w_VD), rel=1e-3)
    for name in ("effective_rank", "stable_rank"):
        assert rows[2]["metrics"][name] == pytest.approx(by_numpy(fixed_VD + 1e-12)[name], rel=1e-3)
    assert len(table(trained, "--gauge=none")) == 4
    assert len(table(trained, "--gauge=rms_norm", "--tensors=mlp/up")) == 4


def test_geometry_of_a_run_matches_its_logged_probe(trained, table):
    run = sorted(path.name for path in (trained / "runs").iterdir())[1]
    rows = table(trained, f"--run={run}", "--step=4", "--tensors=^unembedding$")
    assert [(row["run_id"], row["step"]) for row in rows] == [(run, 4)] * 2
    lines = (trained / "runs" / run / "metrics.jsonl").read_text().splitlines()
    (probed,) = [line for line in map(json.loads, lines) if line["step"] == 4]
    for row, target in zip(rows, ("unembedding", "unembedding_gauge_fixed"), strict=True):
        for name in ("effective_rank", "partition_isotropy"):
            assert row["metrics"][name] == pytest.approx(probed[f"{target}/{name}"], rel=1e-4)


def test_the_table_is_aligned(trained, tmp_path, capsys):
    assert cli.main(["geometry", "--metrics=effective_rank,condition_number", str(trained)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == ["run", "step", "tensor", "shape", "dtype", "effective_rank", "condition_number"]
    assert len(rows) == 6
    assert sum("unembedding (gauge-fixed)" in row for row in rows) == 2
    place = heading.index("tensor")
    assert all(row[place - 1] == " " and row[place:].startswith(("embedding", "unembedding")) for row in rows)
    end = heading.index("effective_rank") + len("effective_rank")
    assert all(row[:end].split()[-1].replace(".", "").isdigit() for row in rows)
    np.save(tmp_path / "w.npy", random(8, 3))
    assert cli.main(["geometry", str(tmp_path / "w.npy")]) == 0
    assert capsys.readouterr().out.split()[:3] == ["tensor", "shape", "dtype"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["geometry"], 2, ["olmo-jax geometry", "PATH"]),
        (["geometry", "{work}", "--workdir={work}"], 2, ["--workdir={work}"]),
        (["geometry", "{work}", "--config=x.py"], 2, ["geometry takes no --config"]),
        (["geometry", "{work}", "--step=last"], 2, ["--step", "last"]),
        (["geometry", "{work}", "--metrics=effektive_rank"], 2, ["--metrics", "'effective_rank'"]),
        (["geometry", "{work}", "--metrics="], 2, ["--metrics"]),
        (["geometry", "{work}", "--tensors=["], 2, ["--tensors=[", "nor a regular expression"]),
        (["geometry", "{work}", "--gauge=norm"], 2, ["--gauge=norm", "rms_norm"]),
        (["geometry", "{work}", "--run=none"], 1, ["no run 'none'", "its runs: table"]),
        (["geometry", "{work}", "--step=7"], 1, ["at step 7", "steps: 4, 8"]),
        (
            ["geometry", "{work}", "--tensors=lm_head"],
            1,
            ["no tensor matches", "lm_head", "unembedding [300 x 16]"],
        ),
        (["geometry", "{tmp}/missing"], 1, ["missing", "no such file or folder"]),
        (["geometry", "{tmp}"], 1, ["neither"]),
        (["geometry", "{tmp}/cut.npy"], 1, ["cut.npy", "not a complete .npy"]),
        (["geometry", "{tmp}/cut.safetensors"], 1, ["cut.safetensors", "not a complete .safetensors"]),
        (["geometry", "{tmp}/flat.npy"], 1, ["no tensor is a matrix", "flat [5] float64"]),
        (["geometry", "{tmp}/flat.npy", "--tensors=fl"], 1, ["no tensor that matches --tensors=fl is a matrix"]),
        (["geometry", "{tmp}/flat.npy", "--run=x"], 1, ["only in a working directory"]),
        (["status", "{work}", "--workdir={work}"], 2, ["unrecognized", "{work}"]),
        (["status", "--workdir={work}", "--gauge=none"], 2, ["unrecognized", "--gauge=none"]),
    ],
)
def test_bad_usage_is_one_line_and_prints_no_table(trained, tmp_path, capsys, arguments, code, words):
    folder = tmp_path / "files"
    folder.mkdir()
    if "{tmp}" not in arguments:  # an empty folder
        np.save(folder / "flat.npy", np.ones(5))
        (folder / "cut.npy").write_bytes((folder / "flat.npy").read_bytes()[:-8])
        (folder / "cut.safetensors").write_bytes(b"\x10")
    capsys.readouterr()
    assert cli.main([a.format(work=trained, tmp=folder) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("olmo-jax: ")]
    assert all(word.format(work=trained) in line for word in words), line
