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
def test_probe_targets_have_readable_names(target, name):
    assert target_name(target) == name


def test_a_metric_without_a_display_name_uses_its_function_name():
    assert metric_name("unembedding/effective_rank_percent") == "Effective rank, % of D"
    assert metric_name("layer_0/my_own_metric") == "my own metric"


def test_a_spread_is_thinned_like_its_curve():
    frame = geometry(run(600), layer_0__two_nn=np.arange(600.0), layer_0_spread__two_nn=np.arange(600.0) / 10)
    curve = curve_data({"a": frame})["curves"]["a"]["layer_0/two_nn"]
    assert curve["value"][:2] == [0.5, 2.5]
    assert curve["spread"][:2] == [0.05, 0.25]
    assert len(curve["spread"]) == MAX_POINTS


def test_runs_measured_at_equal_steps_share_them():
    frames = {name: geometry(run(), layer_0__two_nn=1.0) for name in "abc"}
    data = curve_data(frames | {"d": geometry(run(10), layer_0__two_nn=1.0)})
    assert [curve["layer_0/two_nn"]["at"] for curve in data["curves"].values()] == [0, 0, 0, 1]
    assert data["at"][1] == {"step": list(range(1, 11)), "tokens": list(range(64, 641, 64))}


def test_many_curves_are_thinned_further_except_the_loss(monkeypatch):
    monkeypatch.setattr(curves, "MAX_VALUES", 400)
    data = curve_data({name: geometry(run(), layer_0__two_nn=1.0) for name in "abc"})
    assert data["points"] == {"loss": MAX_POINTS, "geometry": 400 // 12}
    assert len(data["curves"]["a"]["loss"]["value"]) == MAX_POINTS
    curve = data["curves"]["a"]["layer_0/two_nn"]
    assert len(curve["value"]) == len(data["at"][curve["at"]]["step"]) == 33


def test_a_target_without_values_is_not_offered():
    frames = {"a": geometry(run(), layer_0__two_nn=np.nan, layer_1__two_nn=1.0), "empty": pd.DataFrame()}
    data = curve_data(frames)
    assert [target["key"] for target in data["targets"]] == ["layer_1"]
    assert data["curves"]["empty"] == {}


def test_differing_counts_are_shown_as_a_range(monkeypatch):
    monkeypatch.setattr(probe_columns, "COUNTS", COUNTS | {"outer_rows"})
    monkeypatch.setattr(curves, "COUNTS", COUNTS | {"outer_rows"})
    constants = {"layer_0__points": 8.0, "layer_0__outer_rows": 2.0, "layer_0__two_nn": 1.0}
    frames = {
        "a": geometry(run(), **constants, layer_0__rank_cap=4.0),
        "b": geometry(run(), **constants, layer_0__rank_cap=7.0),
    }
    (target,) = curve_data(frames)["targets"]
    assert target["note"] == "Layer 0: 8 points, rank at most 4 to 7, outer rows 2"
    assert [panel["key"] for panel in target["panels"]] == ["layer_0/two_nn"]
