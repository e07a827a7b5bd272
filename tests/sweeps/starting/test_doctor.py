"""What `doctor` says of a machine that has something and of one that lacks it."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from sweeps import cli
from sweeps.starting import doctor


def check(name):
    (found,) = (each for each in doctor.examine() if each.name == name)
    return found


@pytest.fixture(autouse=True)
def no_index(monkeypatch):
    """pip's index is asked for in one test alone."""
    monkeypatch.setattr(doctor, "_succeeds", lambda run: False)


def test_a_usable_machine_has_no_problem(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert checks["versions"]["found"].count(" ") > 10
    assert {each["state"] for each in checks.values()} <= {doctor.OK, doctor.OPTIONAL}
    assert all(each["remedy"] for each in checks.values() if each["state"] == doctor.OPTIONAL)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Ready: olmo-jax demo")


def test_what_a_machine_lacks_is_said_with_a_remedy(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name, remedy in (
        ("apt-get", "another corpus"),
        ("npm", "Node.js"),
        ("package index", "by hand"),
        ("Slurm", "submitit"),
    ):
        found = check(name)
        assert found.state == doctor.OPTIONAL
        assert remedy in found.remedy


def test_an_unused_nvidia_driver_and_a_missing_package_are_problems(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
    assert check("accelerator") == doctor.Check(
        "accelerator",
        doctor.PROBLEM,
        "there is an NVIDIA driver, but JAX uses the CPU",
        "pip install 'jax[cuda12]', or unset JAX_PLATFORMS",
    )
    monkeypatch.setattr(doctor, "_PACKAGES", ("jax", "no-such-package"))
    assert check("versions").remedy == "pip install no-such-package"
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 problems to solve first."


def test_a_home_that_cannot_be_written_is_no_obstacle(monkeypatch, tmp_path):
    """Root may write anywhere, so the refusal is made."""
    monkeypatch.setenv("OLMO_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))

    def refused(dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    fetched, compiled = check("fetched files"), check("compiled programs")
    assert fetched.state == compiled.state == doctor.OPTIONAL
    assert f"{tmp_path / 'cache'} can't be written (Read-only file system)" in fetched.found
    assert "OLMO_JAX_CACHE" in fetched.remedy
    assert "JAX_COMPILATION_CACHE_DIR" in compiled.remedy
    assert not (tmp_path / "cache").exists()


def test_a_package_index_that_is_not_reached_is_said_within_seconds(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens there
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    found = doctor._index()
    assert found.state == doctor.OPTIONAL
    assert "doesn't reach it" in found.found


def test_a_broken_backend_is_a_problem_and_the_rest_is_examined():
    """In a process of its own, since JAX chooses its devices once."""
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "doctor"],
        env=os.environ | {"JAX_PLATFORMS": "tpu"},
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "!!  devices" in done.stdout and "JAX finds none: " in done.stdout
    assert "set JAX_PLATFORMS=cpu" in done.stdout
    assert "built-in text" in done.stdout and "1 problem to solve first." in done.stdout
    assert "Traceback" not in done.stderr
