"""DataDecide's recipe against its published table, and published curves beside those of a sweep."""

import numpy as np
import pandas as pd
import pytest

from olmo_jax.cohort import checkpoint_steps
from olmo_jax.config import ConfigError
from olmo_jax.config.model import head_count
from sweeps.analysis.results import analyze
from sweeps.planning.plan import read_sweep, resolve
from sweeps.report.export import figure_item
from sweeps.report.item import NothingToShow
from sweeps.report.joining import JoinError, join_published
from sweeps.studies.datadecide import datadecide
from sweeps.studies.datadecide.published import join
from tests.sweeps.studies.test_registry import sweep

# As published: parameters without the embedding, batch, learning rate to two digits, last step.
PUBLISHED = {
    "4m": (3_744_832, 32, 1.4e-2, 5_725),
    "6m": (6_010_464, 32, 1.2e-2, 9_182),
    "8m": (8_538_240, 32, 1.1e-2, 13_039),
    "10m": (9_900_432, 32, 1.0e-2, 15_117),
    "14m": (14_380_224, 32, 9.2e-3, 21_953),
    "16m": (16_004_560, 32, 8.9e-3, 24_432),
    "20m": (19_101_888, 64, 8.4e-3, 14_584),
    "60m": (57_078_144, 96, 5.8e-3, 29_042),
    "90m": (97_946_640, 160, 4.9e-3, 29_901),
    "150m": (151_898_880, 192, 4.2e-3, 38_157),
}
PERPLEXITY = "eval/pile-validation/Perplexity"


def plan_of(argument):
    return resolve(read_sweep(datadecide.get_config(argument)), fingerprint=lambda data: f"text-of-{data.name}")


def test_counts_rates_batches_and_steps_are_those_published():
    plan = plan_of("all,seeds=3")
    assert len(plan.runs) == 30
    for size, (count, batch, rate, steps) in PUBLISHED.items():
        of_size = [run.config for run in plan.runs if run.config.name == size]
        assert {(c.init_seed, c.data_seed) for c in of_size} == {(6198, 6198), (14, 14), (15, 15)}
        for config in of_size:
            assert head_count(config.model) == count
            assert (config.data.batch_size, config.total_steps) == (batch, steps)
            assert float(f"{config.optimizer.learning_rate:.1e}") == rate
            assert config.warmup_steps == pytest.approx(count / (batch * 2048), abs=1)
            c = config.optimizer
            assert (c.weight_decay, c.warmup_from, c.final_fraction, c.schedule) == (0.05, 0, 0.01, "cosine")
            assert (c.beta1, c.beta2, c.eps, c.clip_norm) == (0.9, 0.95, 1e-8, 1)
            assert c.decay_norms and c.decay_embeddings
            assert (config.model.init_std, config.model.scaled_init) == (0.02, False)
    (cohort,) = plan_of("4m").cohorts
    assert sorted(checkpoint_steps(cohort))[-5:] == [1250, 2500, 3750, 5000, 5725]


def test_the_reduced_run_has_the_published_shape():
    (run,) = plan_of("cpu").runs
    assert head_count(run.config.model) == PUBLISHED["4m"][0]
    assert run.config.data.sequence_length == 2048
    assert float(f"{run.config.optimizer.learning_rate:.1e}") == PUBLISHED["4m"][2]
    assert run.config.warmup_steps == pytest.approx(0.01 * run.config.total_steps, abs=1)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("5m", "no size '5m'; sizes: 4m, 6m"),
        ("4m+cpu", "no size '4m.cpu'"),
        ("4m,seeds=4", "seeds=4 needs a number from 1 to 3"),
        ("4m,corpus=pile", "no option 'corpus=pile'; options: seeds=, text=, tokenizer="),
    ],
)
def test_an_unknown_argument_is_refused(argument, words):
    with pytest.raises(ConfigError, match=words):
        datadecide.get_config(argument)


