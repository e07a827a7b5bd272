import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweeps.analysis import AnalysisError
from sweeps.analysis.saturation import Saturation, saturation_of

RANK, LOSS, ERROR = "unembedding/effective_rank_percent", "lm_loss/in_domain", "lm_loss/standard_error/in_domain"
STEPS = (100, 200, 300, 400)


def run(name, configuration, rank, rise=0.0, best=400, collapse=np.nan, error=0.1):
    """A run's four checkpoints; the evaluations of its end stand in the last."""
    row = {
        "run_id": name,
        "configuration": configuration,
        "step": STEPS,
        "final": [step == STEPS[-1] for step in STEPS],
        "diverged_at": pd.NA,
        RANK: [90.0, 90.0, 90.0, rank],
    }
    last = {"best_step": best, "rise": rise, "rise_standard_error": error, "collapse_step": collapse}
    last["saturated"] = float(rise > 2 * error)
    return pd.DataFrame(row | {f"saturation/{k}": [np.nan] * 3 + [v] for k, v in last.items()})


def sweep(*runs):
    return pd.concat(runs, ignore_index=True).astype({"diverged_at": "Int64"})


def small():
    """Two runs in each of three quadrants, one in the fourth: low and degraded, low, high and degraded, high."""
    return sweep(
        run("a0", "a", 10, rise=0.5, best=200, collapse=100),
        run("a1", "a", 12, rise=0.9, best=300, collapse=150),
        run("b0", "b", 20, rise=0.1),
        run("b1", "b", 22, rise=0.0),
        run("c0", "c", 70, rise=0.3, best=300),
        run("d0", "d", 60, rise=0.0),
        run("e0", "e", 50, rise=0.2, collapse=300),
    )


def losses(name, values, errors=0.03, rank=50.0):
    """A run of which only losses are in the table."""
    table = run(name, name, rank).drop(columns=[f"saturation/{k}" for k in ("best_step", "rise", "collapse_step")])
    table = table.drop(columns=["saturation/rise_standard_error", "saturation/saturated"])
    return table.assign(**{LOSS: values, ERROR: errors})


def quadrant(result, rank, degraded):
    (row,) = result.quadrants[(result.quadrants["rank"] == rank) & (result.quadrants.degraded == degraded)].itertuples()
    return row.runs, row.configurations, row.examples


# Runs.


def test_degraded_means_a_rise_above_two_errors_and_low_a_rank_below_the_median():
    result = saturation_of(small())
    runs = result.runs.set_index("run_id")
    assert result.median_rank == 22
    assert list(runs.index[runs.degraded]) == ["a0", "a1", "c0"]
    assert list(runs.index[runs.low_rank]) == ["a0", "a1", "b0"]
    numbers = ["best_step", "rise", "standard_error", "collapse_step", "rank_percent"]
    assert runs.loc["a1", numbers].tolist() == [300, 0.9, 0.1, 150, 12]


def test_best_and_rise_are_computed_from_checkpoints_if_not_evaluated():
    table = sweep(
        losses("x", [3.0, 2.0, 2.5, 2.9]), losses("y", [3.0, 2.0, 1.5, 1.45]), losses("z", [3, 2, 2.07, 2.08])
    )
    result = saturation_of(table.sample(frac=1, random_state=0))
    runs = result.runs.set_index("run_id").loc[["x", "y", "z"]]
    assert runs.best_step.tolist() == [200, 400, 200]
    assert runs.rise.tolist() == pytest.approx([0.9, 0, 0.08])
    assert runs.standard_error.tolist() == pytest.approx([0.03 * 2**0.5, 0, 0.03 * 2**0.5])
    assert runs.degraded.tolist() == [True, False, False]
    assert "the rise is from the table's losses, with unpaired errors, in 3 of 3 runs" in result.note


