"""Sixty made models with planted relations: what size sets, what the corpus sets, and what goes with performance."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from geometry.gauge import gauge_fix
from geometry.probe import summarize
from olmo_jax.config.presets import OLMO
from olmo_jax.hf.families.registry import OLMO as FAMILY
from olmo_jax.weights import WeightsError
from sweeps import cli
from sweeps.studies.atlas.join import join
from sweeps.studies.atlas.measure import MATRICES, METRICS, measure, with_rates
from sweeps.studies.atlas.suites import SUITES, Suite

SIZES, CORPORA, SEEDS, STEPS = ("4M", "8M", "16M", "32M", "64M"), ("books", "code", "news", "web"), (1, 2, 3), (10, 100)
V, D = 120, 16

SUITE = """
from sweeps.studies.atlas.suites import Suite

SUITE = Suite(
    ({folder!r} + "/{{books,code,news,web}}-4M", {folder!r} + "/{{books,code,news,web}}-8M",
     {folder!r} + "/{{books,code,news,web}}-16M", {folder!r} + "/{{books,code,news,web}}-32M",
     {folder!r} + "/{{books,code,news,web}}-64M"),
    r"(?P<corpus>[a-z]+)-(?P<size>\\d+M)$",
    revisions="*",
    columns={{"size": "params", "corpus": "data", "seed": "seed", "step": "step"}},
    targets=("loss",),
)
"""


def unembedding(rng, scale, mean, decay):
    """Return W with a size that `scale` sets, a mean row that `mean` sets, and a rank that falls with `decay`."""
    u_VD = np.linalg.qr(rng.normal(size=(V, D)) - rng.normal(size=(V, D)).mean(0))[0]
    v_DD = np.linalg.qr(rng.normal(size=(D, D)))[0]
    w_VD = (u_VD * np.exp(-decay * np.arange(D))) @ v_DD
    return (scale * (w_VD + mean * np.ones(D) / 10)).astype(np.float32)


@pytest.fixture(scope="module")
def made(vary, tmp_path_factory):
    """Return the folder of the models, and the published table of their losses."""
    folder = tmp_path_factory.mktemp("atlas")
    config = vary(
        OLMO["4m"], {"vocab_size": V, "pad_vocab_to": 1, "d_model": D, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    )
    settings = json.dumps({"architectures": [FAMILY.architecture]} | FAMILY.settings(config))
    rng = np.random.default_rng(0)
    rows = []
    for (i, size), (j, corpus), seed in itertools.product(enumerate(SIZES), enumerate(CORPORA), SEEDS):
        luck = rng.normal()  # of one training, which its rank goes with
        for step in STEPS:
            place = folder / f"{corpus}-{size}" / f"step{step}-seed-{seed}"
            place.mkdir(parents=True)
            (place / "config.json").write_text(settings)
            w_VD = unembedding(rng, 2.0**i, (1 + j) * (1 + 0.01 * rng.normal()), 0.3 + 0.05 * luck)
            save_file({"lm_head.weight": w_VD}, place / "model.safetensors")
            loss = 5 - 0.3 * i - 0.1 * np.log(step) + 0.2 * luck + 0.02 * rng.normal()
            rows.append({"params": size, "data": corpus, "seed": float(seed), "step": step, "loss": loss, "other": 1})
    (folder / "suite.py").write_text(SUITE.format(folder=str(folder)))
    return folder, pd.DataFrame(rows)


@pytest.fixture(scope="module")
def related(made, tmp_path_factory):
    folder, published = made
    work = tmp_path_factory.mktemp("work")
    published.to_parquet(work / "published.parquet")
    arguments = [str(folder / "suite.py"), f"--join={work / 'published.parquet'}", f"--workdir={work / 'atlas'}"]
    assert cli.main(["atlas", *arguments]) == 0
    return work / "atlas"


def test_what_follows_performance_keeps_its_correlation_and_adds_to_the_prediction(related):
    table = pd.read_csv(related / "correlations.csv").set_index("metric")
    for metric in ("unembedding/effective_rank_percent", "unembedding_gauge_fixed/effective_rank_percent"):
        row = table.loc[metric]
        assert row["partial_high"] < -0.7
        assert row["q_value"] < 1e-3
        assert row["gain_low"] > 0.02
        assert row["n"] == 120


def test_what_size_sets_correlates_but_not_given_size(related):
    row = pd.read_csv(related / "correlations.csv").set_index("metric").loc["unembedding_gauge_fixed/spectral_norm"]
    assert row["spearman"] < -0.5
    assert row["spearman_high"] < 0
    assert row["partial_low"] < 0 < row["partial_high"]
    assert row["gain"] < 0.01
    assert share(related, "unembedding_gauge_fixed/spectral_norm", "size") > 0.9


def share(related, metric, setting):
    rows = pd.read_csv(related / "variance.csv")
    return rows[(rows["column"] == metric) & (rows["setting"] == setting)]["share"].item()


def test_what_the_corpus_sets_has_its_variance_there_and_no_relation(related):
    assert share(related, "unembedding/mean_cosine", "corpus") > 0.9
    row = pd.read_csv(related / "correlations.csv").set_index("metric").loc["unembedding/mean_cosine"]
    assert row["spearman_low"] < 0 < row["spearman_high"]
    noise = pd.read_csv(related / "noise.csv").set_index("metric")["share"]
    assert noise["unembedding/mean_cosine"] < 0.3
    assert noise["unembedding_gauge_fixed/effective_rank_percent"] > 0.7


def test_metrics_are_those_of_the_matrices(made, related):
    folder, _ = made
    table = pd.read_parquet(related / "atlas.parquet")
    assert len(table) == 120
    row = table[(table["size"] == "8M") & (table["corpus"] == "code") & (table["seed"] == "2")].iloc[1]
    from safetensors.numpy import load_file

    w_VD = load_file(folder / "code-8M" / "step100-seed-2" / "model.safetensors")["lm_head.weight"]
    for kind, matrix in zip(MATRICES, (w_VD, *[gauge_fix(w_VD, "layer_norm")] * 2), strict=True):
        for metric, value in summarize(matrix, METRICS).items():
            assert row[f"{kind}/{metric}"] == pytest.approx(float(value), rel=1e-4)
    earlier = table[(table["size"] == "8M") & (table["corpus"] == "code") & (table["seed"] == "2")].iloc[0]
    column = "unembedding/stable_rank"
    assert row["unembedding_rate/stable_rank"] == pytest.approx((row[column] - earlier[column]) / np.log(10), rel=1e-5)
    assert np.isnan(earlier["unembedding_rate/stable_rank"])
    assert row["published/loss"] == pytest.approx(
        made[1].query("params == '8M' and data == 'code' and seed == 2 and step == 100")["loss"].item()
    )


def test_mislabelled_rows_are_listed(made, tmp_path, capsys):
    folder, published = made
    spoilt = published.copy()
    spoilt.loc[0, "seed"] = 7.0  # no such model
    spoilt.loc[5, "step"] = 55  # no such step
    spoilt.loc[11, "step"] = 10  # as row 10
    spoilt.to_csv(tmp_path / "published.csv", index=False)
    how = [f"--join={tmp_path / 'published.csv'}", f"--workdir={tmp_path / 'atlas'}"]
    capsys.readouterr()
    assert cli.main(["atlas", str(folder / "suite.py"), *how]) == 0
    out = capsys.readouterr().out
    assert "joined 116 of 120 checkpoints" in out
    rejected = pd.read_csv(tmp_path / "atlas" / "rejected.csv")
    assert rejected["why"].tolist() == [
        "no such model was measured", "this step of the model wasn't measured",
        *["another row has the same keys"] * 2,
    ]  # fmt: skip
    assert (
        "left out 1 rows of the table, as no such model was measured; the first: params 4M, data books, seed 7.0" in out
    )


def test_names_of_the_published_table_are_given_by_the_suite(made, tmp_path):
    """Seeds 1, 2, 3 of the revisions are 0, 1, 2 of the table."""
    folder, published = made
    columns = {"corpus": "data", "seed": "seed", "step": "step"}
    names = {"seed": {"1": "0", "2": "1", "3": "2"}, "corpus": {"books": "Books (all)"}}
    suite = Suite((f"{folder}/books-4M",), r"(?P<corpus>\w+)-4M$", "*", columns, names, ("loss",))
    rows = published[(published["params"] == "4M") & (published["data"] == "books")]
    shifted = rows.assign(seed=rows["seed"] - 1, data="Books (all)")
    joined = join(suite, measure(suite, tmp_path), shifted).table
    assert len(joined) == 6
    expected = rows.set_index(["seed", "step"])["loss"]
    for _, row in joined.iterrows():
        assert row["published/loss"] == expected[float(row["seed"]), row["step"]]


def test_what_was_measured_is_not_measured_again(made, tmp_path, monkeypatch):
    folder, _ = made
    suite = Suite((f"{folder}/books-{{4M,8M}}",), r"(?P<size>\d+M)$", revisions="*")
    first = measure(suite, tmp_path)
    assert len(first) == 12
    monkeypatch.setattr("sweeps.studies.atlas.measure.read_head", lambda *_: pytest.fail("read again"))
    pd.testing.assert_frame_equal(measure(suite, tmp_path), first)


def test_the_hub_is_read_only_for_the_unembedding(made, serve, tmp_path, capsys):
    folder, _ = made
    for path in (folder / "books-4M").iterdir():
        body = np.ones((4000, 64), np.float32)
        head = (path / "model.safetensors").read_bytes()
        copy = tmp_path / "books-4M" / path.name
        copy.mkdir(parents=True)
        (copy / "config.json").write_bytes((path / "config.json").read_bytes())
        (path / "head").write_bytes(head)
        from safetensors.numpy import load

        save_file({**load(head), "model.body": body}, copy / "model.safetensors")
        (path / "head").unlink()
    hub = serve(made__books_4M=tmp_path / "books-4M")
    suite = Suite(("made/books_4M",), r"(?P<size>\d+M)$", revisions="*")
    found = measure(suite, tmp_path / "work")
    expected = measure(Suite((f"{folder}/books-4M",), r"(?P<size>\d+M)$", revisions="*"), tmp_path / "local")
    columns = [c for c in found if "/" in c]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert hub.sent["made/books_4M/model.safetensors"] < 6 * (V * D * 4 + 500)
    capsys.readouterr()
    assert cli.main(["geometry", "hub:made/books_4M", "--revisions=*", "--tensors=lm_head.weight", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert [row["run_id"] for row in rows] == found["revision"].tolist()
    assert rows[0]["metrics"]["stable_rank"] == pytest.approx(found["unembedding/stable_rank"][0], rel=1e-5)


def test_rates_are_per_logarithm_of_the_step_and_by_run():
    table = pd.DataFrame(
        {
            "repository": "a",
            "seed": ["1"] * 4 + ["2"] * 2,
            "step": [0, 10, 100, 1000, 10, 20],
            "w/m": [9, 1, 3, 4, 0, 7],
        }
    )
    rate = with_rates(table)["w_rate/m"]
    expected = [np.nan, np.nan, 2 / np.log(10), 1 / np.log(10), np.nan, 7 / np.log(2)]
    np.testing.assert_allclose(rate, expected)


def test_models_of_different_vocabularies_are_refused(made, tmp_path, capsys):
    folder, _ = made
    place = tmp_path / "own-4M" / "step10"
    place.mkdir(parents=True)
    settings = json.loads((folder / "books-4M" / "step10-seed-1" / "config.json").read_text())
    settings |= {"vocab_size": 60}
    del settings["olmo_jax"]
    (place / "config.json").write_text(json.dumps(settings))
    save_file({"lm_head.weight": np.ones((60, D), np.float32)}, place / "model.safetensors")
    (tmp_path / "suite.py").write_text(
        "from sweeps.studies.atlas.suites import Suite\n"
        f"SUITE = Suite(({str(folder / 'books-4M')!r}, {str(place.parent)!r}), r'-(?P<size>4M)$', revisions='*')\n"
    )
    capsys.readouterr()
    assert cli.main(["atlas", str(tmp_path / "suite.py"), f"--workdir={tmp_path / 'work'}"]) == 2
    assert "has a vocabulary of 60" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["none"], 2, "no such suite; give a Python file that defines SUITE, or one of pythia, polypythias"),
        (["{s}", "--join=none.csv"], 2, "no such file"),
        (["{s}", "--targets=loss"], 2, "give it with --join=FILE"),
        (["{s}", "--join={t}/empty.csv"], 2, "has no column params, data, seed, step, loss; it has a, b"),
        (["{s}", "--join={t}/other.csv"], 2, "no row of the table matches a measured checkpoint"),
        (["{t}/nothing.py"], 2, "defines no SUITE"),
        (["{t}/wrong.py"], 2, "epoch isn't one of size, corpus, seed, step"),
    ],
)
def test_bad_input_is_one_line(made, tmp_path, capsys, arguments, code, words):
    folder, published = made
    (tmp_path / "empty.csv").write_text("a,b\n1,2\n")
    published.assign(params="1B").to_csv(tmp_path / "other.csv", index=False)
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text(
        "from sweeps.studies.atlas.suites import Suite\nSUITE = Suite(('a/b',), 'x', columns={'epoch': 'e'})\n"
    )
    capsys.readouterr()
    arguments = [a.format(s=folder / "suite.py", t=tmp_path) for a in arguments]
    assert cli.main(["atlas", *arguments, f"--workdir={tmp_path / 'work'}"]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("olmo-jax: ")]
    assert words in line


def test_the_ready_suites_name_repositories_that_their_patterns_understand():
    for suite in SUITES.values():
        sources = suite.sources()
        assert len(sources) == len({*sources}) > 1
        said = [suite.said(source) for source in sources]
        assert len({tuple(sorted(s.items())) for s in said}) == len(sources)
    assert len(SUITES["polypythias"].sources()) == 45
    assert SUITES["datadecide"].said("hub:allenai/DataDecide-dolma1_7-no-flan-4M") == {
        "corpus": "dolma1_7-no-flan", "size": "4M",
    }  # fmt: skip


def test_a_checkpoint_without_an_unembedding_is_left_out(made, tmp_path, capsys):
    folder, _ = made
    for step in (10, 100):
        place = tmp_path / "x-4M" / f"step{step}"
        place.mkdir(parents=True)
        source = folder / "books-4M" / f"step{step}-seed-1"
        (place / "config.json").write_bytes((source / "config.json").read_bytes())
        (place / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "x-4M" / "step10" / "model.safetensors")
    found = measure(Suite((str(tmp_path / "x-4M"),), r"(?P<size>\d+M)$", revisions="*"), tmp_path / "work")
    assert found["step"].tolist() == [100]
    assert "step10" in capsys.readouterr().err
    assert WeightsError.exit_code == 1
