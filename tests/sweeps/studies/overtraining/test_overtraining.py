"""The study of overtraining: its plan, a planted turn of the fine-tuned loss, and all of it at the smallest size."""

import itertools

import numpy as np
import pandas as pd
import pytest

from sweeps import cli
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import configuration, read_sweep, resolve
from sweeps.studies.overtraining import effects
from sweeps.studies.overtraining.overtraining import SCALES

RATES = (1e-4, 1e-3)


@pytest.mark.parametrize("scale", SCALES)
def test_every_budget_decays_over_the_same_share(scale):
    plan = resolve(read_sweep(load_config([f"--config=overtraining:{scale},seeds=5"])), lambda data: "text")
    ends = [run.config for run in plan.runs if run.config.branch.parent]
    assert len(ends) == 5 * len(SCALES[scale].budgets) == len(plan.runs) - 5
    for config in ends:
        assert config.decay_steps == config.total_steps - config.branch.start_step
        assert config.decay_steps == pytest.approx(config.total_steps / 10)
    assert len({configuration(config) for config in ends}) == len(SCALES[scale].budgets)


def planted(seeds=6, noise=0.01):
    """Fine-tuned at 1e-3, models are best at 2,000 tokens; at 1e-4 they improve throughout."""
    rng, rows = np.random.default_rng(0), []
    for s, tokens in itertools.product(range(seeds), (1000.0, 2000.0, 4000.0)):
        level = rng.normal()
        turn = {1000.0: 0.1, 2000.0: 0.0, 4000.0: 0.3}[tokens]
        rows.append({
            "run_id": f"r{len(rows)}", "trunk": f"t{s}", "step": 10, "final": True, "diverged_at": pd.NA,
            "tokens": tokens, "config.optimizer.learning_rate": 1e-3, "config.init_seed": s,
            "config.branch.parent": f"t{s}@5", "config.branch.average_last": 0, "config.branch.ema": False,
            "config.branch.start_step": 5, "config.optimizer.schedule": "wsd", "config.optimizer.decay_fraction": 0.1,
            "config.optimizer.sam_rho": 0.0, "lm_loss/in_domain": 4.0 - tokens / 1e4,
            "finetune_code_lr0.0001/target": 3.0 - tokens / 1e4 + noise * rng.normal(),
            "finetune_code_lr0.0001/forgetting": 0.01 + noise * rng.normal(),
            "finetune_code_lr0.001/target": 3.0 + turn + noise * rng.normal(),
            "finetune_code_lr0.001/forgetting": 0.1 + tokens / 1e4 + turn + noise * rng.normal(),
            "finetune_code_best/target": level, "finetune_code_lr0.001/spread/target": level,
        })  # fmt: skip
    return pd.DataFrame(rows)


def test_the_turn_is_found_at_the_rate_that_has_one():
    found = {(one.rate, one.measure): one for one in effects.by_rate(planted(), {}, None)}
    assert found.keys() == set(itertools.product(RATES, effects.MEASURES))
    turning, steady = found[(1e-3, "target")], found[(1e-4, "target")]
    assert turning.tokens == steady.tokens == (1000.0, 2000.0, 4000.0)
    assert turning.estimate.estimate == pytest.approx(0.2, abs=0.02)
    assert turning.past_best.estimate == pytest.approx(0.3, abs=0.02)
    assert turning.estimate.low > 0 > steady.estimate.high
    assert steady.past_best.estimate == 0.0
    # The loss on the old text is that before fine-tuning plus the forgetting.
    assert found[(1e-3, "after")].estimate.estimate == pytest.approx(0.2, abs=0.02)
    assert turning.estimate.n == 6
    first, *_ = effects.sentences(tuple(found.values()))
    assert (
        "From 1,000 to 4,000 tokens of pre-training, the loss on the new text after fine-tuning rises surely" in first
    )
    assert "at 1 of 2 rates; at 0.001 it changes by +0.19" in first


def test_a_sweep_without_branches_of_several_budgets_says_nothing():
    table = planted()
    assert effects.by_rate(table[table["tokens"] == 1000], {}, None) == ()
    assert effects.by_rate(table.drop(columns="trunk"), {}, None) == ()
    assert effects.by_rate(table.drop(columns=[c for c in table if c.startswith("finetune")]), {}, None) == ()
    assert effects.sentences(effects.by_rate(planted(seeds=3), {}, None)) == []


@pytest.mark.slow
def test_the_study_runs_and_reports_each_rate(tmp_path):
    work = tmp_path / "work"
    assert cli.main(["run", "--config=overtraining:smoke", f"--workdir={work}"]) == 0
    table = pd.read_csv(work / "report" / "tables" / "overtraining_changes.csv")
    assert set(table["measure"]) == set(effects.MEASURES)
    assert (work / "report" / "figures" / "finetuning_by_tokens.svg").exists()