@pytest.fixture
def table():
    """Of a sweep of the 4M model with two seeds and two checkpoints."""
    rows = [{"config.name": "4m", "config.init_seed": seed, "step": step, "lm_loss/in_domain": np.log(100.0 + seed)}
            for seed in (6198, 14) for step in (1250, 2500)]  # fmt: skip
    return pd.DataFrame(rows).assign(**{"config.data.batch_size": 32})


def published(**changes):
    rows = [
        {"params": size, "data": data, "seed": seed, "step": step, PERPLEXITY: 200.0 - step / 100}
        for size in ("4M", "20M")
        for data in ("C4", "Dolma1.7")
        for seed in ("default", "small aux 2", "small aux 3")
        for step in (0, 1250, 2500)
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_rows_of_the_same_size_and_seed_are_joined(table, capsys):
    curves = join(published(), table)
    ours, theirs = (curves[curves["corpus"].eq("this sweep") == here] for here in (True, False))
    assert sorted(zip(ours["seed"], ours["step"], ours["perplexity"].round(6), strict=True)) == [
        ("default", 1250, 6298), ("default", 2500, 6298), ("small aux 2", 1250, 114), ("small aux 2", 2500, 114),
    ]  # fmt: skip
    assert (len(theirs), set(theirs["size"]), set(theirs["seed"])) == (12, {"4m"}, {"default", "small aux 2"})
    assert "24 of 36 rows are of other sizes or seeds" in capsys.readouterr().err
    by_number = published(seed=published()["seed"].map({"default": 6198, "small aux 2": 14, "small aux 3": 15}))
    pd.testing.assert_frame_equal(join(by_number, table), curves)
    holes = pd.concat([by_number, published(seed=np.nan)[:1]])  # numbers become floats, and an index is there twice
    pd.testing.assert_frame_equal(join(holes, table), curves)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (published(params="60M"), "seeds are 60m with default, small aux 2, small aux 3, and the sweep's 4m with"),
        (published(seed="large aux 2"), "4m with large aux 2, and the sweep's 4m with default, small aux 2"),
        (published()[lambda rows: (rows["params"] == "20M") | (rows["seed"] == "small aux 3")], "no row of a size and"),
        (published().drop(columns="step"), "no column step; it has params, data"),
        (published().drop(columns=PERPLEXITY), f"no column {PERPLEXITY}"),
        (pd.concat([published(), published()[:2]]), "2 duplicate rows, the first of them 4m, C4, default, step 0"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, rows, words):
    with pytest.raises(JoinError, match=words):
        join(rows, table)


def test_a_file_is_read_or_refused(table, tmp_path):
    published().to_parquet(tmp_path / "results.parquet")
    published().to_csv(tmp_path / "results.csv", index=False)
    (tmp_path / "bad.parquet").write_text("<html>")
    curves = join_published(str(tmp_path / "results.parquet"), table)["datadecide"]
    pd.testing.assert_frame_equal(join_published(str(tmp_path / "results.csv"), table)["datadecide"], curves)
    for name, words in {"bad.parquet": "can't be read", "none.csv": "no such file", "x.json": "needs a table"}.items():
        with pytest.raises(JoinError, match=words):
            join_published(str(tmp_path / name), table)
    others = {"config.name": "mine", "config.data.batch_size": 4}  # datadecide:cpu has another axis of steps
    for other in (table.drop(columns="config.init_seed"), *(table.assign(**{key: others[key]}) for key in others)):
        with pytest.raises(JoinError, match="no runs of a study that takes a published table .datadecide."):
            join_published(str(tmp_path / "results.csv"), other)
    with pytest.raises(JoinError, match="no losses to compare; run `olmo-jax evaluate` first"):
        join(published(), table.drop(columns="lm_loss/in_domain"))


def test_the_figure_shows_both(table):
    results, make = analyze(*sweep()), figure_item("published_curves").make
    with pytest.raises(NothingToShow, match="--join"):
        make(results)
    figure = make(results._replace(joined={"datadecide": join(published(), table)}))
    assert set(figure.data["published"]["corpus"]) == {"this sweep", "C4", "Dolma1.7"}
    assert figure.specification["params"][0]["bind"]["options"] == ["C4", "Dolma1.7"]
