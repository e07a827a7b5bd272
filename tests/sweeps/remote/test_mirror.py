"""A sweep's working directory is mirrored while it is written, and restored on an empty disk."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import chex
import pytest
from etils import epath
from pyarrow import fs

from olmo_jax.checkpoint import load_run
from olmo_jax.config import ConfigError
from olmo_jax.errors import UserError
from sweeps.remote import mirror
from sweeps.remote.mirror import MirrorError, fetch, mirrored
from tests.sweeps.running.test_interruption import CONFIG

COHORT = "4m 50% #1 [ü]"  # a folder's name may be anything
CHECKPOINTS = f"cohorts/{COHORT}/checkpoints"
NEVER = 3600.0  # seconds between rounds: everything is copied on leaving


class Cut(BaseException):  # noqa: N818  # as KeyboardInterrupt is
    """The process ends in the middle of an operation."""


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def train_to(workdir, step, state="training"):
    """Write the files of training up to a checkpoint, in the order of training."""
    write(workdir / "runs/a/metrics.jsonl", "".join(f'{{"step": {s}}}\n' for s in range(step + 1)))
    write(workdir / "runs/a/timings.jsonl", f'{{"step": {step}}}\n')
    folder = workdir / CHECKPOINTS / f"{step}.orbax-checkpoint-tmp-1"
    write(folder / "params/d/0", bytes(1000) + str(step).encode())
    write(folder / "params/.zarray", "{}")
    write(folder / "members/metadata", '{"runs": ["a"]}')
    folder.rename(folder.with_name(str(step)))
    write(workdir / "runs/a/status.json", json.dumps({"state": state, "step": step}))


@pytest.fixture
def workdir(tmp_path):
    """The working directory of a sweep of one run at step 30."""
    workdir = tmp_path / "work"
    write(workdir / "sweep.json", sweep_json("a"))
    write(workdir / "data/text/index.json", '{"shards": []}')
    write(workdir / "data/text/train.bin", bytes(range(256)) * 100)
    write(workdir / "data/text/corpus/1.0/shard", b"")
    write(workdir / "data/text/corpus/1.0/part.jsonl.gz", b"as it is")
    write(workdir / "runs/a/config.json", '{"run_id": "a"}')
    write(workdir / "runs/a/results/lm_loss.json", "[1]")
    write(workdir / f"cohorts/{COHORT}/compute.json", "{}")
    train_to(workdir, 30)
    return workdir


def sweep_json(*runs):
    return json.dumps({"cohorts": [{"runs": [{"run_id": run} for run in runs]}]})


@pytest.fixture(scope="session")
def store():
    """URL of a bucket of an S3 server in this process, to be completed by a prefix."""
    server = pytest.importorskip("moto.server", reason="needs moto[server]; see requirements/oracles.txt")
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        started.start()
        host, port = started.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(Bucket="bucket")
        yield "s3://bucket/{}?" + f"scheme=http&endpoint_override={host}:{port}"
        started.stop()


@pytest.fixture(params=["folder", "file", pytest.param("s3", marks=pytest.mark.oracle)])
def url(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("store").format(tmp_path.name)
    return str(tmp_path / "mir ror") if request.param == "folder" else f"file://{tmp_path}/mir%20ror"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "mirror"


def copy(workdir, url):
    with mirrored(epath.Path(workdir), str(url), every=NEVER):
        pass


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def place(url):
    return fs.FileSystem.from_uri(url.replace(" ", "%20") if "://" in url else url)


def names(url):
    where, base = place(str(url))
    entries = where.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    return {info.path[len(base) + 1 :] for info in entries if info.is_file}


def versions(folder):
    """Return inode and time of each file, which change if it is sent again; .mirror is sent by every start."""
    entries = [p for p in folder.rglob("*") if p.is_file() and p.name != ".mirror"]
    return {p.relative_to(folder).as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in entries}


def eventually(condition, what):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(what)


def eventually_all(workdir, folder):
    """Waits for the end of a round that copies the fixture's files."""
    manifests = {f"{path.relative_to(workdir).as_posix()}.complete.json" for path in (workdir / CHECKPOINTS).iterdir()}
    expected = files(workdir).keys() | manifests | {".mirror"}
    eventually(lambda: names(folder) == expected, "all is copied")
    time.sleep(0.05)  # what is copied last is remembered, too


