"""The study that moves the rank: its plan, and all of it at the smallest size."""

import collections
import signal
import time

import chex
import numpy as np
import pandas as pd
import pytest

from olmo_jax.checkpoint import load_run
from olmo_jax.config import ConfigError
from sweeps import cli
from sweeps.analysis import doses
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import read_sweep, resolve
from sweeps.studies.do_rank.do_rank import SCALES
from tests.sweeps import forked


@pytest.mark.parametrize("scale", SCALES)
def test_all_arms_share_one_program_and_each_has_its_control(scale):
    plan = resolve(read_sweep(load_config([f"--config=do_rank:{scale},seeds=5"])), lambda data: "text")
    sizes = {cohort.shape.batch_size: len(cohort.runs) for cohort in plan.cohorts}
    batch = SCALES[scale].batch
    assert set(sizes) == {batch, *SCALES[scale].batches}
    (main,) = (cohort for cohort in plan.cohorts if cohort.shape.batch_size == batch)
    arms = collections.Counter(run.config.intervention.active for run in main.runs)
    assert arms[("head_rank",)] == arms[("mean_row",)] == arms[("polar_decay",)] == 15
    assert arms[("update_rank",)] == arms[("backward_rank", "update_rank")] == 15
    assert arms[("backward_rank",)] == 30
    seeds = {(run.config.init_seed, run.config.data_seed) for run in main.runs if run.config.name == "control"}
    assert seeds == {(k, k) for k in range(5)}
    assert any("placebo" in note for note in plan.notes)


def test_an_unknown_option_is_refused():
    for argument, message in (("tpu", "has no scale 'tpu'"), ("cpu,seeds=3", "seeds=K, with K of 5 or more")):
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


@pytest.mark.slow
def test_a_killed_study_goes_on_bit_for_bit_and_more_pairs_leave_the_others_as_they_were(tmp_path):
    """Batch 8 takes 15 steps and batch 4, with all arms, 30."""

    def train(name, argument):
        overrides = [
            "--config.train.tokens=1920",
            "--config.train.probe.every=10",
            "--config.train.checkpoint.every=10",
        ]
        command = ["train", f"--config=do_rank:{argument}", f"--workdir={tmp_path / name}", *overrides]
        return forked.start(command, tmp_path / "compiled")

    def finish(name, argument="smoke"):
        process = train(name, argument)
        process.join(300)
        assert process.exitcode == 0
        return {path.parent.name: path.read_bytes() for path in (tmp_path / name).glob("runs/*/metrics.jsonl")}

    whole = finish("whole")
    process, deadline = train("killed", "smoke"), time.monotonic() + 240
    # The stack with the arms is the only one whose members take more than 15 steps.
    while not list((tmp_path / "killed").glob("cohorts/*/checkpoints/20")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert finish("killed") == whole
    for run in whole:
        chex.assert_trees_all_equal(*(load_run(tmp_path / name, run)[1] for name in ("killed", "whole")))
    extended = finish("killed", "smoke,seeds=5")
    assert {run: extended[run] for run in whole} == whole
    assert len(extended) * 2 == len(whole) * 5
