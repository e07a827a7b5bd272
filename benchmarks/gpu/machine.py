"""Describe what the measurements run on: the device and its nominal speed, versions, and the commit.

`python -m benchmarks.gpu.machine` prints it as JSON, so that the caller need not hold the device itself.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# FLOP/s of bfloat16 matmuls without sparsity, by a part of the device's name; the first match counts.
_NOMINAL = (("H100 PCIe", 756e12), ("H100", 989e12), ("H200", 989e12), ("A100", 312e12))


def describe() -> dict[str, Any]:
    """Return the accelerator, its driver, versions and the commit, for JSON; None for what isn't known."""
    import jax
    import jaxlib

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "memory_bytes": stats.get("bytes_limit"),
        "nominal_flops": nominal_flops(device.device_kind),
        "cores": os.cpu_count(),
        "driver": _driver() if device.platform == "gpu" else None,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "commit": commit(),
    }


def nominal_flops(device_kind: str) -> float | None:
    """Return the FLOP/s of bfloat16 matmuls from the data sheet; None for a device that isn't listed."""
    return next((flops for name, flops in _NOMINAL if name in device_kind), None)


def commit() -> str | None:
    """Return the commit of this checkout, with "+" if files other than results differ from it; None outside of git."""
    root = Path(__file__).parents[2]
    try:
        head = _output(["git", "rev-parse", "--short=12", "HEAD"], root)
        others = ["--", ".", ":!benchmarks/results", ":!docs/speed.md"]
        return head + ("+" if _output(["git", "status", "--porcelain", *others], root) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    try:
        return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _output(command: list[str], folder: Path | None = None) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


if __name__ == "__main__":
    json.dump(describe(), sys.stdout)