def test_fetch_restores_exactly_what_a_resume_needs(workdir, url, tmp_path):
    expected = files(workdir)
    for name in (
        "compiled/host/program",
        "profile/c/trace",
        "report/index.html",
        "results.parquet",
        ".sweep.lock",
        "sweep.json.partial",
        "data/.text.lock",
        "data/.other.partial/index.json",
        "data/other.partial/index.json",
        "data/unfinished/train.bin",
        "data/text/.hidden/x",
        "data/text/x.partial",
        "runs/a/tensorboard/events",
        "runs/a/status.json.partial",
        "runs/a/results/lm_loss.json.partial",
        "runs/a/notes.txt",
        f"cohorts/{COHORT}/lock.json",
        f"cohorts/{COHORT}/broken/20/params/d/0",
        f"{CHECKPOINTS}/60.orbax-checkpoint-tmp-7/params/d/0",
    ):
        write(workdir / name, "x")
    copy(workdir, url)
    assert names(url) == expected.keys() | {f"{CHECKPOINTS}/30.complete.json", ".mirror"}
    restored = tmp_path / "back"
    assert fetch(url, epath.Path(restored)) == len(expected)
    assert files(restored) == expected
    assert fetch(url, epath.Path(restored)) == 0, "its own disk is the truth"


def test_a_mirror_that_holds_no_sweep_yields_nothing(workdir, url):
    restored = workdir.parent / "back"
    assert fetch(url, epath.Path(restored)) == 0
    (workdir / "sweep.json").unlink()
    copy(workdir, url)  # prepared, and stopped before planning
    assert fetch(url, epath.Path(restored)) == 0
    assert not restored.exists()


def test_no_url_mirrors_nothing(workdir):
    before = threading.active_count()
    with mirrored(epath.Path(workdir), "", every=0.01):
        assert threading.active_count() == before
    assert fetch("", epath.Path(workdir.parent / "back")) == 0


def test_mirrored_lines_are_complete(workdir, url):
    metrics = workdir / "runs/a/metrics.jsonl"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole + b'{"step": 31, "lo')
    where, base = place(url)
    copy(workdir, url)
    assert where.open_input_stream(f"{base}/runs/a/metrics.jsonl").read() == whole
    metrics.write_bytes(whole + b'{"step": 31, "loss": 1}\n')
    copy(workdir, url)
    assert where.open_input_stream(f"{base}/runs/a/metrics.jsonl").read() == metrics.read_bytes()


def test_metrics_are_mirrored_with_checkpoints_and_at_the_end(workdir, folder):
    metrics = workdir / "runs/a/metrics.jsonl"
    with mirrored(epath.Path(workdir), str(folder), every=0.01):
        eventually_all(workdir, folder)
        first = versions(folder)
        with metrics.open("a") as file:
            file.write('{"step": 31}\n')
        time.sleep(0.1)  # several rounds
        assert versions(folder) == first
    assert (folder / "runs/a/metrics.jsonl").read_bytes() == metrics.read_bytes()


@pytest.mark.parametrize("lost", [".complete.json", "/params/d/0"])
def test_an_incomplete_remote_checkpoint_is_not_fetched(workdir, url, lost, tmp_path):
    train_to(workdir, 60)
    copy(workdir, url)
    where, base = place(url)
    where.delete_file(f"{base}/{CHECKPOINTS}/60{lost}")
    fetch(url, epath.Path(tmp_path / "back"))
    assert [p.name for p in (tmp_path / "back" / CHECKPOINTS).iterdir()] == ["30"]
    copy(workdir, url)
    if lost == ".complete.json":
        assert f"{CHECKPOINTS}/60.complete.json" in names(url), "sent again by the next start"


