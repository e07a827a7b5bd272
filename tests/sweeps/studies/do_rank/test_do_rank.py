"""The study that moves the rank: its plan, and all of it at the smallest size."""

import collections

import numpy as np
import pandas as pd
import pytest

from olmo_jax.config import ConfigError
from sweeps import cli
from sweeps.analysis import doses
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import read_sweep, resolve
from sweeps.studies.do_rank.do_rank import SCALES


@pytest.mark.parametrize("scale", SCALES)
def test_all_arms_share_one_program_and_each_has_its_control(scale):
    plan = resolve(read_sweep(load_config([f"--config=do_rank:{scale},seeds=5"])), lambda data: "text")
    sizes = {cohort.shape.batch_size: len(cohort.runs) for cohort in plan.cohorts}
    batch = SCALES[scale].batch
    assert set(sizes) == {batch, *SCALES[scale].batches}
    (main,) = (cohort for cohort in plan.cohorts if cohort.shape.batch_size == batch)
    arms = collections.Counter(run.config.intervention.active for run in main.runs)
    assert arms[("head_rank",)] == arms[("mean_row",)] == arms[("polar_decay",)] == 15
    assert arms[("backward_rank",)] == 30
    seeds = {(run.config.init_seed, run.config.data_seed) for run in main.runs if run.config.name == "control"}
    assert seeds == {(k, k) for k in range(5)}
    assert any("placebo" in note for note in plan.notes)


def test_an_unknown_option_is_refused():
    for argument, message in (("tpu", "has no scale 'tpu'"), ("cpu,seeds=3", "seeds=K with K of 5 or more")):
        with pytest.raises(ConfigError, match=message):
            load_config([f"--config=do_rank:{argument}"])


@pytest.mark.slow
def test_the_study_runs_and_reports_what_each_arm_moved(tmp_path, capsys):
    work = tmp_path / "work"
    assert cli.main(["run", "--config=do_rank:smoke", f"--workdir={work}"]) == 0
    assert "the placebo moved" in capsys.readouterr().out
    table = pd.read_parquet(work / "results.parquet")
    pairs = doses.pairs(table, "unembedding_gauge_fixed/effective_rank_percent", "lm_loss/in_domain").rows
    by_arm = pairs.groupby("arm")[["x", "y"]].agg(lambda values: np.abs(values).max())
    assert by_arm.loc["mean_row"].max() < 1e-4
    assert by_arm.loc["head_rank", "x"] > 20
    assert (work / "report" / "tables" / "intervention_slopes.csv").exists()
    slopes = pd.read_csv(work / "report" / "tables" / "intervention_slopes.csv")
    assert set(slopes["note"].dropna()) >= {"2 pairs; an interval needs 5"}
