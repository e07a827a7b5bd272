"""Requests to a small hub on loopback: listings, ranges, whole files, waits, and each way in which it can fail."""

import hashlib
import io
import os
import subprocess
import sys
import time

import pytest
from huggingface_hub.utils import logging as library_logging

from olmo_jax.hf import hub
from olmo_jax.hf.hub import File, HubError, Repository
from tests.fake_hub import commit_of

BIG = os.urandom(50_000)


@pytest.fixture
def folder(tmp_path):
    for name, content in (("main", b"{}"), ("step10", b'{"a": 1}'), ("step20", b"{}")):
        path = tmp_path / "model" / name
        path.mkdir(parents=True)
        (path / "config.json").write_bytes(content)
        (path / "model.safetensors").write_bytes(BIG + name.encode())
        for extra in ("a.txt", "b.txt", "c.txt"):
            (path / extra).write_text(extra)
    return tmp_path / "model"


@pytest.fixture
def served(folder, serve):
    return serve(made__model=folder)


MODEL = Repository("made/model")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


def test_revisions_are_branches_and_tags(served):
    assert Repository("made/model").revisions() == {name: commit_of(name) for name in ("main", "step10", "step20")}


def test_files_have_the_hashes_of_their_contents_over_all_pages(served):
    config = b'{"a": 1}'
    found = {file.path: file for file in MODEL.files(commit_of("step10"))}
    assert sorted(found) == ["a.txt", "b.txt", "c.txt", "config.json", "model.safetensors"]
    content = BIG + b"step10"
    assert found["model.safetensors"] == File("model.safetensors", len(content), hashlib.sha256(content).hexdigest())
    assert found["config.json"].digest == hashlib.sha1(b"blob 8\0" + config).hexdigest()


def test_a_range_is_read_without_the_other_bytes(served):
    repository = Repository("made/model")
    assert repository.read(commit_of("main"), "model.safetensors", 100, 300) == BIG[100:300]
    assert served.sent["made/model/model.safetensors"] == 200
    assert (repository.traffic.requests, repository.traffic.bytes) == (1, 200)
    end = repository.read(commit_of("main"), "model.safetensors", len(BIG) - 2, len(BIG) + 100)
    assert end == BIG[-2:] + b"main"
    assert repository.read(commit_of("main"), "model.safetensors", 10**6, 10**6 + 5) == b""
    assert repository.read(commit_of("main"), "config.json", 0, 100) == b"{}"


def test_a_small_file_may_come_whole_but_a_large_one_may_not(served):
    served.ignores_ranges = True
    assert MODEL.read("main", "config.json", 0, 1000) == b"{}"
    with pytest.raises(HubError, match="at main, model.safetensors: the server ignores the range"):
        MODEL.read("main", "model.safetensors", 0, 1000)


def test_a_file_is_fetched_checked_and_continued(served, tmp_path):
    (file,) = [file for file in MODEL.files("step20") if file.path == "model.safetensors"]
    served.broken = 2
    path = MODEL.fetch(commit_of("step20"), file, tmp_path / "to")
    assert path.read_bytes() == BIG + b"step20"
    assert served.broken == 0
    with pytest.raises(HubError, match=r"what was fetched isn't what the hub lists"):
        MODEL.fetch(commit_of("step20"), file._replace(digest="0" * 64), tmp_path / "again")
    assert not (tmp_path / "again" / "model.safetensors").exists()
    config = [file for file in MODEL.files("step10") if file.path == "config.json"][0]
    assert MODEL.fetch(commit_of("step10"), config, tmp_path / "to").read_bytes() == b'{"a": 1}'


def test_signed_addresses_are_not_logged(served, tmp_path, monkeypatch):
    (handler,) = library_logging.get_logger().handlers
    monkeypatch.setattr(handler, "stream", io.StringIO())
    repository = Repository.parse("hub:made/model")
    (file,) = [file for file in repository.files("step20") if file.path == "model.safetensors"]
    served.broken = 1
    repository.fetch(commit_of("step20"), file, tmp_path / "to")
    err = handler.stream.getvalue()
    assert "/lfs/made/model/" in err
    assert "signature" not in err


