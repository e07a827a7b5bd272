"""Measure those cases of one part that have no result yet, in a separate process.

`python -m benchmarks.gpu.child` reads a request as JSON on stdin: part, scale, results (a folder), machine (from
machine.describe) and seconds, after which no further case begins. Exit code 0: every case has its result; 1: some
failed, or modules are missing; 75: time was up before all were measured.
"""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import results
from benchmarks.gpu.part import Part, UnfinishedError, all_parts, missing_modules
from olmo_jax.errors import brief

DONE, FAILED, UNFINISHED = 0, 1, 75


def measure_part(part: Part, scale: str, folder: Path, machine: dict[str, Any], seconds: float) -> int:
    """Measure the remaining cases of a part, write each result as its case ends, and return the exit code."""
    start, failed = time.monotonic(), False
    path = results.path_of(folder, part.NAME, machine["device"])
    entries, cases = results.read(path), part.cases(scale)
    keys = {name: results.key_of(part, case, machine) for name, case in cases.items()}
    left = [name for name in cases if not results.is_done(entries.get(name), keys[name])]
    if len(left) < len(cases):
        print_line(f"{part.NAME}: {len(cases) - len(left)} of {len(cases)} cases have results in {path}")
    for done, name in enumerate(left):
        if time.monotonic() - start > seconds:
            remaining = len(left) - done
            print_line(
                f"{part.NAME}: time is up with {remaining} cases left; run the same command to continue with them"
            )
            return UNFINISHED
        began = time.monotonic()
        try:
            outcome = measured(part, cases[name])
        except UnfinishedError as stopped:
            print_line(f"{part.NAME} {name}: {stopped}; run the same command to continue with it")
            return UNFINISHED
        lasted = time.monotonic() - began
        print_line(f"{part.NAME} {name}: {line(part, outcome)} ({lasted:.0f} s)")
        if "error" in outcome:
            failed = True
        else:
            results.record(path, part, name, results.entry_of(part, keys[name], machine, scale) | outcome)
    return FAILED if failed else DONE


def measured(part: Part, case: dict[str, Any]) -> dict[str, Any]:
    """Return {"measured": ...}, {"does_not_fit": why} if the device has too little memory, or {"error": message}.

    Raises UnfinishedError if the part stopped where it can be continued.
    """
    from olmo_jax.config.validation import ConfigError  # after missing_modules has checked that its imports exist

    try:
        return {"measured": part.measure(case)}
    except ConfigError as error:  # raised by memory.fit, before anything runs
        return {"does_not_fit": brief(error)}
    except UnfinishedError:
        raise
    except Exception as error:  # noqa: BLE001  one case that fails must not take the others with it
        out_of_memory = "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError)
        return {"does_not_fit" if out_of_memory else "error": brief(error)}


def line(part: Part, outcome: dict[str, Any]) -> str:
    """Return the line that is printed when a case ends."""
    if "error" in outcome:
        return f"failed: {outcome['error']}"
    if "does_not_fit" in outcome:
        return f"doesn't fit: {outcome['does_not_fit']}"
    shown = {column.heading: column.shown(outcome["measured"]) for column in part.COLUMNS}
    return ", ".join(f"{value} {heading}" for heading, value in shown.items() if value)


def print_line(text: str) -> None:
    """Print one line on stdout, and flush it."""
    print(text, flush=True)


def main() -> int:
    request = json.load(sys.stdin)
    part = all_parts()[request["part"]]
    if missing := missing_modules(part):
        print_line(
            f"{part.NAME}: not measured, because this Python lacks {', '.join(missing)}; `make setup` installs them"
        )
        return FAILED
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return measure_part(
            part, request["scale"], Path(request["results"]), request["machine"], float(request["seconds"])
        )
    except KeyboardInterrupt:
        print_line(f"{part.NAME}: stopped; run the same command to continue with the interrupted case")
        return UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
