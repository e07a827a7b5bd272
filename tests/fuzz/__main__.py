"""Run every command on damaged files: `python -m tests.fuzz --seconds=120 --seed=0`.

Exits with 1 and a line for each kind of failure, or with 0 if there is none. `--only=FORMAT` tries one format, with
`--replay=SEED:INDEX` one input of it, whose files and output are then shown.
"""

import argparse
import importlib
import itertools
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.run import Fuzzer, Input, Tally, draw, valid
from tests.fuzz.subjects import SUBJECTS, make

ROOT = Path(__file__).parents[2]
# Imported once, before processes are forked; none of it may touch JAX's backend, which doesn't outlive a fork.
HEAVY = (
    "sweeps.cli", "sweeps.running.stages", "sweeps.planning.config_file", "sweeps.planning.record",
    "sweeps.running.status", "sweeps.report.stage", "sweeps.models.geometry", "sweeps.models.generate",
    "sweeps.models.export_run", "sweeps.models.import_run", "sweeps.report.compare",
    "sweeps.configs.imported", "olmo_jax.data.corpus", "olmo_jax.data.tokenizer", "jax", "orbax.checkpoint", "grain",
    "tensorflow_datasets", "pandas", "pyarrow.parquet", "zstandard", "yaml", "tokenizers", "safetensors.numpy",
    "altair", "vl_convert", "jinja2", "scipy.stats", "sklearn.linear_model", "statsmodels.api",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="how long, without the start (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")
    parser.add_argument("--only", default="", metavar="FORMATS", help=", ".join(SUBJECTS))
    parser.add_argument("--replay", default="", metavar="SEED:INDEX", help="one input of the format in --only")
    parser.add_argument(
        "--valid", action="store_true", help="every command on undamaged files, which has to end with 0"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="commands at once")
    parser.add_argument("--kept", default="", metavar="FOLDER", help="where failures are listed while it runs")
    arguments = parser.parse_args()
    formats = [name.strip() for name in arguments.only.split(",")] if arguments.only else list(SUBJECTS)
    if unknown := set(formats) - set(SUBJECTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(SUBJECTS)}")
    started = time.monotonic()
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        # Whatever is compiled is kept, from one command to the next and from one day to the next.
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "fuzz"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    for name in HEAVY:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="fuzz", dir=_in_memory()) as folder:
        place, scratch = Path(folder) / "valid", Path(folder) / "scratch"
        _in_a_child(place)
        print(f"started in {time.monotonic() - started:.0f} s", flush=True)
        if arguments.replay:
            scratch = Path(tempfile.mkdtemp(prefix="replay"))
            print(f"in {scratch}")
            return _replay(place, scratch, formats[0], arguments.replay)
        if arguments.valid:
            return _valid(Fuzzer(place, scratch, arguments.jobs), place)
        tally = Tally()
        fuzzer = Fuzzer(place, scratch, arguments.jobs)
        inputs = _inputs(place, formats, arguments.seed, time.monotonic() + arguments.seconds, tally)
        for one, failure, seconds in fuzzer.failures(inputs):
            tally.add(one, failure, seconds)
            if failure is not None and arguments.kept:
                Path(arguments.kept).write_text("\n".join([*tally.failure_lines(), *tally.lines()]) + "\n")
    print("\n".join([*tally.failure_lines(), *tally.lines()]))
    return 1 if tally.kinds else 0


def _in_memory() -> str | None:
    """A folder in memory with room for the files of all commands, whose many small copies a disk would be slow at."""
    place = "/dev/shm"
    return place if os.path.isdir(place) and shutil.disk_usage(place).free > 2**30 else None


def _inputs(place: Path, formats: list[str], seed: int, end: float, tally: Tally) -> Iterator[Input]:
    """Inputs until the end, of the format that had least time so far."""
    numbers = {name: itertools.count() for name in formats}
    begun = dict.fromkeys(formats, 0)
    while time.monotonic() < end:
        # One that is under way is reckoned with at what its like took.
        name = min(formats, key=lambda f: tally.seconds[f] / max(tally.inputs[f], 1) * begun[f] + 1e-3 * begun[f])
        begun[name] += 1
        yield draw(place, name, seed, next(numbers[name]))


def _in_a_child(place: Path) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            make(place)
            code = 0
        finally:
            if code:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the valid inputs couldn't be made")


def _valid(fuzzer: Fuzzer, place: Path) -> int:
    bad = 0
    for one, failure, seconds in fuzzer.failures(valid(place)):
        bad += failure is not None
        reason = f"{failure.what}: {failure.last_line}" if failure else ""
        print(f"{seconds:5.1f} s  {one.format}: {one.verb.arguments}  {reason}", flush=True)
    return 1 if bad else 0


def _replay(place: Path, scratch: Path, format_: str, replay: str) -> int:
    seed, index = map(int, replay.split(":"))
    one = draw(place, format_, seed, index)
    print(f"{one.mutation} of {one.file}: olmo-jax {shlex.join(one.verb.arguments.split())}", flush=True)
    ((_, failure, seconds),) = Fuzzer(place, scratch, 1, shown=True).failures([one])
    print(f"{failure.what if failure else 'ended well'}, {seconds:.1f} s")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
