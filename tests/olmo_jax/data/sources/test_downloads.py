import hashlib
import os

import pytest

from olmo_jax.data import DataError
from olmo_jax.data.sources import downloads

CONTENT = "the package"
SHA256 = hashlib.sha256(CONTENT.encode()).hexdigest()

# Knows new-doc alone.
APT_GET = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *--print-uris*new-doc) echo "'https://x.y/new-doc_3_all.deb' new-doc_1%3a3_all.deb 11 SHA256:{sha256}" ;;
  *new-doc) printf '{content}' > new-doc_1%3a3_all.deb ;;
  *) echo "E: Unable to locate package" >&2; exit 100 ;;
esac
"""


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A function that writes an apt-get which delivers the given content for new-doc; the cache is tmp_path/cache."""

    def write(content=CONTENT):
        script = tmp_path / "bin/apt-get"
        script.parent.mkdir(exist_ok=True)
        script.write_text(APT_GET.format(log=tmp_path / "log", sha256=SHA256, content=content))
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path / "cache"))
    return write


def test_the_first_available_package_is_fetched_and_cached(apt, tmp_path):
    apt()
    path = downloads.debian_package(("old-doc", "new-doc"), "this test")
    assert path == tmp_path / "cache/new-doc_1%3a3_all.deb" and path.read_text() == CONTENT
    requests = (tmp_path / "log").read_text()
    assert downloads.debian_package(("old-doc", "new-doc"), "this test") == path
    assert (tmp_path / "log").read_text() == requests
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_cached_packages_take_precedence_over_apt(apt, tmp_path):
    apt()
    cached = tmp_path / "cache/older-doc_1_all.deb"
    cached.parent.mkdir()
    cached.touch()
    assert downloads.debian_package(("new-doc", "older-doc"), "this test") == cached


def test_unknown_packages_are_named(apt, tmp_path):
    apt()
    with pytest.raises(
        DataError, match=r"this test needs the package a-doc or b-doc, but .*`apt-get update`"
    ) as raised:
        downloads.debian_package(("a-doc", "b-doc"), "this test")
    assert str(tmp_path / "cache") in str(raised.value)


def test_contents_with_another_checksum_are_refused(apt, tmp_path):
    apt("something else")
    with pytest.raises(DataError, match=f"new-doc.*has SHA-256 .*not {SHA256[:12]}"):
        downloads.debian_package(("new-doc",), "this test")
    assert not list((tmp_path / "cache").iterdir())


def test_a_failing_or_missing_client_is_reported(tmp_path):
    with pytest.raises(DataError, match=r"this: `sh -c echo no >&2; exit 3 ...` failed: no; check the network"):
        downloads.run(["sh", "-c", "echo no >&2; exit 3"], "this")
    assert downloads.run(["sh", "-c", "echo yes; exit 3"], "this", may_fail=True) == "yes\n"
    with pytest.raises(DataError, match="this needs no-such-client, which can't be run here"):
        downloads.run(["no-such-client"], "this")


def test_an_unwritable_cache_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set OLMO_JAX_CACHE"):
        downloads.kept("x", lambda place: None, "", "this test")
