import numpy as np
import pandas as pd
import pytest

from sweeps.analysis import AnalysisError, UnknownColumnError
from sweeps.analysis.early import COLUMNS, SHARES, predict_early

LOSS = "lm_loss/in_domain"
RANK, COSINE = "unembedding/effective_rank_percent", "final_states/mean_cosine"
FEATURES = ["settings", "settings and loss", "settings and geometry", "all", "geometry's gain"]
BATCH = "config.data.batch_size"
STEPS = 400


def sweep(configurations=30, seeds=2, seed=0):
    """Runs whose final loss is their batch size's part and a `hidden` one, which a curve may tell."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(configurations), seeds)
    table = pd.DataFrame({"run_id": [f"r{i}" for i in range(len(of))], "configuration": [f"c{i}" for i in of]})
    table = table.assign(step=STEPS, final=True, diverged_at=pd.array([pd.NA] * len(of), dtype="Int64"))
    table[BATCH] = 8 + of % 5
    hidden = rng.normal(size=len(of))
    table[LOSS] = 5 + 0.3 * table[BATCH] + hidden + 0.1 * rng.normal(size=len(of))
    return table, hidden


def curves_of(table, hidden, loss_tells=0.0, rank_tells_from=None, probe_every=20, seed=1):
    """Loss 9 - ln(step), plus `loss_tells` times the hidden part; rank tells the hidden part from a step on."""
    rng = np.random.default_rng(seed)
    step = np.arange(STEPS + 1)
    curves = {}
    for run, part in zip(table["run_id"], hidden, strict=True):
        loss = 9 - np.log(np.maximum(step, 1)) + loss_tells * part + 0.05 * rng.normal(size=len(step))
        probed = step % probe_every == 0
        rank = rng.normal() + np.zeros(len(step))
        if rank_tells_from is not None:
            rank = np.where(step >= rank_tells_from, 50 + part, rank)
        curve = pd.DataFrame({"step": step, "tokens": 1024 * step, "loss": np.where(step > 0, loss, np.nan)})
        curve[RANK], curve[COSINE] = np.where(probed, rank, np.nan), np.where(probed, rng.normal(), np.nan)
        curves[run] = curve
    return curves


def at(found, share):
    return found[found["share"] == share].set_index("features")


# Known answers.


def test_geometry_that_tells_from_a_fifth_of_training_on_is_found_at_a_quarter():
    table, hidden = sweep()
    found = predict_early(table, curves_of(table, hidden, rank_tells_from=0.2 * STEPS))
    assert at(found, 0.1).low["geometry's gain"] <= 0
    assert at(found, 0.1).r2["all"] < 0.4
    for share in (0.25, 0.5):
        assert at(found, share).low["geometry's gain"] > 0.2
        assert at(found, share).low["settings and geometry"] > 0.9
    assert (found["n"] == 60).all()
    assert (found["note"] == "").all()


def test_geometry_gains_nothing_where_the_loss_curve_tells_the_same():
    table, hidden = sweep()
    found = predict_early(table, curves_of(table, hidden, loss_tells=1.0, rank_tells_from=0))
    for share in SHARES:
        of = at(found, share)
        assert of.low["settings and loss"] > 0.9
        assert of.r2["settings and geometry"] > of.r2["settings"] + 0.2
        assert abs(of.r2["geometry's gain"]) < 0.02
        assert of.r2["geometry's gain"] == pytest.approx(of.r2["all"] - of.r2["settings and loss"])


def test_noise_gains_nothing_in_either():
    table, hidden = sweep(seed=5)
    found = predict_early(table, curves_of(table, hidden))
    assert (found[found["features"] == "geometry's gain"]["low"] <= 0).all()


def test_the_slope_of_the_loss_is_known():
    # All losses meet at step 100 and at 50, about: 4 + b ln(s / 97.5) ln(s / 48.5) has only its slope to tell.
    table, hidden = sweep()
    step = np.arange(1, STEPS + 1)
    curves = {}
    for run, part in zip(table["run_id"], hidden, strict=True):
        rise = np.log(step / 97.5) * np.log(step / 48.5)
        curves[run] = pd.DataFrame({"step": step, "loss": 4 + part * rise})
    of = at(predict_early(table, curves), 0.25)
    assert of.low["settings and loss"] > 0.9


def test_nothing_later_than_the_share_is_used():
    table, hidden = sweep()
    curves = curves_of(table, hidden, loss_tells=0.5, rank_tells_from=0)
    told, rng = {}, np.random.default_rng(9)
    for run, curve in curves.items():
        late, unknown = curve["step"] > 0.25 * STEPS, pd.Series(rng.normal(size=len(curve)))
        told[run] = curve.assign(**{c: curve[c].where(~late, unknown) for c in ("loss", RANK, COSINE)})
    before, after = predict_early(table, curves), predict_early(table, told)
    for share in (0.1, 0.25):
        pd.testing.assert_frame_equal(at(before, share), at(after, share))
    told_by = "settings and geometry"
    assert at(after, 0.5).r2[told_by] < at(before, 0.5).r2[told_by] - 0.2


def test_folds_never_split_a_configuration():
    # A metric of the configuration's number tells nothing; a fold that saw a twin would know its loss by setting alone.
    table, _ = sweep(configurations=25, seeds=4)
    codes = pd.factorize(table["configuration"])[0]
    table[LOSS] = np.random.default_rng(3).normal(size=25)[codes]
    table["config.name_in_words"] = table["configuration"]
    curves = curves_of(table, np.zeros(len(table)))
    by_configuration = at(predict_early(table, curves), 0.5).r2["settings"]
    by_run = at(predict_early(table, curves, groups="run_id"), 0.5).r2["settings"]
    assert by_configuration < 0.1
    assert by_run > 0.8


def test_another_target_and_runs_of_other_lengths():
    table, hidden = sweep()
    table["gptq_3/in_domain"] = hidden
    table["step"] = np.where(table.index % 2, STEPS, STEPS // 2)
    found = predict_early(table, curves_of(table, hidden, rank_tells_from=0.12 * STEPS), "gptq_3/in_domain")
    assert set(found["target"]) == {"gptq_3/in_domain"}
    # A quarter of the shorter ones is step 50, whose last probe was at 40, a tenth of the longer.
    assert at(found, 0.5).low["settings and geometry"] > 0.9
    assert at(found, 0.25).r2["settings and geometry"] < 0.8


# What can't be given.


def test_a_share_before_the_first_probe_has_no_geometry_and_says_so():
    table, hidden = sweep()
    found = predict_early(table, curves_of(table, hidden, loss_tells=1.0, probe_every=80))
    early = at(found, 0.1)
    assert list(early.index[early["r2"].isna()]) == ["settings and geometry", "all", "geometry's gain"]
    assert early.note["all"].startswith("no geometry by 10 % of training")
    assert early.note["settings and loss"] == ""
    assert at(found, 0.25)["r2"].notna().all()


def test_runs_without_a_curve_are_left_out_and_counted():
    table, hidden = sweep()
    curves = curves_of(table, hidden, loss_tells=1.0)
    expected = predict_early(table.drop(index=[0, 7]), {k: v for k, v in curves.items() if k not in ("r0", "r7")})
    del curves["r0"]
    curves["r7"] = pd.DataFrame()
    found = predict_early(table, curves)
    pd.testing.assert_frame_equal(found.drop(columns="note"), expected.drop(columns="note"))
    assert (found["n"] == 58).all()
    assert found["note"].str.contains("2 runs lack a curve or a probe by").all()


def test_without_curves_the_settings_remain():
    table, _ = sweep()
    found = predict_early(table, {})
    for share in SHARES:
        of = at(found, share)
        assert of.r2["settings"] > 0
        assert of.n["settings"] == 60
        assert of.drop("settings")["r2"].isna().all()
        assert of.note["settings and loss"].startswith(f"no training loss by {100 * share:.0f} % of training")


def test_losses_that_are_nan_or_not_logged_at_each_step_do_no_harm():
    table, hidden = sweep()
    curves = curves_of(table, hidden, loss_tells=1.0)
    for curve in curves.values():
        curve.loc[curve["step"] % 7 > 0, "loss"] = np.nan
        curve.loc[14, "loss"] = np.inf
    assert at(predict_early(table, curves), 0.25).low["settings and loss"] > 0.9


def degenerate():
    table, _ = sweep()
    return {
        "no finished run": (table.assign(final=False), "no finished run has the target"),
        "no row": (table.iloc[:0], "no finished run has the target"),
        "no value": (table.assign(**{LOSS: np.nan}), "no finished run has the target"),
        "no loss": (table.drop(columns=LOSS), "the table lacks the target"),
        "one run": (table.iloc[:1], "fewer than 8 usable runs"),
        "few configurations": (table.iloc[:10], "5 configurations are too few for nested folds, which take 10"),
        "constant loss": (table.assign(**{LOSS: 0.1}), "the target is the same in all runs"),
    }


@pytest.mark.parametrize("case", degenerate())
def test_what_cannot_be_given_is_missing_with_a_reason(case):
    table, note = degenerate()[case]
    full, hidden = sweep()
    found = predict_early(table, curves_of(full, hidden))
    assert tuple(found.columns) == COLUMNS
    assert list(zip(found["share"], found["features"], strict=True)) == [(s, f) for s in SHARES for f in FEATURES]
    assert found[["r2", "low", "high"]].isna().all(axis=None)
    assert set(found["note"]) == {note}


def test_few_configurations_give_no_interval():
    table, hidden = sweep(configurations=12)
    found = predict_early(table, curves_of(table, hidden))
    assert found["r2"].notna().all() and found["low"].isna().all()
    assert found["note"].str.contains("12 configurations are too few for an interval").all()


def test_a_table_without_columns_gives_an_empty_one():
    found = predict_early(pd.DataFrame(), {})
    assert found.empty and tuple(found.columns) == COLUMNS


def test_a_callers_wrong_column_is_an_error_that_names_it():
    table, hidden = sweep()
    with pytest.raises(UnknownColumnError, match="did you mean 'lm_loss/in_domain'"):
        predict_early(table, {}, "lm_loss/indomain")
    with pytest.raises(AnalysisError, match="run_id"):
        predict_early(table, curves_of(table, hidden), "run_id")
