"""TensorBoard and Weights & Biases get the rows of metrics.jsonl; a resumed run is resumed in both."""

import builtins
import dataclasses
import struct
import sys
import time

import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from olmo_jax.config import ConfigError
from olmo_jax.logs.writers import check_writers, writers


def events(folder):
    """Scalars of the event files in the order in which they were written; a purge begins where a restart does."""
    results = []
    for path in sorted(folder.glob("events*"), key=lambda p: p.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            results += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            results += [("restart", event.step, None)] if event.HasField("session_log") else []
            at += 12 + size + 4
    return results


def test_tensorboard_gets_every_number_and_purges_rows_after_a_kill(tiny, tmp_path):
    config = dataclasses.replace(tiny, tensorboard=True)
    for step, rows in ((0, (1, 2)), (1, (2, 3))):  # killed after step 2, resumed from the checkpoint of step 1
        (writer,) = writers(config, epath.Path(tmp_path), step)
        for k in rows:
            writer.write({"step": k, "loss": 0.5 * k})
        writer.close()
        time.sleep(1.1)  # a file is named after the second in which it was begun
    scalars = [e for e in events(tmp_path / "tensorboard") if e[0] == "loss"]
    assert scalars == [("loss", 1, 0.5), ("loss", 2, 1.0), ("loss", 2, 1.0), ("loss", 3, 1.5)]
    assert ("restart", 2, None) in events(tmp_path / "tensorboard")


def test_no_writer_is_active_by_default(tiny, tmp_path):
    assert writers(tiny, epath.Path(tmp_path), 0) == []


def test_a_missing_package_is_reported_with_its_extra(tiny, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "wandb":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ConfigError, match=r"config.wandb = 'p': wandb is not installed; pip install 'olmo-jax\[wandb\]'"
    ):
        check_writers(dataclasses.replace(tiny, wandb="p"))


@pytest.mark.oracle
def test_weights_and_biases_gets_every_number(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = dataclasses.replace(tiny, wandb="project")
    places = [epath.Path(tmp_path / name) for name in ("run-a", "run-b")]
    for place in places:
        place.mkdir()
    member_writers = [writers(config, place, 0)[0] for place in places]  # side by side, as members of a cohort are
    for writer, factor in zip(member_writers, (1, 10), strict=True):
        for k in (1, 2):
            writer.write({"step": k, "loss": factor * 0.5 * k, "rank": float("nan")})
    assert [writer._run.id for writer in member_writers] == ["run-a", "run-b"]
    assert [writer._run.summary["loss"] for writer in member_writers] == [1.0, 10.0]
    assert member_writers[0]._run.config["data"]["batch_size"] == tiny.data.batch_size
    for writer in member_writers:
        writer.close()
    assert all(list((place / "wandb").glob("offline-run-*/*.wandb")) for place in places)
    assert wandb.__version__
