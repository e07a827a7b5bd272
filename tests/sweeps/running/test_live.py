"""The curves of the live page, while their files grow, are cut and grow again."""

import json

from etils import epath

from olmo_jax.config import TrainConfig
from sweeps.running.live import _Curve, varying


def append(path, *rows):
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_curve_follows_its_file_and_is_read_anew_where_training_resumed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    curve = _Curve(epath.Path(path))
    curve.read()
    assert curve.points("loss") == []
    append(path, {"step": 0, "loss": None, "u/r": 9.0}, {"step": 1, "loss": 3.0})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')  # a line that is being written
    curve.read()
    assert curve.points("loss") == [(1, 3.0)]
    assert curve.points("u/r") == [(0, 9.0)]
    with path.open("a") as file:
        file.write('ss": 2.5}\n')
    curve.read()
    curve.read()
    assert curve.points("loss") == [(1, 3.0), (2, 2.5)]
    path.write_text("")
    append(path, {"step": 1, "loss": 3.25})
    curve.read()
    assert curve.points("loss") == [(1, 3.25)]


def test_long_curves_are_thinned_and_keep_their_last_point(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, *({"step": i, "loss": float(i)} for i in range(1001)))
    curve = _Curve(epath.Path(path))
    curve.read()
    points = curve.points("loss")
    assert 150 < len(points) <= 200
    assert points[-1] == (1000, 1000.0)
    assert points == sorted(points)


def test_settings_in_which_runs_differ_are_those_to_colour_by(vary):
    base = TrainConfig()
    runs = [vary(base, {"optimizer.weight_decay": decay, "init_seed": seed}) for decay in (0.1, 1.0) for seed in (0, 1)]
    assert varying(runs)[3] == {"optimizer.weight_decay": 1.0, "init_seed": 1}
    assert varying([base]) == [{}]