@pytest.mark.parametrize("content", [b"", bytes(40), b'{"params/d/0": 10', b"[]", b"null", b"{}", b"\xff"])
def test_a_remote_checkpoint_with_a_damaged_manifest_is_not_fetched(workdir, folder, content, tmp_path, capsys):
    train_to(workdir, 60)
    copy(workdir, folder)
    (folder / CHECKPOINTS / "60.complete.json").write_bytes(content)
    fetch(str(folder), epath.Path(tmp_path / "back"))
    assert [p.name for p in (tmp_path / "back" / CHECKPOINTS).iterdir()] == ["30"]
    assert "checkpoints/60 doesn't match" in capsys.readouterr().err
    copy(workdir, folder)
    assert json.loads((folder / CHECKPOINTS / "60.complete.json").read_bytes())["params/.zarray"] == 2


@pytest.mark.parametrize(
    "content", [b"", bytes(40), b"[]", b"{}", b'{"cohorts": [{}]}', b'{"cohorts": 1}', b"[" * 10**5]
)
def test_a_damaged_sweep_json_is_named_locally_and_remotely(workdir, folder, content, tmp_path):
    copy(workdir, folder)
    whole = (folder / "sweep.json").read_bytes()
    (folder / "sweep.json").write_bytes(content)
    for enter in (lambda: fetch(str(folder), epath.Path(tmp_path / "back")), lambda: copy(workdir, folder)):
        with pytest.raises(MirrorError, match="mirror: sweep.json is damaged.*put it back from a copy"):
            enter()
    assert not (tmp_path / "back").exists()
    (folder / "sweep.json").write_bytes(whole)
    (workdir / "sweep.json").write_bytes(content)
    with pytest.raises(UserError, match="work/sweep.json.*put it back from a copy"):
        copy(workdir, folder)
    assert (folder / "sweep.json").read_bytes() == whole


def test_an_interrupted_fetch_restarts(workdir, folder, tmp_path, monkeypatch):
    copy(workdir, folder)
    expected = files(workdir)
    restored = tmp_path / "back"

    for after in range(1, len(expected) + 1):
        with monkeypatch.context() as patch:
            left = iter(range(after))
            real = pathlib.Path.replace

            def replace(self, target, left=left, real=real):
                if next(left, None) is None:
                    raise Cut
                return real(self, target)

            patch.setattr(pathlib.Path, "replace", replace)
            try:
                fetch(str(folder), epath.Path(restored))
            except Cut:
                assert not (restored / "sweep.json").exists()
        arrived = {name: content for name, content in files(restored).items() if not name.startswith(".fetch")}
        assert arrived.items() <= expected.items()
        whole = sum(name.startswith(f"{CHECKPOINTS}/30/") for name in arrived)
        assert whole in (0, sum(name.startswith(f"{CHECKPOINTS}/30/") for name in expected))
    assert files(restored) == expected


def test_a_failed_transfer_leaves_no_file(workdir, folder, tmp_path, monkeypatch):
    """The error occurs while copying, before the rename."""
    copy(workdir, folder)
    real, left = mirror.Store.get, iter(range(3))

    def get(self, info, name, path):
        if next(left, None) is None:
            write(path, "half")
            raise MirrorError("network")
        real(self, info, name, path)

    with monkeypatch.context() as patch:
        patch.setattr(mirror.Store, "get", get)
        with pytest.raises(MirrorError, match="network"):
            fetch(str(folder), epath.Path(tmp_path / "back"))
    assert all(name.startswith(".fetch.partial/") for name in files(tmp_path / "back"))
    write(tmp_path / "back/.fetch.partial/data/text/gone_from_the_mirror", "")
    fetch(str(folder), epath.Path(tmp_path / "back"))
    assert files(tmp_path / "back") == files(workdir)


def test_a_file_that_changes_during_its_fetch_is_discarded(workdir, folder, tmp_path, monkeypatch):
    copy(workdir, folder)
    real = mirror.Store.files

    def then_written(self):
        remote = real(self)
        write(folder / "runs/a/metrics.jsonl", "")
        return remote

    monkeypatch.setattr(mirror.Store, "files", then_written)
    with pytest.raises(MirrorError, match=r"runs/a/metrics.jsonl changed"):
        fetch(str(folder), epath.Path(tmp_path / "back"))
    assert not (tmp_path / "back/runs").exists()


