"""The table of a directory with a diverged run and an unfinished one; tables of several sweeps."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.results import Evaluation, Measured
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.columns import Column
from olmo_jax.config import ConfigError
from olmo_jax.train import train_cohort, write_run_files
from sweeps.analysis import AnalysisError, final_rows
from sweeps.report.row_sentences import caveat
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import loss_columns
from sweeps.table.table import build_table, is_written, read_curves, read_table, write_table


@pytest.fixture(scope="module")
def workdir(tiny, index, vary, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("table"))
    wild = vary(tiny, {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0})
    runs = {"calm": tiny, "twin": vary(tiny, {"init_seed": 1}), "wild": wild}
    shape = shape_of(vary(tiny, {"compute.steps_per_call": 1}), index.fingerprint)  # a stop comes after each step
    done = Cohort(shape, tuple(Run(name, config) for name, config in runs.items()))
    stopped = Cohort(shape, (Run("stopped", vary(tiny, {"init_seed": 2})),), part=1)
    for cohort in (done, stopped):
        write_run_files(workdir, cohort)
    assert train_cohort(workdir, done, index, lambda: False)
    calls = iter(range(100))
    assert not train_cohort(workdir, stopped, index, lambda: next(calls) >= 6)
    return workdir


def test_the_table_has_one_row_per_run_and_checkpoint_with_its_measurements(workdir, tiny):
    table = build_table(workdir, EvalConfig()).set_index(["run_id", "step"])
    assert set(table.index) == {(r, s) for r in ("calm", "twin", "wild") for s in (5, 10, 12)} | {
        ("stopped", 5),
        ("stopped", 7),
    }
    assert table.loc[("calm", 10), "tokens"] == 10 * tiny.tokens_per_step
    assert table.loc[("calm", 12), "final"] and not table.loc[("calm", 10), "final"]
    assert table["unembedding/effective_rank"].notna().drop("stopped").all()
    assert table.loc[("calm", 12), "configuration"] == table.loc[("twin", 12), "configuration"]
    assert table.loc[("wild", 12), "configuration"] != table.loc[("calm", 12), "configuration"]
    assert 0 < table.loc[("calm", 5), "weight_decay_dose"] < table.loc[("calm", 12), "weight_decay_dose"]


def test_diverged_and_unfinished_runs_are_marked_counted_and_left_out(workdir):
    table = build_table(workdir, EvalConfig())
    marked = table[table["diverged_at"].notna()]
    assert set(marked["run_id"]) == {"wild"}
    final = final_rows(table)
    assert sorted(final.rows["run_id"]) == ["calm", "twin"]
    assert (final.diverged, final.unfinished) == (1, 1)
    assert "1 diverged (left out)" in caveat(final)


def test_a_written_table_is_recognised_as_current(workdir):
    table = build_table(workdir, EvalConfig())
    assert not is_written(workdir, table)
    write_table(workdir, table)
    assert is_written(workdir, build_table(workdir, EvalConfig()))
    assert not is_written(workdir, table.assign(step=0))


def test_a_copy_without_checkpoints_gives_the_same_table_of_finished_runs(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("cohorts"))
    copied, whole = (build_table(epath.Path(path), EvalConfig()) for path in (tmp_path / "copy", workdir))
    done = whole[(whole["run_id"] != "stopped") | (whole["step"] == 5)]
    pd.testing.assert_frame_equal(copied, done.reset_index(drop=True))


def test_curves_hold_every_step(workdir):
    curves = read_curves(workdir)
    assert list(curves["calm"]["step"]) == list(range(13))
    assert list(curves["stopped"]["step"]) == list(range(8))


def test_training_flops_count_matmuls_up_to_each_checkpoint(workdir, tiny):
    table = build_table(workdir, EvalConfig()).set_index(["run_id", "step"])
    d, v, f, length, sequences = 16, 304, 32, 16, 4
    a_token = 2 * (4 * d * d + 3 * d * f + v * d)  # one block of four projections and a gated MLP; the unembedding
    pairs = length * (length + 1) // 2
    forward = sequences * (length * a_token + 4 * d * pairs)
    assert (tiny.model.d_model, tiny.model.padded_vocab_size, tiny.model.d_ff) == (d, v, f)
    assert table.loc[("calm", 10), "training_flops"] == 10 * 3 * forward


def test_imported_runs_have_no_training_columns(workdir, tmp_path):
    copied = epath.Path(shutil.copytree(workdir, tmp_path / "copy"))
    path = copied / "runs" / "calm" / "config.json"
    record = json.loads(path.read_text())
    record["config"]["imported"] = "llama"
    path.write_text(json.dumps(record))
    table = build_table(copied, EvalConfig()).set_index("run_id")
    assert table.loc["calm", ["training_flops", "weight_decay_dose"]].isna().all(axis=None)
    assert table.loc["twin", "training_flops"].notna().all()


def test_the_csv_has_the_same_rows_in_full_precision(workdir):
    table = build_table(workdir, EvalConfig())
    write_table(workdir, table)
    read = pd.read_csv(workdir / "results.csv", dtype=str, keep_default_na=False)
    assert list(read) == list(table)
    for column in table.select_dtypes("number"):
        numbers = [float(text) if text else np.nan for text in read[column]]
        np.testing.assert_array_equal(numbers, table[column].to_numpy(dtype=float, na_value=np.nan), column)
    assert set(read["final"]) == {"true", "false"}
    assert json.loads(read["config.data.train_domains"].iloc[0]) == ["prose"]
    assert read["run_id"].tolist() == table["run_id"].tolist()


def test_every_column_has_an_entry_in_the_schema(workdir):
    table = build_table(workdir, EvalConfig())
    write_table(workdir, table)
    described = json.loads((workdir / "results.schema.json").read_text())
    assert list(described) == list(table)
    assert [name for name, entry in described.items() if entry["meaning"] == "not described"] == []
    assert described["training_flops"]["unit"] == "FLOPs"
    assert not list(workdir.glob("*.partial"))


def test_declarations_of_an_evaluation_without_code_reach_the_tables_catalog(workdir, tmp_path):
    copy = epath.Path(shutil.copytree(workdir, tmp_path / "copy"))
    column = Column("prune_0.5/in_domain", "loss", "nats per token", "Loss.", {"after": "prune", "domain": "in_domain"})
    evaluation = Evaluation("prune", "prune_0.5", {})
    results.write(copy, "calm", 12, evaluation, "", Measured({"in_domain": 5.0}, {}), 0.0)
    results.declare(copy, "calm", [column])
    table = build_table(copy, EvalConfig())
    write_table(copy, table)
    joined = read_table(copy, workdir)
    for of in (table, read_table(copy), joined, final_rows(joined).rows):
        assert catalog_of(of)[column.name] == column
        assert column.name in loss_columns(of)
    assert json.loads((copy / "results.schema.json").read_text())[column.name]["of"] == column.of
    results.declare(copy, "twin", [dataclasses.replace(column, unit="bits")])
    with pytest.raises(ConfigError, match="is declared with the units 'nats per token' and 'bits'"):
        build_table(copy, EvalConfig())
    (copy / "runs" / "twin" / "columns.json").write_text("{")
    assert catalog_of(build_table(copy, EvalConfig()))[column.name] == column


@pytest.mark.parametrize("name", ["results.csv", "results.schema.json", "results.parquet"])
def test_deleted_table_files_are_written_again(workdir, name):
    table = build_table(workdir, EvalConfig())
    write_table(workdir, table)
    (workdir / name).unlink()
    assert not is_written(workdir, table)


@pytest.mark.parametrize("table", [pd.DataFrame(), pd.DataFrame({"run_id": ["a"], "x": [np.nan], "y": [[1, 2]]})])
def test_nearly_empty_tables_are_written_and_read(tmp_path, table):
    write_table(epath.Path(tmp_path), table)
    pd.testing.assert_frame_equal(read_table(tmp_path), table, check_column_type=False, check_index_type=False)


def sweeps_of(tmp_path, *tables):
    """Write one folder per table, as reports do; two of them have the same name."""
    folders = [tmp_path / place / name for place, name in zip("abcd", ["lab", "lab", "paper", "lab"], strict=True)]
    for folder, table in zip(folders, tables, strict=False):
        folder.mkdir(parents=True)
        write_table(epath.Path(folder), table)
    return folders[: len(tables)]


def test_a_single_table_round_trips(workdir):
    table = build_table(workdir, EvalConfig())
    write_table(workdir, table)
    read = read_table(workdir)
    assert "sweep" not in read
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert read["diverged_at"].dtype == "Int64"


def test_several_sweeps_are_joined_with_a_sweep_column(tmp_path):
    one = pd.DataFrame({"run_id": ["a", "b"], "config.tokens": [1, 2], "only/one": [0.5, 1.5], "final": [True, False]})
    other = pd.DataFrame({"run_id": ["a"], "config.tokens": [2.5], "only/other": [7]})
    table = read_table(*sweeps_of(tmp_path, one, other, one))
    assert table["sweep"].tolist() == ["lab", "lab", "lab-2", "paper", "paper"]
    assert table["run_id"].tolist() == ["a", "b", "a", "a", "b"]
    assert table["config.tokens"].tolist() == [1, 2, 2.5, 1, 2]
    assert table["config.tokens"].dtype == float
    np.testing.assert_array_equal(table["only/one"], [0.5, 1.5, np.nan, 0.5, 1.5])
    np.testing.assert_array_equal(table["only/other"], [np.nan, np.nan, 7, np.nan, np.nan])
    assert list(table.columns) == ["sweep", "run_id", "config.tokens", "only/one", "final", "only/other"]


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        ([1, 2], [0.5], [1.0, 2.0, 0.5]),
        (pd.array([None, 3], "Int64"), [4], [None, 3, 4]),
        ([None, None], [0.5], [None, None, 0.5]),
        ([True, False], [1], ["True", "False", "1"]),
        (["x", None], [3], ["x", None, "3"]),
        ([["a"], []], ["b"], ['["a"]', "[]", "b"]),
        ([["a"], []], [["b"]], [["a"], [], ["b"]]),
        ([True, False], [True], [True, False, True]),
        ([1.0, np.inf], ["inf"], ["1.0", "inf", "inf"]),
    ],
    ids=["ints", "missing", "nothing", "bools and ints", "text", "lists and text", "lists", "bools", "infinities"],
)
def test_columns_of_different_types_are_unified(tmp_path, one, other, joined):
    tables = [pd.DataFrame({"run_id": "r", "x": values}) for values in (one, other)]
    matched = read_table(*sweeps_of(tmp_path, *tables))["x"].tolist()
    assert [None if pd.api.types.is_scalar(x) and pd.isna(x) else x for x in matched] == joined


def test_empty_sweeps_can_be_joined(tmp_path):
    some = pd.DataFrame({"run_id": ["a"], "diverged_at": pd.array([None], "Int64")})
    table = read_table(*sweeps_of(tmp_path, pd.DataFrame(), some, some.head(0)))
    assert table["sweep"].tolist() == ["lab-2"] and table["run_id"].tolist() == ["a"]
    assert table["diverged_at"].dtype == "Int64"


def test_a_folder_without_a_table_is_a_one_line_error(tmp_path):
    with pytest.raises(AnalysisError, match=r"holds no results\.parquet; `olmo-jax report --workdir=.*` writes it"):
        read_table(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"half of a file")
    with pytest.raises(AnalysisError, match=r"results\.parquet can't be read"):
        read_table(tmp_path)
    with pytest.raises(AnalysisError, match="no folder"):
        read_table()


def test_settings_that_are_not_utf8_are_escaped():
    """A file of the user's may have a name that isn't UTF-8; Parquet would refuse it once all the work is done."""
    from sweeps.table.table import _setting

    name = os.fsdecode(b"caf\xe9.jsonl")
    assert _setting((name, "plain\n", 3)) == ["caf\\udce9.jsonl", "plain\n", 3]
