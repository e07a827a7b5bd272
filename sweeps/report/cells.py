"""Cells of the report's tables."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sweeps.report.item import Cell
from sweeps.report.numbers import fixed, format_p, format_value, is_missing, signed


def cell(value: Any, text: str | None = None, kind: str = "") -> Cell:
    """Return a cell of a value, by which the page sorts if it is a number; it shows `text`, if given."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and not is_missing(value)
    return Cell(format_value(value) if text is None else text, value if is_number else None, kind)


def estimate(
    value: float,
    low: float,
    high: float,
    digits: int = 2,
    tested: tuple[str, float] | None = None,
    details: Sequence[str] = (),
) -> Cell:
    """Return a cell of an estimate with its interval; `tested` is "p" or "q" with its value. Empty for NaN."""
    if math.isnan(value):
        return Cell("")
    known = math.isfinite(low) and math.isfinite(high)
    ends = {"low": float(low), "high": float(high)} if known else {}
    tested = tested if tested and not math.isnan(tested[1]) else None
    return Cell(
        signed(value, digits), float(value), "estimate", **ends, tested=tested, details=tuple(details), digits=digits
    )


def interval_text(cell: Cell) -> str:
    """Return the interval as the page shows it."""
    return (
        ""
        if cell.low is None or cell.high is None
        else f"{signed(cell.low, cell.digits)} to {signed(cell.high, cell.digits)}"
    )


def tested_text(cell: Cell) -> str:
    return f"{cell.tested[0]} {format_p(cell.tested[1])}" if cell.tested else ""


def exact(value: float) -> str:
    """Return a number with all its digits, as scripts and CSV read it."""
    return str(value) if isinstance(value, int | np.integer) else repr(float(value)).replace("inf", "Infinity")


def rounded(cell: Cell) -> str:
    """Return an estimate for a paper, `0.42 (0.31 to 0.53)`.

    It shows two significant digits of the interval's width, with 2 to 6 decimals.
    """
    if cell.kind != "estimate":
        return cell.text or "--"
    low, high = (math.nan if end is None else end for end in (cell.low, cell.high))
    value, width = math.nan if cell.value is None else cell.value, high - low
    digits = 2 - math.ceil(math.log10(width)) if math.isfinite(width) and width > 0 else 2
    digits = min(max(digits, 2), 6)
    shown = fixed(value, digits, "--")
    if not math.isfinite(width):
        return shown
    return f"{shown} ({fixed(low, digits, '--')} to {fixed(high, digits, '--')})"
