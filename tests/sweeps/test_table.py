"""The table of a directory with a diverged run and an unfinished one."""

import pytest
from etils import epath

from eval.config import EvalConfig
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.train import train_cohort, write_run_files
from sweeps.analysis import final_rows
from sweeps.report.findings import caveat, findings
from sweeps.table import build_table, is_written, read_curves, write_table


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


def test_a_row_a_run_and_checkpoint_with_what_was_measured_there(workdir, tiny):
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
    assert "1 diverged and left out" in caveat(table)
    assert len(findings(table)) == 3


def test_the_table_is_written_whole_and_known_again(workdir):
    table = build_table(workdir, EvalConfig())
    assert not is_written(workdir, table)
    write_table(workdir, table)
    assert is_written(workdir, build_table(workdir, EvalConfig()))
    assert not is_written(workdir, table.assign(step=0))


def test_curves_hold_every_step(workdir):
    curves = read_curves(workdir)
    assert list(curves["calm"]["step"]) == list(range(13))
    assert list(curves["stopped"]["step"]) == list(range(8))