def test_only_changed_files_are_sent_again(workdir, folder, tmp_path):
    with mirrored(epath.Path(workdir), str(folder), every=0.01):
        eventually_all(workdir, folder)
        first = versions(folder)
        time.sleep(0.1)  # several rounds
        assert versions(folder) == first
        train_to(workdir, 60)
        eventually(lambda: json.loads((folder / "runs/a/status.json").read_text())["step"] == 60, "a second round")
        second = versions(folder)
    changed = {name for name in second if second[name] != first.get(name)}
    assert changed == {
        "runs/a/metrics.jsonl",
        "runs/a/timings.jsonl",
        "runs/a/status.json",
        f"{CHECKPOINTS}/60.complete.json",
        *(f"{CHECKPOINTS}/60/{name}" for name in ("params/d/0", "params/.zarray", "members/metadata")),
    }
    copy(workdir, folder)
    assert versions(folder) == second, "nor by another start on the same disk"
    fetch(str(folder), epath.Path(tmp_path / "back"))
    copy(tmp_path / "back", folder)
    assert versions(folder) == second, "nor by a start on a new host"


def test_a_host_with_an_old_copy_overwrites_nothing_newer(workdir, folder, tmp_path):
    """Two hosts that train other cohorts of one sweep; each has an old copy of the other's runs."""
    copy(workdir, folder)
    fetch(str(folder), epath.Path(tmp_path / "back"))
    train_to(workdir, 60)
    copy(workdir, folder)
    copy(tmp_path / "back", folder)
    assert (folder / "runs/a/metrics.jsonl").read_bytes() == (workdir / "runs/a/metrics.jsonl").read_bytes()
    assert (folder / f"{CHECKPOINTS}/60.complete.json").exists()


def test_a_checkpoint_of_the_same_step_replaces_the_remote_one(workdir, url, tmp_path):
    copy(workdir, url)
    shutil.rmtree(workdir / CHECKPOINTS / "30")
    train_to(workdir, 30)
    write(workdir / CHECKPOINTS / "30/params/d/1", "more")
    copy(workdir, url)
    fetch(url, epath.Path(tmp_path / "back"))
    assert files(tmp_path / "back") == files(workdir)


def test_a_checkpoint_deleted_locally_is_deleted_remotely(workdir, url):
    with mirrored(epath.Path(workdir), url, every=0.01):
        train_to(workdir, 45)
        eventually(lambda: f"{CHECKPOINTS}/45.complete.json" in names(url), "arrives")
        train_to(workdir, 60, "done")
        shutil.rmtree(workdir / CHECKPOINTS / "45")
    assert {name.split("/")[3] for name in names(url) if name.startswith(CHECKPOINTS)} == {
        "30", "30.complete.json", "60", "60.complete.json",
    }  # fmt: skip


@pytest.mark.parametrize("emptied", ["checkpoints", "all"])
def test_an_emptied_disk_deletes_nothing_from_the_mirror(workdir, url, emptied):
    with mirrored(epath.Path(workdir), url, every=NEVER):
        pass
    remote = names(url)
    with mirrored(epath.Path(workdir), url, every=0.01):
        shutil.rmtree(workdir / CHECKPOINTS if emptied == "checkpoints" else workdir)
        time.sleep(0.1)
    assert names(url) == remote


def test_a_half_deleted_local_checkpoint_stays_complete_remotely(workdir, folder):
    copy(workdir, folder)
    before = versions(folder)
    (workdir / CHECKPOINTS / "30" / "params" / "d" / "0").unlink()
    (workdir / CHECKPOINTS / "30" / "params" / "d").rmdir()
    os.utime(workdir / CHECKPOINTS / "30")
    copy(workdir, folder)
    assert versions(folder) == before


def test_files_unknown_to_this_process_stay_in_the_mirror(workdir, url):
    train_to(workdir, 45)
    copy(workdir, url)
    remote = names(url)
    shutil.rmtree(workdir / CHECKPOINTS / "45")
    copy(workdir, url)
    assert names(url) == remote