def test_evaluated_saturation_is_not_recomputed():
    both = run("a", "a", 10, rise=0.5, best=200).assign(**{LOSS: [1.0, 2, 3, 4], ERROR: 0.03})
    runs = saturation_of(sweep(both, losses("x", [3.0, 2.0, 2.5, 2.9]))).runs.set_index("run_id")
    assert runs.rise.tolist() == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize(
    ("values", "errors", "rise"),
    [
        ([3.0, 2.0, 2.5, 2.9], np.nan, 0.9),
        ([np.nan, np.nan, np.nan, 2.9], 0.03, np.nan),
        ([3.0, 2.0, 2.5, np.nan], 0.03, np.nan),
        ([np.nan] * 4, 0.03, np.nan),
    ],
    ids=["no errors", "one loss", "no last loss", "no loss"],
)
def test_undetermined_runs_are_in_no_quadrant(values, errors, rise):
    table = sweep(losses("x", values, errors), losses("y", [3.0, 2.0, 2.5, 2.9]))
    result = saturation_of(table)
    (x,) = result.runs[result.runs.run_id == "x"].itertuples()
    assert x.degraded is pd.NA
    assert x.rise == pytest.approx(rise, nan_ok=True)
    assert result.quadrants.runs.sum() == 1
    assert "no losses with standard errors at two checkpoints (degradation unknown) in 1 of 2" in (result.note)


def test_a_checkpoint_without_a_loss_is_skipped():
    (row,) = saturation_of(sweep(losses("x", [3.0, np.nan, 2.0, 2.9]))).runs.itertuples()
    assert (row.best_step, row.rise) == pytest.approx((300, 0.9))


def test_diverged_and_unfinished_runs_are_left_out():
    table = small()
    table.loc[table.run_id == "a0", "diverged_at"] = 150
    table = table[~((table.run_id == "c0") & table.final)]
    assert set(saturation_of(table).runs.run_id) == {"a1", "b0", "b1", "d0", "e0"}


# The four combinations.


def test_quadrants_count_runs_and_configurations_and_show_extreme_examples():
    result = saturation_of(small())
    assert list(zip(result.quadrants["rank"], result.quadrants.degraded, strict=True)) == [
        ("low", True),
        ("low", False),
        ("high", True),
        ("high", False),
    ]
    assert quadrant(result, "low", True) == (2, 1, ["a1", "a0"])
    assert quadrant(result, "low", False) == (1, 1, ["b0"])
    assert quadrant(result, "high", True) == (1, 1, ["c0"])
    assert quadrant(result, "high", False) == (3, 3, ["b1", "d0", "e0"])


def test_no_more_than_three_examples_are_shown():
    runs = [run(f"r{i}", f"c{i}", 50, rise=0.3 + 0.1 * i, best=200) for i in range(5)]
    assert quadrant(saturation_of(sweep(*runs)), "high", True) == (5, 5, ["r4", "r3", "r2"])


def test_the_association_is_phi_and_duplicated_runs_add_no_evidence():
    rng = np.random.default_rng(0)
    low = np.arange(24) % 2 == 0
    degraded = np.where(rng.random(24) < 0.8, low, ~low)
    once = [run(f"r{i}", f"c{i}", 10 if low[i] else 60, 0.5 if degraded[i] else 0.0) for i in range(24)]
    # With a middle value, the median lies between the two.
    once.append(run("m", "m", 30, 0.0))
    without_rank = saturation_of(sweep(*once)).association
    phi = np.corrcoef([*low, False], [*degraded, False])[0, 1]
    assert without_rank.estimate == pytest.approx(phi)
    assert without_rank.low < phi < without_rank.high
    thrice = saturation_of(sweep(*(r.assign(run_id=r.run_id + f"-{k}") for r in once for k in range(3)))).association
    assert (thrice.estimate, thrice.n) == (pytest.approx(phi), 75)
    assert thrice.p_value == pytest.approx(without_rank.p_value, rel=1e-6)


# Which comes first.


def led(leads, per_configuration=1):
    """Return degraded runs whose rank collapsed these fractions of their steps before the loss turned at step 300."""
    return sweep(
        *(
            run(f"r{i}-{k}", f"c{i}", 10 + i, rise=1.0, best=300, collapse=300 - 400 * lead)
            for i, lead in enumerate(leads)
            for k in range(per_configuration)
        )
    )


def test_the_lead_is_positive_where_the_rank_fell_first():
    runs = saturation_of(small()).runs.set_index("run_id")
    assert runs.lead["a0"] == pytest.approx((200 - 100) / 400)
    assert runs.lead["a1"] == pytest.approx((300 - 150) / 400)
    assert saturation_of(led([-0.1])).runs.lead.tolist() == pytest.approx([-0.1])


