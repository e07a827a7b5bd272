"""Measure cohorts by width and members, each trained as one program."""

from typing import Any

from benchmarks.gpu import training
from benchmarks.gpu.part import Column

NAME = "cohorts"
TITLE = "Cohorts as one program: 4 layers, V 4096, each member 8 sequences of 256 tokens per step, bfloat16."
VERSION = 1
NEEDS: tuple[str, ...] = ()
COLUMNS = (
    *training.RATES,
    Column("ms per step", "step_ms", ".2f"),
    Column("GB", "memory_gb", ".2f"),
    Column("s compiling", "compile_s", ".0f"),
    Column("microbatches", "microbatches", "d"),
)

# Width: heads, and steps per call.
WIDTHS = {64: (2, 32), 128: (4, 32), 256: (8, 16), 512: (8, 8), 768: (12, 4)}
MEMBERS = (1, 8, 32, 128)


def cases(scale: str) -> dict[str, dict[str, Any]]:
    if scale == "dry":
        return {"d16_M2": tiny(members=2)}
    return {f"d{width}_M{m}": of_width(width, m) for width in WIDTHS for m in MEMBERS}


def of_width(width: int, members: int) -> dict[str, Any]:
    """Return a case of the full scale."""
    heads, steps = WIDTHS[width]
    return training.case_of(width, members, heads=heads, steps=steps)


def tiny(members: int = 1) -> dict[str, Any]:
    """Return a case that a CPU finishes in a moment."""
    return training.case_of(16, members, 1, 2, 64, batch=8, length=8, steps=2, dtype="float32")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    training.matmul_flops(case["dtype"])  # while there is room beside the stack
    ours = training.stack(case)
    seconds, repeats = training.timed(ours.seconds)
    return training.rates(case, seconds / case["steps"]) | {
        "memory_gb": ours.memory_bytes / 1e9,
        "compile_s": ours.compile_seconds,
        "microbatches": ours.microbatches,
        "repeats": repeats,
    }