def assert_fit_to_resume(url, restored):
    """Check that data and checkpoints are complete, metrics reach each checkpoint, and finished runs have theirs."""
    if not fetch(str(url), epath.Path(restored)):
        return
    for data in (restored / "data").iterdir():
        assert {"index.json", "train.bin"} <= {p.name for p in data.iterdir()}
    checkpoints = restored / CHECKPOINTS
    steps = [int(p.name) for p in checkpoints.iterdir()] if checkpoints.exists() else []
    for step in steps:
        assert (checkpoints / str(step) / "params/d/0").read_bytes() == bytes(1000) + str(step).encode()
        assert (checkpoints / str(step) / "members/metadata").exists()
        assert len((restored / "runs/a/metrics.jsonl").read_text().splitlines()) > step
    status = restored / "runs/a/status.json"
    if status.exists() and (remote := json.loads(status.read_text()))["state"] == "done":
        assert remote["step"] in steps


ON_THE_MIRROR = (mirror.Store, "put"), (mirror.Store, "delete")
ON_THE_DISK = (mirror._Mirror, "_names"), (mirror._Mirror, "_read")


def at_operation(patch, number, action, operations=ON_THE_MIRROR):
    """Call `action` before operation `number`, counted over the given operations."""
    count = iter(range(10**6))

    def counted(real):
        def operation(self, *args, **kwargs):
            if next(count) == number:
                action()
            return real(self, *args, **kwargs)

        return operation

    patch.setattr(mirror, "_TRANSFERS", 1)
    for owner, name in operations:
        patch.setattr(owner, name, counted(getattr(owner, name)))


def cut():
    raise Cut


def every_moment(workdir):
    """Yield numbers from 0, each with a copy of a working directory and a mirror that doesn't exist yet."""
    for number in range(100):
        local = workdir.parent / f"here{number}"
        shutil.copytree(workdir, local)
        yield number, local, workdir.parent / f"there{number}"
    raise AssertionError("no round comes to its end")


def test_an_interruption_at_any_operation_leaves_a_resumable_mirror(workdir, tmp_path, monkeypatch, capsys):
    train_to(workdir, 45)
    for number, local, remote in every_moment(workdir):
        copy(local, remote)
        try:
            with monkeypatch.context() as patch, mirrored(epath.Path(local), str(remote), every=NEVER):
                train_to(local, 60, "done")
                shutil.rmtree(local / CHECKPOINTS / "45")
                shutil.copytree(local / "data/text", local / "data/more")  # of runs that joined
                at_operation(patch, number, cut)
        except Cut:
            assert_fit_to_resume(remote, tmp_path / f"back{number}")
            assert "left out" not in capsys.readouterr().err
            copy(local, remote)
            assert_fit_to_resume(remote, tmp_path / f"later{number}")
            assert (tmp_path / f"later{number}" / CHECKPOINTS / "60").exists()
        else:
            assert number >= 9  # metrics, timings, a checkpoint of three files, its manifest, status, two deletions
            return


def test_an_interrupted_first_round_leaves_a_usable_mirror(workdir, tmp_path, monkeypatch):
    for number, local, remote in every_moment(workdir):
        try:
            with monkeypatch.context() as patch, mirrored(epath.Path(local), str(remote), every=NEVER):
                at_operation(patch, number, cut)
        except Cut:
            assert_fit_to_resume(remote, tmp_path / f"back{number}")
        else:
            assert number >= len(files(workdir))
            return


def test_an_interruption_never_mixes_two_checkpoints_of_a_step(workdir, tmp_path, monkeypatch):
    for number, local, remote in every_moment(workdir):
        copy(local, remote)
        try:
            with monkeypatch.context() as patch, mirrored(epath.Path(local), str(remote), every=NEVER):
                checkpoint = local / CHECKPOINTS / "30"
                (checkpoint / "params/d/0").rename(checkpoint / "params/d/other")
                (checkpoint / "members/metadata").write_text('{"runs": ["b"]}')
                os.utime(checkpoint)
                at_operation(patch, number, cut)
        except Cut:
            restored = tmp_path / f"back{number}" / CHECKPOINTS / "30"
            fetch(str(remote), epath.Path(tmp_path / f"back{number}"))
            if restored.exists():
                assert (restored / "params/d/other").exists() == ('"b"' in (restored / "members/metadata").read_text())
        else:
            assert number >= 5
            return


