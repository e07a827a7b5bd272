"""The recorded code version: this repository's commit, or none."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from sweeps.planning import versions

ROOT = pathlib.Path(versions.__file__).parents[2]
GIT = {
    **os.environ,
    "GIT_AUTHOR_NAME": "x",
    "GIT_AUTHOR_EMAIL": "x",
    "GIT_COMMITTER_NAME": "x",
    "GIT_COMMITTER_EMAIL": "x",
}
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


def git(folder, *arguments):
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=GIT)


@pytest.fixture
def somebodys(tmp_path):
    """A tagged repository of a user with this package inside it, as in a virtual environment."""
    (tmp_path / "site-packages" / "sweeps" / "planning").mkdir(parents=True)
    shutil.copy(versions.__file__, tmp_path / "site-packages" / "sweeps" / "planning" / "versions.py")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message=first")
    git(tmp_path, "tag", "--annotate", "v9.9", "--message=x")
    return tmp_path


def code_version_in(folder, **environment):
    file = str(folder / "sweeps" / "planning" / "versions.py")
    code = f"import runpy; print(runpy.run_path({file!r})['code_version']())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=GIT | environment, check=True
    )
    return done.stdout.strip()


def test_an_enclosing_repository_does_not_provide_the_version(somebodys):
    assert "v9.9" not in code_version_in(somebodys / "site-packages")
    assert "(" not in code_version_in(somebodys / "site-packages")


def test_our_checkout_provides_its_commit_even_inside_a_git_hook(somebodys):
    (somebodys / "pyproject.toml").write_text('[project]\nname = "olmo-jax"\n')
    shutil.move(somebodys / "site-packages" / "sweeps", somebodys / "sweeps")
    assert "(v9.9" in code_version_in(somebodys)
    other = somebodys / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    assert "(v9.9" in code_version_in(somebodys, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other))