def test_a_busy_hub_is_asked_again_after_the_time_that_it_names(served, no_waiting):
    served.busy, served.retry_after = 3, 7
    assert len(MODEL.revisions()) == 3
    assert [wait for wait in no_waiting if wait >= 7] == [8, 8, 8]
    served.busy = 2
    assert MODEL.read("main", "model.safetensors", 0, 4) == BIG[:4]
    served.busy = 100
    with pytest.raises(HubError, match="answers with status 429; wait, then run the same command again"):
        MODEL.revisions()


def test_a_connection_that_breaks_is_repeated(served):
    served.broken = 3
    assert MODEL.read("main", "model.safetensors", 0, 5000) == BIG[:5000]
    served.broken = 100
    with pytest.raises(HubError, match="no answer from"):
        MODEL.read("main", "model.safetensors", 0, 5000)


def test_few_requests_run_at_once(served):
    assert len(list(hub.in_parallel(lambda name: MODEL.files(name), ["main", "step10", "step20"] * 20))) == 60
    assert served.most_at_once <= hub.WORKERS


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda hub: hub.repositories.clear(), "no such repository, or a private one"),
        (lambda hub: hub.private.add("made/model"), "no such repository, or a private one"),
        (lambda hub: hub.gated.add("made/model"), "is gated; accept its terms"),
        (lambda hub: setattr(hub, "html", True), "something other than the hub's JSON"),
    ],
)
def test_a_refusal_is_one_line_without_an_address(served, spoil, words):
    spoil(served)
    with pytest.raises(HubError) as error:
        MODEL.revisions()
    assert str(error.value).startswith("hub:made/model: ")
    assert words in str(error.value)
    with pytest.raises(HubError) as error:
        MODEL.files("main")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_revisions_and_files_are_named(served, tmp_path):
    with pytest.raises(HubError, match="hub:made/model at step5: the repository has no such revision"):
        MODEL.files("step5")
    with pytest.raises(HubError, match="hub:made/model at main, x.bin: the revision has no such file"):
        MODEL.read("main", "x.bin", 0, 1)
    with pytest.raises(HubError, match="no such file"):
        MODEL.fetch("main", File("x.bin", 1, ""), tmp_path)


def test_nobody_listens(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="no answer from .* check the network and HF_ENDPOINT"):
        MODEL.revisions()
    with pytest.raises(HubError, match="no answer from .* check the network and HF_ENDPOINT"):
        MODEL.fetch(commit_of("main"), File("model.safetensors", 5, "0" * 64), tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://[::")
    with pytest.raises(HubError, match="check the network and HF_ENDPOINT"):
        MODEL.revisions()


@pytest.mark.parametrize("text", ["hub:pythia", "hub:a/b/c", "hub:", "hub:a b/c", "hub:../x"])
def test_a_name_that_is_no_repository_is_refused(text):
    with pytest.raises(HubError, match="isn't a repository; write hub:OWNER/NAME"):
        Repository.parse(text)


def test_the_token_opens_what_is_gated_and_goes_nowhere_else(served, tmp_path, monkeypatch):
    served.gated.add("made/model")
    served.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    commit = MODEL.revisions()["main"]
    (file,) = [file for file in MODEL.files(commit) if file.path == "model.safetensors"]
    MODEL.fetch(commit, file, tmp_path / "to")
    MODEL.read(commit, "model.safetensors", 0, 10)
    hub_host, files_host = (address.removeprefix("http://") for address in (served.address, served.files_address))
    assert served.tokens[hub_host] == {"Bearer hf_secret"}
    assert served.tokens[files_host] == {None}
    written = b"".join(path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file())
    assert b"hf_secret" not in written
    assert b"signature" not in written


@pytest.mark.slow
def test_without_a_network_revisions_come_from_the_cache(folder, served, tmp_path):
    """As `hf download made/model --revision step10` leaves them."""
    environment = os.environ | {"HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home")}
    fetch = (
        "from huggingface_hub import snapshot_download as s; s('made/model', revision='step10'); "
        "s('made/model', revision='step20')"
    )
    subprocess.run([sys.executable, "-c", fetch], env=environment, check=True, capture_output=True)
    show = (
        "from olmo_jax.hf import hub; print(hub.is_offline()); found = hub.cached('made/model'); "
        "print(sorted(found), (found['step10'] / 'config.json').read_text(), hub.cached('made/none'))"
    )
    offline = environment | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run([sys.executable, "-c", show], env=offline, check=True, capture_output=True, text=True)
    assert result.stdout == "True\n['step10', 'step20'] {\"a\": 1} {}\n"
