"""The study of the end of training: its plan, planted effects in a table, and all of it at the smallest size."""

import itertools

import numpy as np
import pandas as pd
import pytest

from olmo_jax.config import ConfigError
from sweeps import cli
from sweeps.planning.branches import tree
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import configuration, read_sweep, resolve
from sweeps.studies.anneal import effects
from sweeps.studies.anneal.anneal import SCALES

RISE = "gptq_3/rise/in_domain"
SEEDS = 6


@pytest.mark.parametrize("scale", SCALES)
def test_every_budget_of_every_trunk_ends_in_seven_ways_at_equal_tokens(scale):
    plan = resolve(read_sweep(load_config([f"--config=anneal:{scale},seeds=5"])), lambda data: "text")
    sizes = SCALES[scale]
    trunks = [run for run in plan.runs if not run.config.branch.parent]
    assert len(trunks) == 5 * len(sizes.rates)
    ends = [run for run in plan.runs if run.config.branch.parent]
    assert len(ends) == 7 * len(sizes.budgets) * len(trunks)
    assert {run.config.total_steps for run in ends} == set(sizes.budgets)
    by_id = {run.id: run.config for run in trunks}
    for run in ends:
        parent = by_id[run.config.branch.run]
        assert parent.optimizer.learning_rate == run.config.optimizer.learning_rate
        assert (parent.init_seed, parent.data_seed) == (run.config.init_seed, run.config.data_seed)
        # The rate decays over all steps of the branch, and over no step of its parent.
        own = run.config.total_steps - run.config.branch.start_step
        assert run.config.decay_steps == own
    assert len({configuration(run.config) for run in plan.runs}) * 5 == len(plan.runs)
    assert len(tree(plan.runs)) == len(plan.runs) + 1


def test_an_unknown_option_is_refused():
    for argument, message in (("tpu", "has no scale 'tpu'"), ("cpu,seeds=3", "seeds=K, with K of 5 or more")):
        with pytest.raises(ConfigError, match=message):
            load_config([f"--config=anneal:{argument}"])


