from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from geometry.probe import COUNTS
from olmo_jax.probes import columns as probe_columns
from sweeps.report import curves
from sweeps.report.curves import (
    MAX_POINTS,
    counts_note,
    geometry_curves,
    loss_curves,
    metric_name,
    target_name,
    targets_of,
)


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


def results(frames):
    """Results with these curves, of a table without any divergence."""
    return SimpleNamespace(curves=frames, table=pd.DataFrame({"run_id": list(frames), "diverged_at": None}))


def test_a_spread_is_thinned_like_its_curve():
    frame = geometry(run(600), layer_0__two_nn=np.arange(600.0), layer_0_spread__two_nn=np.arange(600.0) / 10)
    curve = geometry_curves(results({"a": frame}))
    assert list(curve["Layer 0: two nn"][:2]) == [0.5, 2.5] and list(curve["Layer 0: two nn spread"][:2]) == [
        0.05,
        0.25,
    ]
    assert list(curve["step"][:2]) == [1.5, 3.5]
    assert len(curve) == MAX_POINTS


def test_many_curves_are_thinned_further_except_the_loss(monkeypatch):
    monkeypatch.setattr(curves, "MAX_VALUES", 400)
    of = results({name: geometry(run(), layer_0__two_nn=1.0) for name in "abc"})
    assert set(loss_curves(of).groupby("run").size()) == {MAX_POINTS}
    monkeypatch.setattr(curves, "MAX_LOSSES", 333)
    assert set(loss_curves(of).groupby("run").size()) == {333 // 3}
    assert set(geometry_curves(of).groupby("run").size()) == {400 // 12}


def test_a_gap_in_a_loss_stays_one():
    frame = run(1000)
    frame.loc[900:, "loss"] = np.nan
    loss = loss_curves(results({"a": frame}))["loss"]
    assert len(loss) == MAX_POINTS and np.isnan(loss.iloc[-1]) and not np.isnan(loss.iloc[260])
    assert loss.iloc[0] == pytest.approx(np.mean(8 - np.arange(1, 4) / 1000))


def test_geometry_between_probes_is_left_out():
    frame = geometry(run(100), layer_0__two_nn=np.where(np.arange(1, 101) % 10 == 0, 1.0, np.nan))
    curve = geometry_curves(results({"a": frame}))
    assert list(curve["step"]) == list(range(10, 101, 10)) and list(curve["tokens"]) == list(range(640, 6401, 640))


def test_a_target_without_values_is_not_offered():
    frames = {"a": geometry(run(), layer_0__two_nn=np.nan, layer_1__two_nn=1.0), "empty": pd.DataFrame()}
    assert list(targets_of(frames)) == ["layer_1"]
    assert set(geometry_curves(results(frames))["run"]) == {"a"}


def test_differing_counts_are_shown_as_a_range(monkeypatch):
    monkeypatch.setattr(probe_columns, "COUNTS", COUNTS | {"outer_rows"})
    monkeypatch.setattr(curves, "COUNTS", COUNTS | {"outer_rows"})
    constants = {"layer_0__points": 8.0, "layer_0__outer_rows": 2.0, "layer_0__two_nn": 1.0}
    frames = {
        "a": geometry(run(), **constants, layer_0__rank_cap=4.0),
        "b": geometry(run(), **constants, layer_0__rank_cap=7.0),
    }
    assert counts_note(results(frames)) == "Layer 0: 8 points, rank at most 4 to 7, outer rows 2."
    assert targets_of(frames) == {"layer_0": ["layer_0/two_nn"]}
