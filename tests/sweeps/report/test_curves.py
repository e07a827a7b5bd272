import numpy as np
import pandas as pd
import pytest

from geometry.probe import COUNTS
from olmo_jax.probes import columns as probe_columns
from sweeps.report import curves
from sweeps.report.curves import MAX_POINTS, curve_data, metric_name, target_name


def run(steps=1000, **columns):
    """Metrics of one run, measured at every step."""
    at = np.arange(1, steps + 1)
    return pd.DataFrame({"step": at, "tokens": at * 64, "loss": 8 - at / steps} | columns)


def geometry(frame, **columns):
    return frame.assign(**{name.replace("__", "/"): value for name, value in columns.items()})


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("unembedding", "Unembedding W"),
        ("unembedding_gauge_fixed_centred", "W, gauge-fixed, centred"),
        ("embedding", "Embedding"),
        ("final_states", "Final states H"),
        ("layer_11_centred", "Layer 11, centred"),
        ("layer_norm", "Parameter layer_norm"),
        ("blocks_0.mlp.up", "Parameter blocks_0.mlp.up"),
    ],
)
def test_targets_in_words(target, name):
    assert target_name(target) == name


def test_a_metric_without_a_name_of_its_own_is_told_by_its_functions():
    assert metric_name("unembedding/effective_rank_percent") == "Effective rank, % of D"
    assert metric_name("layer_0/my_own_metric") == "my own metric"


def test_a_spread_is_thinned_as_its_curve():
    frame = geometry(run(600), layer_0__two_nn=np.arange(600.0), layer_0_spread__two_nn=np.arange(600.0) / 10)
    curve = curve_data({"a": frame})["curves"]["a"]["layer_0/two_nn"]
    assert curve["value"][:2] == [0.5, 2.5]
    assert curve["spread"][:2] == [0.05, 0.25]
    assert len(curve["spread"]) == MAX_POINTS


def test_runs_that_were_measured_at_the_same_steps_share_them():
    frames = {name: geometry(run(), layer_0__two_nn=1.0) for name in "abc"}
    data = curve_data(frames | {"d": geometry(run(10), layer_0__two_nn=1.0)})
    assert [curve["layer_0/two_nn"]["at"] for curve in data["curves"].values()] == [0, 0, 0, 1]
    assert data["at"][1] == {"step": list(range(1, 11)), "tokens": list(range(64, 641, 64))}


def test_of_very_many_curves_each_is_thinned_more_and_the_loss_is_not(monkeypatch):
    monkeypatch.setattr(curves, "MAX_VALUES", 400)
    data = curve_data({name: geometry(run(), layer_0__two_nn=1.0) for name in "abc"})
    assert data["points"] == {"loss": MAX_POINTS, "geometry": 400 // 12}
    assert len(data["curves"]["a"]["loss"]["value"]) == MAX_POINTS
    curve = data["curves"]["a"]["layer_0/two_nn"]
    assert len(curve["value"]) == len(data["at"][curve["at"]]["step"]) == 33


def test_a_target_without_any_value_is_not_offered():
    frames = {"a": geometry(run(), layer_0__two_nn=np.nan, layer_1__two_nn=1.0), "empty": pd.DataFrame()}
    data = curve_data(frames)
    assert [target["key"] for target in data["targets"]] == ["layer_1"]
    assert data["curves"]["empty"] == {}


def test_counts_that_differ_are_told_as_a_range(monkeypatch):
    monkeypatch.setattr(probe_columns, "COUNTS", COUNTS | {"outer_rows"})
    monkeypatch.setattr(curves, "COUNTS", COUNTS | {"outer_rows"})
    told = {"layer_0__points": 8.0, "layer_0__outer_rows": 2.0, "layer_0__two_nn": 1.0}
    frames = {"a": geometry(run(), **told, layer_0__rank_cap=4.0), "b": geometry(run(), **told, layer_0__rank_cap=7.0)}
    (target,) = curve_data(frames)["targets"]
    assert target["note"] == "Layer 0: 8 points, rank at most 4 to 7, outer rows 2"
    assert [panel["key"] for panel in target["panels"]] == ["layer_0/two_nn"]
