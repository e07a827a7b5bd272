"""The wheel contains all files of the packages and works outside the checkout."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("geometry", "olmo_jax", "eval", "sweeps")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "source" / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), "./source"]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_contains_every_file_of_the_packages(installed):
    def files(root):
        result = {path.relative_to(root).as_posix() for package in PACKAGES for path in (root / package).rglob("*.*")}
        return {name for name in result if "__pycache__" not in name}

    assert files(installed) == files(ROOT)


@pytest.mark.parametrize("config", ["demo", "paper:cpu", "sweeps/configs/grokking.py:cpu"])
def test_configurations_are_available_by_name_outside_the_checkout(installed, config, tmp_path):
    code = "import sys, sweeps.cli; print(sweeps.__file__, file=sys.stderr); sys.exit(sweeps.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "plan", f"--config={config}", "--flops=1e12"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(installed) in done.stderr
    assert "runs" in done.stdout
