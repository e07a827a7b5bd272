import json

import jax.numpy as jnp
import pytest
from etils import epath

from olmo_jax.logs import metrics


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def directories(tmp_path):
    paths = [epath.Path(tmp_path / name) for name in "ab"]
    for path in paths:
        path.mkdir()
    return paths


def test_each_member_gets_its_metrics_one_step_late(directories):
    log = metrics.MetricsLog(directories, [(), ()])
    log.later([{"step": 1}], {"loss": jnp.array([[1.5, 2.5, 9.0]])})  # the third member is inert
    log.also({"rank": jnp.array([3.0, 4.0, 9.0])})
    assert rows(directories[0]) == []
    log.later([{"step": 2}], {"loss": jnp.array([[0.1, jnp.nan, 9.0]])})
    log.close()
    assert rows(directories[0]) == [{"step": 1, "loss": 1.5, "rank": 3.0}, {"step": 2, "loss": 0.1}]
    assert rows(directories[1]) == [{"step": 1, "loss": 2.5, "rank": 4.0}, {"step": 2, "loss": None}]


def test_a_call_of_several_steps_logs_a_row_each_and_the_probe_in_the_last(directories):
    log = metrics.MetricsLog(directories, [(), ()])
    # Two steps were taken out of at most four.
    log.later([{"step": 1}, {"step": 2}], {"loss": jnp.array([[1.0, 5.0], [2.0, 6.0], [9.0, 9.0], [9.0, 9.0]])})
    log.also({"rank": jnp.array([3.0, 4.0])})
    log.close()
    assert rows(directories[0]) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0, "rank": 3.0}]
    assert rows(directories[1]) == [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 6.0, "rank": 4.0}]


def test_each_writer_gets_the_rows_of_its_member(directories):
    class Kept:
        def __init__(self):
            self.rows, self.closed = [], False

        def write(self, row):
            self.rows.append(dict(row))

        def close(self):
            self.closed = True

    recorder = Kept()
    log = metrics.MetricsLog(directories, [(), (recorder,)])
    log.later([{"step": 1}], {"loss": jnp.array([[1.5, 2.5]])})
    log.close()
    assert recorder.rows == [{"step": 1, "loss": 2.5}]
    assert recorder.closed


def test_resume_truncates_later_rows_and_refuses_a_gap(directories):
    path = directories[0] / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    assert [row["step"] for row in metrics.read_jsonl(path)] == [0, 1, 2]
    metrics.resume_at(directories[0], 1)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    with pytest.raises(metrics.MetricsError, match="2 rows.*step 5"):
        metrics.resume_at(directories[0], 5)
    metrics.resume_at(directories[0], -1)
    assert path.read_text() == ""
    metrics.resume_at(directories[1], -1)
    assert metrics.read_jsonl(directories[1] / "metrics.jsonl") == []


def test_an_exception_closes_the_files_without_pending_rows(tmp_path):
    with pytest.raises(KeyError), metrics.MetricsLog([epath.Path(tmp_path)], [()]) as log:
        log.later([{"step": 0}], {"loss": jnp.array([[1.0]])})
        log.flush()
        log.later([{"step": 1}], {"loss": jnp.array([[2.0]])})
        raise KeyError
    assert [row["step"] for row in metrics.read_jsonl(epath.Path(tmp_path) / metrics.METRICS)] == [0]
    with pytest.raises(ValueError, match="closed file"):
        log.flush()
