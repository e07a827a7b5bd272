"""Format numbers for the page, for sentences and for LaTeX tables. A minus is the sign and not a hyphen."""

import math
from typing import Any

import numpy as np
import pandas as pd

MINUS = "\N{MINUS SIGN}"


def number(x: float) -> str:
    """Return a number with two decimals; with three significant digits where that would show too little or too much."""
    text = f"{x:.2f}" if 0.1 <= abs(x) < 1000 or x == 0 else f"{x:.3g}"
    return text.replace("-", MINUS)


def gained(x: float) -> str:
    """Return a number as `number` does, with its sign also where it is a plus."""
    return ("+" if x >= 0 else "") + number(x)


def change(x: float) -> str:
    """Return a difference with its sign, to three significant digits."""
    return f"{x:+.3g}".replace("-", MINUS)


def fine(x: float) -> str:
    """Return a number with three decimals below a tenth, two above."""
    return f"{x:.{3 if abs(x) < 0.1 else 2}f}".replace("-", MINUS)


def signed(x: float, digits: int = 2) -> str:
    """Return a number with `digits` decimals."""
    return f"{x:.{digits}f}".replace("-", MINUS)


def fixed(x: float, digits: int, missing: str) -> str:
    """Return a number with `digits` decimals, without a minus before 0; `missing` for one that isn't finite."""
    if not math.isfinite(x):
        return missing
    text = f"{x:.{digits}f}"
    return text.removeprefix("-") if text.strip("-0.") == "" else text.replace("-", MINUS, 1)


def percent(x: float) -> str:
    """Return a share in whole percent."""
    return f"{100 * x:.0f} %"


def format_p(p: float) -> str:
    """Return a p-value with three decimals and without its leading 0."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def is_missing(value: Any) -> bool:
    """Return whether a cell holds None, NaN or NaT; a list isn't missing."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def format_value(value: Any) -> str:
    """Return a cell's value: whole numbers whole, others to four digits, "" for a missing value."""
    if is_missing(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        x = float(value)
        whole = x.is_integer() and abs(x) < 1e15
        return (f"{x:.0f}" if whole else f"{x:.4g}").replace("-", MINUS)
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return str(value)


def as_json(column: pd.Series) -> list[Any]:
    """Return the values of a column for JSON: whole numbers exactly, others to six digits, null if not finite."""
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_integer_dtype(column):
        return list(column.astype(object).where(column.notna(), None))
    if pd.api.types.is_float_dtype(column):
        value_N = column.to_numpy(dtype=float, na_value=np.nan)
        return [_number(x) if math.isfinite(x) else None for x in value_N.tolist()]
    known = {value: _json_value(value) for value in column.unique()}
    return [known.get(value) for value in column]


def _json_value(value: Any) -> Any:
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.number):
        return _number(float(value)) if math.isfinite(value) else None
    return str(value)


def _number(x: float) -> float:
    return int(x) if x.is_integer() and abs(x) < 1e15 else float(f"{x:.6g}")
