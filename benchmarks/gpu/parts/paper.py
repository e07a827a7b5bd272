"""Measure the suite of paper A at the scale `gpu`, with its evaluations, and store the effects that it shows."""

from pathlib import Path
from typing import Any

from benchmarks.gpu import sweep
from benchmarks.gpu.part import Column

NAME = "paper"
TITLE = "`olmo-jax run --config=paper:gpu,seeds=5,quantize=channel+group128`, 132 models."
VERSION = 1
NEEDS = sweep.NEEDS
COLUMNS = (*sweep.COLUMNS, Column("claims that agree", "agree", "d"), Column("that disagree", "disagree", "d"))
_FULL = "--config=paper:gpu,seeds=5,quantize=channel+group128"


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        # The suite has no scale that a CPU trains in a moment; its plan resolves all of it.
        return {"plan": {"command": ["plan", "--flops=1e12", _FULL]}}
    return {"gpu_seeds5": {"command": ["run", _FULL]}}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    command = case["command"]
    if command[0] == "plan":
        return sweep.plan(command)
    workdir = sweep.workdir_of(NAME, VERSION, command[1:])
    seconds = sweep.carry_out(command, workdir)
    results = _effects(workdir)
    counts = {verdict: sum(one["verdict"] == f"{verdict}s" for one in results) for verdict in ("agree", "disagree")}
    return seconds | counts | {"effects": results}


def _effects(workdir: Path) -> list[dict[str, Any]]:
    import math

    from sweeps.studies.paper_a.effects import effects
    from sweeps.table import read_table

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    tested = effects(read_table(workdir))
    return [{name: plain(value) for name, value in one._asdict().items()} for one in tested]
