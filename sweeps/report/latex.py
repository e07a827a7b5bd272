"""The tables of a sweep for papers: each as NAME.csv, with every digit, and NAME.tex, a LaTeX tabular to be included.

The .tex needs the package booktabs and nothing else; its numbers are rounded to what their intervals support.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from etils import epath

from sweeps.report.html import write_whole
from sweeps.report.names import any_name, column_name, loss_name
from sweeps.report.numbers import fixed
from sweeps.report.words import setting_name
from sweeps.table.columns import loss_columns

if TYPE_CHECKING:
    from sweeps.analysis.results import AnalysisResults

_METHODS = {
    "raw": "raw",
    "partial rank": "partial, ranks",
    "partial factor": "partial, factors",
    "incremental R2": "gain in R2",
    "mixed effects": "mixed effects",
}
_KEYS = ("metric", "target", "method")
_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after \\ it would begin an argument
        "]": "{]}",
        "*": "{*}",  # likewise
    }
    | {character: f"\\{character}" for character in "_%&#${}"}
)
_MISSING = "--"


def write_tables(folder: epath.PathLike, results: "AnalysisResults") -> list[epath.Path]:
    """Writes associations, variance, prediction, early and saturation as .csv and .tex, each whole or not at all.

    Args:
      folder: made if it isn't there.

    Returns:
      The paths, the .csv before the .tex of each.
    """
    tables = {
        "associations": _associations(results.associations),
        "variance": _variance(results.variance),
        "prediction": _scores(results.prediction, ["target", "model", "features"]),
        "early": _scores(results.early, ["target", "share", "features"]),
        "saturation": _quadrants(results.saturation.quadrants),
    }
    paths = []
    for name, (frame, tex) in tables.items():
        paths.append(write_whole(epath.Path(folder) / f"{name}.csv", frame.to_csv(index=False)))
        paths.append(write_whole(epath.Path(folder) / f"{name}.tex", tex))
    return paths


def tabular(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int, comment: str = "") -> str:
    """A LaTeX tabular in the style of booktabs.

    Args:
      heads, rows: cells as plain text, escaped here; `number` and `interval` give those of numbers.
      text_columns: so many columns are set flush left, the others flush right.
      comment: what it is, in a comment above.
    """
    spec = "l" * text_columns + "r" * (len(heads) - text_columns)
    lines = [_row(heads), r"\midrule", *(_row(row) for row in rows)]
    about = [f"% {' '.join(comment.split())}"] if comment else []
    return "\n".join(
        [*about, rf"\begin{{tabular}}{{{spec}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", ""]
    )


def escape(text: str) -> str:
    """Escape a text for LaTeX; characters that can't be printed become spaces."""
    return "".join(c if c.isprintable() else " " for c in str(text)).translate(_ESCAPES)


def interval(estimate: float, low: float, high: float) -> str:
    """`0.42 (0.31 to 0.53)`: two digits of the interval's width, but two decimals at least; `--` for no estimate."""
    if not math.isfinite(estimate):
        return _MISSING
    width = high - low
    digits = 2 - math.ceil(math.log10(width)) if math.isfinite(width) and width > 0 else 2
    digits = min(max(digits, 2), 6)
    told = number(estimate, digits)
    known = math.isfinite(low) and math.isfinite(high)
    return f"{told} ({number(low, digits)} to {number(high, digits)})" if known else told


def number(x: float, digits: int) -> str:
    """Return a number with so many decimals, as `numbers.fixed` does."""
    return fixed(x, digits, _MISSING)


def _associations(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return one row per (metric, target), with the methods side by side."""
    methods = [m for m in _METHODS if (frame["method"] == m).any()]
    methods += [m for m in dict.fromkeys(frame["method"]) if m not in _METHODS]
    pairs = frame[["metric", "target"]].drop_duplicates()
    wide = pairs
    for method in methods:
        of = frame[frame["method"] == method].drop_duplicates(["metric", "target"]).drop(columns="method")
        of = of.rename(columns={name: f"{method} {name}" for name in of.columns if name not in _KEYS})
        wide = wide.merge(of, on=["metric", "target"], how="left")
    heads = ["metric", "loss", "n", *(_METHODS.get(m, m) for m in methods)]
    rows = [
        [
            column_name(row["metric"]),
            loss_name(row["target"]),
            _whole(max((row[f"{m} n"] for m in methods), default=math.nan)),
            *(interval(*(row[f"{m} {name}"] for name in ("estimate", "low", "high"))) for m in methods),
        ]
        for row in wide.to_dict("records")
    ]
    comment = "Each metric against each loss, with 95 % intervals, clustered by configuration"
    return wide, tabular(heads, rows, 2, comment)


def _variance(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the tables: the .csv has one row per (column, setting), the .tex one per column, settings side by side."""
    settings = list(dict.fromkeys(frame["setting"]))
    columns = list(dict.fromkeys(frame["column"]))
    losses = loss_columns(pd.DataFrame(columns=columns))
    told = {(row["column"], row["setting"]): row for row in frame.to_dict("records")}
    rows = []
    for column in columns:
        cells = [told.get((column, setting)) for setting in settings]
        shares = [interval(of["share"], of["low"], of["high"]) if of else _MISSING for of in cells]
        rows.append([any_name(column, losses), _whole(max(of["n"] for of in cells if of)), *shares])
    heads = ["column", "n", *(setting_name(setting) for setting in settings)]
    return frame, tabular(heads, rows, 1, "Share of variance over runs by setting, with 95 % intervals")


def _scores(frame: pd.DataFrame, keys: list[str]) -> tuple[pd.DataFrame, str]:
    rows = [
        [
            *(loss_name(row[key]) if key == "target" else _text(row[key]) for key in keys),
            row["note"] if isinstance(row["note"], str) else "",
            _whole(row["n"]),
            interval(row["r2"], row["low"], row["high"]),
        ]
        for row in frame.to_dict("records")
    ]
    return frame, tabular([*keys, "note", "n", "R2"], rows, len(keys) + 1, "R2 out of fold, with 95 % intervals")


def _quadrants(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    frame = frame.assign(examples=[", ".join(map(str, runs)) for runs in frame["examples"]])
    rows = [
        [
            str(row["rank"]),
            "yes" if row["degraded"] else "no",
            str(row["examples"]),
            _whole(row["runs"]),
            _whole(row["configurations"]),
        ]
        for row in frame.to_dict("records")
    ]
    heads = ["rank", "degraded", "examples", "runs", "configurations"]
    return frame, tabular(heads, rows, 3, "Runs by rank, and by whether the loss rose after its best")


def _row(cells: Sequence[str]) -> str:
    return " & ".join(escape(cell).replace("\u2212", "$-$") for cell in cells) + r" \\"


def _whole(x: Any) -> str:
    return f"{float(x):.0f}" if math.isfinite(float(x)) else _MISSING


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
