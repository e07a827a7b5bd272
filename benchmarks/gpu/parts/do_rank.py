"""Measure the study `do_rank` at the scale `gpu`, with its evaluations, and store what its arms say."""

from pathlib import Path
from typing import Any

from benchmarks.gpu import sweep
from benchmarks.gpu.part import Column

NAME = "do_rank"
TITLE = "`olmo-jax run --config=do_rank:gpu`, every arm of docs/do-rank.md with its controls."
VERSION = 1
NEEDS = sweep.NEEDS
COLUMNS = (*sweep.COLUMNS, Column("Q of the in-domain loss", "q", ".1f"), Column("degrees of freedom", "dof", "d"))


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"plan": {"command": ["plan", "--flops=1e12", "--config=do_rank:gpu"]}}
    return {"gpu": {"command": ["run", "--config=do_rank:gpu"]}}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    command = case["command"]
    if command[0] == "plan":
        return sweep.plan(command)
    workdir = sweep.workdir_of(NAME, VERSION, command[1:])
    return sweep.carry_out(command, workdir) | _tested(workdir)


def _tested(workdir: Path) -> dict[str, Any]:
    from sweeps.studies.do_rank.effects import effects, sentences
    from sweeps.table import read_table

    results = effects(read_table(workdir), {}, None)
    over = results[0].over
    tested = {"q": over.q, "dof": over.dof, "p_value": over.p_value} if over else {}
    return tested | {"sentences": sentences(results)}