def test_runs_without_degradation_or_collapse_have_no_lead():
    runs = saturation_of(small()).runs.set_index("run_id")
    assert (runs.collapse_step["e0"], runs.degraded["e0"]) == (300, False)
    assert runs.lead.drop(["a0", "a1"]).isna().all()


def test_the_median_lead_is_over_configurations_with_an_exact_sign_test():
    leads = [0.1, 0.2, 0.3, 0.05, 0.4, 0.25, -0.1, 0.15]
    table = pd.concat([led(leads), *[led(leads[:1]).assign(run_id=f"again{k}") for k in range(9)]])
    result = saturation_of(sweep(table)).lead
    assert result.estimate == pytest.approx(np.median(leads))
    assert result.p_value == pytest.approx(2 * 9 / 2**8)  # at most one of eight on the other side, both ways
    assert result.n == 17


def test_the_interval_is_a_bootstrap_of_configurations():
    leads = np.random.default_rng(1).normal(0.1, 0.1, size=25)
    result = saturation_of(led(leads, per_configuration=2)).lead
    peer = stats.bootstrap((leads,), np.median, method="percentile", n_resamples=5000, rng=np.random.default_rng(2))
    assert (result.low, result.high) == pytest.approx(tuple(peer.confidence_interval), abs=0.02)


def test_few_configurations_give_a_median_without_an_interval():
    result = saturation_of(led([0.1, 0.2, 0.3, 0.2, 0.1]))
    assert result.lead.estimate == pytest.approx(0.2)
    assert np.isnan([result.lead.low, result.lead.high]).all()
    assert "5 configurations are too few for an interval of the lead" in result.note


def test_leads_of_zero_are_no_evidence():
    assert saturation_of(led([0.0] * 7)).lead.p_value == 1


def test_the_note_reports_that_no_rank_collapsed():
    result = saturation_of(sweep(run("a", "a", 10, 0.5, 200), run("b", "b", 60, 0.0, collapse=200)))
    assert np.isnan(result.lead[:4]).all()
    assert "no lead: of 2 runs, the rank collapsed in 1 and 1 degraded, but none did both" in result.note


# Bad input.


def is_whole(result: Saturation):
    assert len(result.quadrants) == 4
    assert result.note
    assert np.isnan(result.lead[:4]).all()
    assert list(result.runs.columns) == [
        "run_id",
        "configuration",
        "best_step",
        "rise",
        "standard_error",
        "degraded",
        "collapse_step",
        "rank_percent",
        "low_rank",
        "lead",
    ]


@pytest.mark.parametrize(
    "table",
    [pd.DataFrame(), small()[:0], small().query("not final"), small().assign(diverged_at=7)],
    ids=["no columns", "no rows", "no finished run", "all diverged"],
)
def test_without_finished_runs_tables_are_empty(table):
    result = saturation_of(table)
    is_whole(result)
    assert result.note == "no run finished"
    assert result.runs.empty
    assert result.quadrants.runs.sum() == 0
    assert np.isnan(result.median_rank)


def test_a_table_without_losses_still_classifies_ranks():
    result = saturation_of(small()[["run_id", "configuration", "step", "final", "diverged_at", RANK]])
    is_whole(result)
    assert result.runs.low_rank.sum() == 3
    assert result.runs.degraded.isna().all()


def test_without_ranks_degraded_runs_are_still_reported():
    result = saturation_of(small().drop(columns=RANK))
    assert result.runs.degraded.sum() == 3
    assert result.runs.low_rank.isna().all()
    assert "no rank of the unembedding in 7 of 7 runs" in result.note


def test_single_runs_and_equal_ranks_are_not_low():
    one = saturation_of(small()[lambda t: t.run_id == "d0"])
    is_whole(one)
    assert quadrant(one, "high", False) == (1, 1, ["d0"])
    assert not saturation_of(small().assign(**{RANK: 40.0})).runs.low_rank.any()


def test_run_names_are_unchanged():
    named = small().replace({"run_id": {"c0": '<b>&"c0"</b>'}})
    assert quadrant(saturation_of(named), "high", True)[2] == ['<b>&"c0"</b>']


def test_a_text_column_is_an_error():
    with pytest.raises(AnalysisError, match="'saturation/rise' of the table contains a value that isn't a number"):
        saturation_of(small().assign(**{"saturation/rise": "high"}))
