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
    """Return runs whose final loss sums a batch size effect and a `hidden` effect, which a curve may reveal."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(configurations), seeds)
    table = pd.DataFrame({"run_id": [f"r{i}" for i in range(len(of))], "configuration": [f"c{i}" for i in of]})
    table = table.assign(step=STEPS, final=True, diverged_at=pd.array([pd.NA] * len(of), dtype="Int64"))
    table[BATCH] = 8 + of % 5
    hidden = rng.normal(size=len(of))
    table[LOSS] = 5 + 0.3 * table[BATCH] + hidden + 0.1 * rng.normal(size=len(of))
    return table, hidden


def curves_of(table, hidden, loss_tells=0.0, rank_tells_from=None, probe_every=20, seed=1):
    """Return curves of loss 9 - ln(step) plus `loss_tells` times the hidden effect; rank reveals it from a step on."""
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


def at(result, share):
    return result[result["share"] == share].set_index("features")


# Known answers.


def test_geometry_informative_from_a_fifth_of_training_is_detected_at_a_quarter():
    table, hidden = sweep()
    result = predict_early(table, curves_of(table, hidden, rank_tells_from=0.2 * STEPS))
    assert at(result, 0.1).low["geometry's gain"] <= 0
    assert at(result, 0.1).r2["all"] < 0.4
    for share in (0.25, 0.5):
        assert at(result, share).low["geometry's gain"] > 0.2
        assert at(result, share).low["settings and geometry"] > 0.9
    assert (result["n"] == 60).all()
    assert (result["note"] == "").all()


def test_geometry_gains_nothing_beyond_an_equally_informative_loss_curve():
    table, hidden = sweep()
    result = predict_early(table, curves_of(table, hidden, loss_tells=1.0, rank_tells_from=0))
    for share in SHARES:
        of = at(result, share)
        assert of.low["settings and loss"] > 0.9
        assert of.r2["settings and geometry"] > of.r2["settings"] + 0.2
        assert abs(of.r2["geometry's gain"]) < 0.02
        assert of.r2["geometry's gain"] == pytest.approx(of.r2["all"] - of.r2["settings and loss"])


def test_geometry_that_is_noise_gains_nothing():
    table, hidden = sweep(seed=5)
    result = predict_early(table, curves_of(table, hidden))
    assert (result[result["features"] == "geometry's gain"]["low"] <= 0).all()


def test_the_slope_of_the_loss_is_a_feature():
    # All losses meet near steps 100 and 50: 4 + b ln(s / 97.5) ln(s / 48.5) differs between runs only in its slope.
    table, hidden = sweep()
    step = np.arange(1, STEPS + 1)
    curves = {}
    for run, part in zip(table["run_id"], hidden, strict=True):
        rise = np.log(step / 97.5) * np.log(step / 48.5)
        curves[run] = pd.DataFrame({"step": step, "loss": 4 + part * rise})
    of = at(predict_early(table, curves), 0.25)
    assert of.low["settings and loss"] > 0.9


def test_nothing_after_the_given_fraction_of_training_is_used():
    table, hidden = sweep()
    curves = curves_of(table, hidden, loss_tells=0.5, rank_tells_from=0)
    changed, rng = {}, np.random.default_rng(9)
    for run, curve in curves.items():
        late, unknown = curve["step"] > 0.25 * STEPS, pd.Series(rng.normal(size=len(curve)))
        changed[run] = curve.assign(**{c: curve[c].where(~late, unknown) for c in ("loss", RANK, COSINE)})
    before, after = predict_early(table, curves), predict_early(table, changed)
    for share in (0.1, 0.25):
        pd.testing.assert_frame_equal(at(before, share), at(after, share))
    told_by = "settings and geometry"
    assert at(after, 0.5).r2[told_by] < at(before, 0.5).r2[told_by] - 0.2


def test_folds_never_split_a_configuration():
    # The index of a configuration is uninformative unless a fold contains a replicate of the same configuration.
    table, _ = sweep(configurations=25, seeds=4)
    codes = pd.factorize(table["configuration"])[0]
    table[LOSS] = np.random.default_rng(3).normal(size=25)[codes]
    table["config.name_in_words"] = table["configuration"]
    curves = curves_of(table, np.zeros(len(table)))
    by_configuration = at(predict_early(table, curves), 0.5).r2["settings"]
    by_run = at(predict_early(table, curves, groups="run_id"), 0.5).r2["settings"]
    assert by_configuration < 0.1
    assert by_run > 0.8


def test_other_targets_and_runs_of_different_lengths_are_predicted():
    table, hidden = sweep()
    table["gptq_3/in_domain"] = hidden
    table["step"] = np.where(table.index % 2, STEPS, STEPS // 2)
    result = predict_early(table, curves_of(table, hidden, rank_tells_from=0.12 * STEPS), "gptq_3/in_domain")
    assert set(result["target"]) == {"gptq_3/in_domain"}
    # A quarter of the shorter ones is step 50, whose last probe was at 40, a tenth of the longer.
    assert at(result, 0.5).low["settings and geometry"] > 0.9
    assert at(result, 0.25).r2["settings and geometry"] < 0.8


# Undetermined values.


def test_a_fraction_before_the_first_probe_is_noted_without_geometry():
    table, hidden = sweep()
    result = predict_early(table, curves_of(table, hidden, loss_tells=1.0, probe_every=80))
    early = at(result, 0.1)
    assert list(early.index[early["r2"].isna()]) == ["settings and geometry", "all", "geometry's gain"]
    assert early.note["all"].startswith("no geometry by 10 % of training")
    assert early.note["settings and loss"] == ""
    assert at(result, 0.25)["r2"].notna().all()


def test_runs_without_a_curve_are_left_out_and_counted():
    table, hidden = sweep()
    curves = curves_of(table, hidden, loss_tells=1.0)
    expected = predict_early(table.drop(index=[0, 7]), {k: v for k, v in curves.items() if k not in ("r0", "r7")})
    del curves["r0"]
    curves["r7"] = pd.DataFrame()
    result = predict_early(table, curves)
    pd.testing.assert_frame_equal(result.drop(columns="note"), expected.drop(columns="note"))
    assert (result["n"] == 58).all()
    assert result["note"].str.contains("2 runs lack a curve or a probe by").all()


def test_without_curves_the_settings_remain():
    table, _ = sweep()
    result = predict_early(table, {})
    for share in SHARES:
        of = at(result, share)
        assert of.r2["settings"] > 0
        assert of.n["settings"] == 60
        assert of.drop("settings")["r2"].isna().all()
        assert of.note["settings and loss"].startswith(f"no training loss by {100 * share:.0f} % of training")


def test_nan_and_sparsely_logged_losses_are_tolerated():
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
        "few configurations": (table.iloc[:10], "5 configurations are too few for nested folds, which need 10"),
        "constant loss": (table.assign(**{LOSS: 0.1}), "the target is the same in all runs"),
    }


@pytest.mark.parametrize("case", degenerate())
def test_undetermined_values_are_missing_with_a_reason(case):
    table, note = degenerate()[case]
    full, hidden = sweep()
    result = predict_early(table, curves_of(full, hidden))
    assert tuple(result.columns) == COLUMNS
    assert list(zip(result["share"], result["features"], strict=True)) == [(s, f) for s in SHARES for f in FEATURES]
    assert result[["r2", "low", "high"]].isna().all(axis=None)
    assert set(result["note"]) == {note}


def test_few_configurations_give_no_interval():
    table, hidden = sweep(configurations=12)
    result = predict_early(table, curves_of(table, hidden))
    assert result["r2"].notna().all() and result["low"].isna().all()
    assert result["note"].str.contains("12 configurations are too few for an interval").all()


def test_a_table_without_columns_gives_an_empty_result():
    result = predict_early(pd.DataFrame(), {})
    assert result.empty and tuple(result.columns) == COLUMNS


def test_an_unknown_column_is_an_error_that_names_it():
    table, hidden = sweep()
    with pytest.raises(UnknownColumnError, match="did you mean 'lm_loss/in_domain'"):
        predict_early(table, {}, "lm_loss/indomain")
    with pytest.raises(AnalysisError, match="run_id"):
        predict_early(table, curves_of(table, hidden), "run_id")
