"""Measure training, probes and evaluations on an accelerator, in parts that resume where they stopped.

    python -m benchmarks.gpu [--scale=full|dry] [--only=PART] [--minutes=N] [--results=FOLDER] [--list]

Each part runs in a separate process, for nine minutes at a time. Cases that have a result for this device and version
of JAX are skipped, and each result is written as its case ends. At the full scale, and without --results, docs/speed.md
is updated at the end. Exit code 0: everything is measured; 1: something failed; 2: bad usage; 75: time was up, run the
same command again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu import results, table
from benchmarks.gpu.child import DONE, FAILED, UNFINISHED, print_line
from benchmarks.gpu.part import SCALES, Part, UsageError, chosen_parts
from olmo_jax.errors import UserError

_ROOT = Path(__file__).parents[2]
_PART_SECONDS = 540.0
# A case that began within its time is given this much more before its process is ended.
_GRACE_SECONDS = 600.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"python -m benchmarks.gpu: {message}; see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    try:
        return _command(_parse(argv))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command to continue", file=sys.stderr)
        return UNFINISHED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog="python -m benchmarks.gpu", description=__doc__, formatter_class=formatter)
    parser.add_argument("--scale", choices=SCALES, default="full", help="dry: tiny shapes on a CPU, to try the command")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="this part (may be repeated)")
    parser.add_argument("--minutes", type=_minutes, metavar="N", help="begin no case after this many minutes")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="folder of the JSON files (default: benchmarks/results; dry: temporary)",
    )
    parser.add_argument("--list", action="store_true", help="list parts and their cases, and exit")
    return parser.parse_args(argv)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: needs a positive number of minutes")
    return minutes


def _command(arguments: argparse.Namespace) -> int:
    parts = chosen_parts(arguments.only)
    if arguments.list:
        for part in parts.values():
            print_line(f"{part.NAME}: {part.TITLE}\n  {' '.join(part.cases(arguments.scale))}")
        return DONE
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seconds = 60 * arguments.minutes if arguments.minutes else float("inf")
    if arguments.scale == "full":
        folder = arguments.results or results.FOLDER
        return _measure_all(parts, "full", folder, seconds, _full_environment(), document=arguments.results is None)
    if arguments.results and arguments.results.resolve() == results.FOLDER.resolve():
        raise UsageError(
            f"--results={arguments.results}: holds measurements, and a dry run makes none; choose another folder"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.results or Path(scratch) / "results"
        return _measure_all(parts, "dry", folder, seconds, _dry_environment(Path(scratch)), document=False)


def _measure_all(
    parts: dict[str, Part], scale: str, folder: Path, seconds: float, environment: dict[str, str], document: bool
) -> int:
    """Measure every part in turn, and return the exit code; with `document`, update docs/speed.md."""
    end = time.monotonic() + seconds
    results.check_writable(folder)
    machine = _machine(environment)
    if scale == "full" and machine["platform"] == "cpu":
        raise UsageError(
            "--scale=full: JAX has no accelerator here (its backend is the CPU); install jax[cuda12] or jax[tpu], or "
            "try the command with --scale=dry"
        )
    print_line(f"{machine['device']}, jax {machine['jax']}, commit {machine['commit']}")
    codes, queue = [], list(parts.values())
    while queue:
        part = queue.pop(0)
        code = _measure(part, scale, folder, machine, environment, end)
        if code == UNFINISHED and time.monotonic() < end:
            queue.append(part)  # it had its nine minutes; the others come first
        else:
            codes.append(code)
    if scale == "dry":
        print_line(table.of_parts(parts, folder, scale))
    if document:
        table.rewrite()
    return FAILED if FAILED in codes else UNFINISHED if UNFINISHED in codes else DONE


def _full_environment() -> dict[str, str]:
    """Return the environment for measuring: nearly all of the memory, and no cache of compiled programs."""
    fixed = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_TRACEBACK_FILTERING": "off"}
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"} | os.environ | fixed


def _dry_environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a dry run, which measures nothing: a CPU, little optimisation, and a cache."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


def _machine(environment: dict[str, str]) -> dict[str, Any]:
    """Return machine.describe() from a separate process, which releases the device. Raises UsageError without JAX."""
    command = [sys.executable, "-m", "benchmarks.gpu.machine"]
    ended = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
        raise UsageError(f"JAX finds no device: {last[0]}")
    return json.loads(ended.stdout)


def _measure(
    part: Part, scale: str, folder: Path, machine: dict[str, Any], environment: dict[str, str], end: float
) -> int:
    seconds = min(_PART_SECONDS, end - time.monotonic())
    if seconds <= 0:
        print_line(f"{part.NAME}: time is up; run the same command to continue with it")
        return UNFINISHED
    request = {
        "part": part.NAME,
        "scale": scale,
        "results": str(folder.resolve()),
        "machine": machine,
        "seconds": seconds,
    }
    command = [sys.executable, "-m", "benchmarks.gpu.child"]
    process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, text=True)
    try:
        process.communicate(json.dumps(request), timeout=seconds + _GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        print_line(f"{part.NAME}: a case ran {_GRACE_SECONDS:.0f} s beyond the time of the part and was stopped")
        return FAILED
    finally:
        process.terminate()
        process.wait()
    if process.returncode in (DONE, FAILED, UNFINISHED):
        return process.returncode
    print_line(f"{part.NAME}: its process ended with exit code {process.returncode}; results written before are kept")
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