def test_a_commit_during_a_round_leaves_a_resumable_mirror(workdir, tmp_path, monkeypatch):
    for number, local, remote in every_moment(workdir):
        copy(local, remote)
        commit, committed = at_step_60(local)
        with monkeypatch.context() as patch, mirrored(epath.Path(local), str(remote), every=NEVER):
            train_to(local, 45)
            at_operation(patch, number, commit, ON_THE_MIRROR + ON_THE_DISK)
        assert_fit_to_resume(remote, tmp_path / f"back{number}")
        if not committed:
            assert number >= 15
            return


def at_step_60(workdir):
    """Train to the end at step 60 and mark the run as done."""
    committed = []

    def commit():
        train_to(workdir, 60, "done")
        committed.append(60)

    return commit, committed


def test_a_checkpoint_deleted_during_its_transfer_never_counts_as_complete(workdir, folder, tmp_path, monkeypatch):
    copy(workdir, folder)
    with monkeypatch.context() as patch, mirrored(epath.Path(workdir), str(folder), every=NEVER):
        train_to(workdir, 45)
        at_operation(patch, 4, lambda: (workdir / CHECKPOINTS / "45/members/metadata").unlink())
    assert f"{CHECKPOINTS}/45.complete.json" not in names(folder)


def test_a_lost_mirror_is_reported_once_retried_and_finally_raised(workdir, folder, capsys):
    away = folder.with_name("away")
    gone = pytest.raises(MirrorError, match=r"mirror: \.mirror is gone")
    with gone, mirrored(epath.Path(workdir), str(folder), every=0.01):
        eventually_all(workdir, folder)
        folder.rename(away)
        train_to(workdir, 60)
        eventually(lambda: str(folder) in capsys.readouterr().err, "said")
        time.sleep(0.2)  # several rounds
        assert capsys.readouterr().err == "", "once"
        away.rename(folder)
        eventually_all(workdir, folder)
        folder.rename(away)
        train_to(workdir, 90)
        eventually(lambda: str(folder) in capsys.readouterr().err, "said again, for it had recovered")


def test_an_unwritable_mirror_is_reported_and_raised(workdir, folder, capsys):
    write(folder / "runs", "a file in the way")
    failed = pytest.raises(MirrorError, match="writing runs/a/config.json failed")
    with failed, mirrored(epath.Path(workdir), str(folder), every=0.01):
        time.sleep(0.2)  # several rounds
    (line,) = capsys.readouterr().err.splitlines()
    assert "writing runs/a/config.json failed" in line


def test_an_error_of_the_body_propagates(workdir, folder, capsys):
    with pytest.raises(ZeroDivisionError), mirrored(epath.Path(workdir), str(folder), every=NEVER):
        raise ZeroDivisionError
    assert (folder / f"{CHECKPOINTS}/30.complete.json").exists(), "what it left is copied all the same"
    with pytest.raises(ZeroDivisionError), mirrored(epath.Path(workdir), str(folder), every=NEVER):
        shutil.rmtree(folder)
        train_to(workdir, 60)
        raise ZeroDivisionError
    assert str(folder) in capsys.readouterr().err, "and what the copy met is said"


@pytest.mark.parametrize("enter", [fetch, lambda url, workdir: mirrored(workdir, url).__enter__()])
def test_invalid_mirror_urls_are_refused_in_one_line(enter, workdir, tmp_path):
    empty = epath.Path(tmp_path / "empty")

    def refused(error, url, *said, workdir=empty):
        with pytest.raises(error) as caught:
            enter(str(url), workdir)
        assert "\n" not in str(caught.value)
        for text in said:
            assert text in str(caught.value)

    for url in ("ftp://host/x", "s3:/bucket/x", "s3://", "file://relative", "s3://b/x?unknown=1", "gs://"):
        refused(ConfigError, url, url, "--mirror", "s3://BUCKET/PREFIX")
    for url in (empty, empty / "mirror", f"file://{empty}/mirror"):
        refused(ConfigError, url, str(url), "outside")
    refused(ConfigError, tmp_path, "gs://bucket/sweep", workdir=epath.Path("gs://bucket/sweep"))
    (tmp_path / "link").symlink_to(workdir)
    refused(ConfigError, tmp_path / "link" / "mirror", "outside", workdir=epath.Path(workdir.parent / "work"))