def planted(noise=0.01, decay=0.0, tokens=0.0, rate=0.0, sam=0.0, seed=0):
    """Return a table in which the rise by quantisation is a sum of planted effects, a trunk's own level and noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for s, lr, budget in itertools.product(range(SEEDS), (1e-3, 4e-3), (1000.0, 4000.0)):
        level = np.random.default_rng([seed, s]).normal()  # shared by all runs of a seed
        for share, rho, average, ema in ((0, 0, 1, False), (0, 0, 4, False), (0, 0, 0, True), (0.1, 0, 0, False),
                                         (0.1, 0.05, 0, False)):  # fmt: skip
            value = level + decay * (share > 0) + sam * (rho > 0) + tokens * np.log2(budget / 1000) / 2
            value += rate * np.log2(lr / 1e-3) / 2 + noise * rng.normal()
            rows.append({
                "run_id": f"r{len(rows)}", "trunk": f"t{s}-{lr}", "step": 10, "final": True, "diverged_at": pd.NA,
                "tokens": budget, "config.optimizer.learning_rate": lr, "config.init_seed": s,
                "config.branch.parent": f"t{s}-{lr}@5", "config.branch.average_last": average, "config.branch.ema": ema,
                "config.branch.start_step": 5 if share else 10, "config.optimizer.schedule": "wsd",
                "config.optimizer.decay_fraction": share, "config.optimizer.sam_rho": rho, RISE: value,
            })  # fmt: skip
    return pd.DataFrame(rows)


def changes(table):
    return {(one.factor, one.second): one.estimate for one in effects.changes(table, {}, None) if one.outcome == RISE}


def test_planted_effects_come_back_with_seeds_as_replicates():
    found = changes(planted(decay=0.3, tokens=-0.2, rate=0.1, sam=-0.4))
    expected = {
        ("decay", "decay over the last 10 %"): 0.3,
        ("sharpness-aware minimisation", "decay over the last 10 % with SAM"): -0.4,
        ("averaging", "mean of 4 checkpoints"): 0.0,
        ("averaging", "moving average"): 0.0,
        ("tokens", "4,000"): -0.2,
        ("learning rate", "0.004"): 0.1,
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].estimate == pytest.approx(value, abs=0.02)
        assert found[key].low < found[key].estimate < found[key].high
        assert found[key].n == SEEDS
        assert (found[key].p_value < 0.001) == (value != 0)


def test_without_effects_intervals_miss_zero_as_often_as_they_should():
    missed = []
    for seed in range(40):
        missed += [not one.low <= 0 <= one.high for one in changes(planted(noise=0.1, seed=seed)).values()]
    assert 0.01 < np.mean(missed) < 0.1  # of 240, which share their noise in part


def test_pairs_agree_in_every_other_setting():
    """Branches of wider trunks, of which only the decayed ones were kept, must not count as decay."""
    table = planted(decay=0.3)
    wider = table.assign(**{RISE: table[RISE] + 5, "config.model.d_model": 128, "run_id": "w" + table["run_id"]})
    wider = wider[wider["config.optimizer.decay_fraction"] > 0]
    both = pd.concat([table.assign(**{"config.model.d_model": 64}), wider], ignore_index=True)
    assert changes(both)[("decay", "decay over the last 10 %")].estimate == pytest.approx(0.3, abs=0.02)


def test_a_trunk_is_the_control_where_no_branch_repeats_it():
    table = planted(decay=0.3, noise=0.0)
    stable = (table["config.branch.average_last"] == 1) & (table["tokens"] == 4000)
    trunks = table[stable].assign(
        **{"run_id": table["trunk"], "config.branch.parent": "", "config.branch.start_step": 0}
    )
    found = changes(pd.concat([table[table["config.branch.average_last"] != 1], trunks], ignore_index=True))
    assert found[("decay", "decay over the last 10 %")].estimate == pytest.approx(0.3)
    repeated = pd.concat([table, trunks], ignore_index=True)
    assert len(effects.ends(repeated)) == len(table)


def test_imported_runs_and_other_schedules_are_no_ends_of_these():
    table = planted(decay=0.3)
    missing = {c: None for c in table.columns if c.startswith("config.")}
    imported = table.iloc[:1].assign(run_id="pythia", trunk="pythia", tokens=3e11, **missing)
    expected = changes(table)
    assert changes(pd.concat([table, imported], ignore_index=True)).keys() == expected.keys()
    cosine = table.assign(**{"config.optimizer.schedule": "cosine", "config.optimizer.decay_fraction": 0.1})
    assert set(effects.ends(cosine)["end"]) >= {"cosine schedule", "cosine schedule with SAM"}


def test_a_sweep_without_such_branches_has_no_changes():
    table = planted()
    assert effects.changes(table.drop(columns="trunk"), {}, None) == ()
    assert effects.changes(table[table["config.branch.average_last"] == 1], {}, None) == ()
    few = changes(table[table["config.init_seed"] < 3])
    assert all(np.isnan(one.low) and one.n == 3 for one in few.values())
    assert (
        "no intervals, for lack of seeds: 3 seeds"
        in effects.sentences(effects.changes(table[table["config.init_seed"] < 3], {}, None))[0]
    )


@pytest.mark.slow
def test_the_study_runs_and_reports_each_change(tmp_path, capsys):
    work = tmp_path / "work"
    assert cli.main(["run", "--config=anneal:smoke", f"--workdir={work}"]) == 0
    assert "GPTQ 3, rise/in domain: decay over the last 10 % changed it by" in capsys.readouterr().out
    table = pd.read_csv(work / "report" / "tables" / "end_changes.csv")
    assert {"decay", "averaging", "sharpness-aware minimisation"} <= set(table["factor"])
    assert (work / "report" / "figures" / "end_against_causes.svg").exists()
