"""Measure models of the paper's suite at its vocabulary and length, alone, as other trainers report, and in cohorts."""

from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.parts import cohorts

NAME = "models"
TITLE = (
    "Models with 17M and 114M parameters in matmuls (`4m`, `75m` of presets.py): V 50280, sequences of 1024, bfloat16."
)
VERSION = 1
NEEDS: tuple[str, ...] = ()
COLUMNS = cohorts.COLUMNS
measure = cohorts.measure


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"tiny": cohorts.tiny()}
    small = {f"4m_M{m}": _paper(256, 4, 8, m, 16 // m or 1) for m in (1, 8, 32)}
    large = {f"75m_M{m}": _paper(768, 8, 12, m, 4 // m) for m in (1, 4)}
    return small | large | {"75m_M1_B512": _paper(768, 8, 12, 1, 1, batch=512)}


def _paper(width: int, layers: int, heads: int, members: int, steps: int, batch: int = 32) -> dict[str, Any]:
    return training.case_of(width, members, layers, heads, 50280, batch, 1024, steps)