def test_an_unwritable_location_is_refused_before_the_work(workdir, tmp_path):
    write(tmp_path / "file", "")
    with (
        pytest.raises(MirrorError, match="file/mirror: writing .mirror failed: "),
        mirrored(epath.Path(workdir), str(tmp_path / "file" / "mirror")),
    ):
        raise AssertionError("entered")


@pytest.mark.oracle
def test_a_missing_bucket_is_named(store, workdir, tmp_path):
    url = store.format("x").replace("//bucket", "//nobody:secret@nobucket")
    for enter in (lambda: fetch(url, epath.Path(tmp_path / "back")), lambda: copy(workdir, url)):
        with pytest.raises(MirrorError, match="no bucket nobucket") as caught:
            enter()
        assert "secret" not in str(caught.value)


def test_a_mirror_of_another_sweep_is_refused_and_of_a_smaller_grid_accepted(workdir, folder):
    copy(workdir, folder)
    write(workdir / "sweep.json", sweep_json("a", "b"))
    copy(workdir, folder)
    assert (folder / "sweep.json").read_text() == sweep_json("a", "b")
    write(workdir / "sweep.json", sweep_json("a"))
    with pytest.raises(MirrorError, match="holds runs that .* doesn't have"):
        copy(workdir, folder)
    assert (folder / "sweep.json").read_text() == sweep_json("a", "b")


SCRIPT = """
import sys
from etils import epath
from sweeps import cli
from sweeps.remote.mirror import fetch, mirrored

config, workdir, url = sys.argv[1:]
print(fetch(url, epath.Path(workdir)), "files fetched", file=sys.stderr)
with mirrored(epath.Path(workdir), url, every=0.05):
    code = cli.main(["train", f"--config={config}", f"--workdir={workdir}"])
sys.exit(code)
"""


TREE = """[dict(name="trunk"), {"name": "branch", "branch.parent": "trunk@120", "optimizer.weight_decay": 5.0}]"""


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["", TREE], ids=["runs", "trunk and branch"])
def test_a_sweep_resumed_on_an_empty_disk_is_bit_equal(corpus, tmp_path, grid):
    config = tmp_path / "sweep.py"
    source = CONFIG.format(corpus=str(corpus), root="")
    config.write_text(re.sub(r"product\(.*?\}\)", grid, source) if grid else source)
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(host, url):
        command = [sys.executable, "-c", SCRIPT, str(config), str(tmp_path / host), str(url)]
        return subprocess.Popen(command, env=os.environ | cache, stderr=subprocess.PIPE, text=True)

    undisturbed = start("undisturbed", "")
    _, err = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, err

    url = tmp_path / "mirror"
    first = start("first", url)
    while len({path.parents[1] for path in url.glob("cohorts/*/checkpoints/*.complete.json")}) < (2 if grid else 1):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "it was still at work"
    first.stderr.close()
    shutil.rmtree(tmp_path / "first")

    second = start("second", url)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert int(re.search(r"(\d+) files fetched", err)[1]) > 10
    assert "training a BPE" not in err, "its data came with it"
    runs = sorted(p.name for p in (tmp_path / "undisturbed" / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        a, b = (tmp_path / host / "runs" / run / "metrics.jsonl" for host in ("second", "undisturbed"))
        assert a.read_bytes() == b.read_bytes()
        chex.assert_trees_all_equal(*(load_run(tmp_path / host, run)[1] for host in ("second", "undisturbed")))
        assert (url / "runs" / run / "metrics.jsonl").read_bytes() == b.read_bytes()
