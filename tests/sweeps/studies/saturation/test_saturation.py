"""The study of saturation: its plan, planted hazards in a table, and all of it at the smallest size."""

import itertools

import numpy as np
import pandas as pd
import pytest

from olmo_jax.config import ConfigError
from sweeps import cli
from sweeps.planning.config_file import load_config
from sweeps.planning.plan import configuration, read_sweep, resolve
from sweeps.studies.saturation import effects
from sweeps.studies.saturation.saturation import SCALES

END = 1000


@pytest.mark.parametrize("scale", SCALES)
def test_factors_are_crossed(scale):
    plan = resolve(read_sweep(load_config([f"--config=saturation:{scale},seeds=2"])), lambda data: "text")
    sizes = SCALES[scale]
    levels = [sizes.parallel, sizes.precisions, sizes.floors, sizes.decays, sizes.widths]
    assert len({configuration(run.config) for run in plan.runs}) == np.prod([len(of) for of in levels])
    assert len(plan.runs) == 2 * len({configuration(run.config) for run in plan.runs})
    for run in plan.runs:
        assert run.config.model.d_model == run.config.model.n_heads * 8
        assert run.config.total_steps % run.config.checkpoint.every == 0


def test_an_unknown_option_is_refused():
    for argument, message in (("tpu", "has no scale 'tpu'"), ("cpu,seeds=1", "seeds=K, with K of 2 or more")):
        with pytest.raises(ConfigError, match=message):
            load_config([f"--config=saturation:{argument}"])


def planted(parallel=4.0, width=0.25, seeds=6):
    """The rank collapses at a hazard that parallel blocks and a larger width multiply; the loss never turns."""
    rng, rows = np.random.default_rng(0), []
    factors = itertools.product((False, True), ("float32", "bfloat16"), (0.0, 0.1), (0.01, 0.3), (8, 16), range(seeds))
    for blocks, precision, floor, decay, d, s in factors:
        step = rng.exponential(END / ((parallel if blocks else 1) * (width if d == 16 else 1)))
        rows.append({
            "run_id": f"r{len(rows)}", "step": END, "final": True, "diverged_at": pd.NA, "config.init_seed": s,
            "config.model.parallel": blocks, "config.model.compute_dtype": precision, "config.model.d_model": d,
            "config.model.n_heads": d // 8, "config.model.d_ff": 4 * d, "config.optimizer.final_fraction": floor,
            "config.optimizer.weight_decay": decay, effects.COLLAPSE: step if step < END else np.nan,
            effects.BEST: float(END), effects.SATURATED: 0.0,
        })  # fmt: skip
    return pd.DataFrame(rows)


def test_planted_hazards_come_back_by_factor():
    found = {(one.event, one.factor.rpartition(".")[2]): one for one in effects.hazards(planted(), {}, None)}
    assert len(found) == 2 * 5
    assert found["collapse", "parallel"].ratio.low > 1.5
    assert found["collapse", "d_model"].ratio.high < 0.7
    for factor in ("compute_dtype", "final_fraction", "weight_decay"):
        assert found["collapse", factor].ratio.low < 1 < found["collapse", factor].ratio.high
    assert found["collapse", "parallel"].shares[1] > found["collapse", "parallel"].shares[0]
    # No loss turns, so nothing is known of its hazard.
    assert all("at risk" in one.note for (event, _), one in found.items() if event == "turn")
    (line,) = effects.sentences(tuple(found.values()))
    assert line.startswith("The hazard of a collapse of the rank surely differs in 2 of 5 comparisons, most by")


def test_with_few_seeds_nothing_is_said_to_be_sure_or_unsure():
    found = effects.hazards(planted(seeds=3), {}, None)
    assert effects.sentences(found) == []
    assert {one.note for one in found if one.event == "collapse"} == {
        "too few seeds have runs of both levels with events for an interval"
    }
    assert all(np.isfinite(one.ratio.estimate) for one in found if one.event == "collapse")


def test_sweeps_in_which_other_things_differ_are_left_alone():
    table = planted()
    assert effects.hazards(table.assign(**{"config.data.batch_size": table.index % 2}), {}, None) == ()
    assert effects.hazards(table[table["config.model.d_model"] == 8].assign(**dict.fromkeys(
        effects.FACTORS[:3], 0)), {}, None) == ()  # fmt: skip
    assert effects.hazards(table.drop(columns=effects.COLLAPSE), {}, None) == ()


@pytest.mark.slow
def test_the_study_runs_and_reports_hazards(tmp_path):
    work = tmp_path / "work"
    assert cli.main(["run", "--config=saturation:smoke", f"--workdir={work}"]) == 0
    table = pd.read_csv(work / "report" / "tables" / "hazard_ratios.csv")
    assert set(table["event"]) == set(effects.EVENTS)
    assert (work / "report" / "figures" / "runs_without_event.svg").exists()
