"""What the figures of papers share: size and style, colours by a setting, words for columns, what to say of no data.

Sizes are in inches, those of a column and of a page. Text that comes from a table goes through `plain`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sweeps.report import names
from sweeps.report.words import setting_name
from sweeps.table.columns import as_levels

if TYPE_CHECKING:  # matplotlib is heavy, and the command line imports this package at each command
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sweeps.analysis.results import AnalysisResults

SINGLE, DOUBLE = 3.3, 6.9
LOSS_LABEL = "In-domain loss, nats a token"
# Okabe and Ito's, which the colour-blind tell apart, from the darkest; black is for what has no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
GREY = "#8C8C8C"
MARKERS = "osD^vPX*<>"
MOST_IN_LEGEND = 8
_LONGEST = 40  # characters of a name
_STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 4.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "olmo-jax",  # else the ids in the file are drawn anew each time
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """The figures' style, whatever the user's matplotlibrc says; everything is as before afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def styled(draw: "Callable[[AnalysisResults], Figure]") -> "Callable[[AnalysisResults], Figure]":
    """`draw`, in the figures' style."""

    @functools.wraps(draw)
    def drawn(results: "AnalysisResults") -> "Figure":
        with style():
            return draw(results)

    return drawn


def panels(
    rows: int, columns: int, width: float = SINGLE, height: float = 2.4, **shared: Any
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure of this width and so many panels, each row of this height; belongs to no window and no pyplot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False, **shared)
    return figure, [list(row) for row in axes]


def lacking(why: str) -> "Figure":
    """A figure of one line that says why there is nothing to see."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SINGLE, 0.8))
    figure.text(0.5, 0.5, plain(f"No figure: {why}.", 120), ha="center", va="center", wrap=True)
    return figure


class Levels(NamedTuple):
    """A setting's values in order, each with its colour and its text, and the value of each run by run id."""

    name: str
    by_run: dict[str, Any]
    colour: dict[Any, Any]
    text: dict[Any, str]

    def of(self, run: str) -> Any:
        """The colour of a run."""
        return self.colour.get(self.by_run.get(run), "black")

    def legend(self, of: "Axes | Figure", marker: str = "", **placed: Any) -> None:
        """Writes what the colours mean; of many values, some that lie evenly among them."""
        from matplotlib.lines import Line2D

        if len(self.colour) < 2:
            return
        values = list(self.colour)
        count = min(len(values), MOST_IN_LEGEND)
        shown = [values[i] for i in np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))]
        width = 0.0 if marker else 1.0
        handles = [
            Line2D([], [], color=self.colour[v], marker=marker, linewidth=width, label=self.text[v]) for v in shown
        ]
        of.legend(handles=handles, title=self.name, title_fontsize=7.0, **placed)


def levels(table: pd.DataFrame, column: str) -> Levels:
    """The values of a column of the table, a colour each: along a scale for numbers, else apart."""
    import matplotlib

    if column not in table.columns or "run_id" not in table.columns:
        return Levels("", {}, {}, {})
    first = table.drop_duplicates("run_id")
    values = as_levels(first[column])
    numeric = pd.api.types.is_numeric_dtype(values)
    known = sorted(values.dropna().unique(), key=float if numeric else str)
    scale = matplotlib.colormaps["viridis"]
    along = [scale(0.92 * i / max(len(known) - 1, 1)) for i in range(len(known))]
    apart = [COLOURS[i % len(COLOURS)] for i in range(len(known))]
    colour = dict(zip(known, along if numeric and len(known) > 2 else apart, strict=True))
    text = {value: plain(_value(value)) for value in known}
    return Levels(plain(setting_name(column)), dict(zip(first["run_id"], values, strict=True)), colour, text)


def plain(text: str, longest: int = _LONGEST) -> str:
    """Text from a table as matplotlib shows it: no formula, nothing that XML can't hold, and not too long."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    shown = shown if len(shown) <= longest else f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
    return shown.replace("$", r"\$")


def column_name(column: str) -> str:
    """names.column_name, `plain`."""
    return plain(names.column_name(column))


def loss_name(column: str) -> str:
    """names.loss_name, `plain`."""
    return plain(names.loss_name(column))


def any_name(column: str, losses: Sequence[str]) -> str:
    """names.any_name, `plain`."""
    return plain(names.any_name(column, losses))


def amount(x: float, _: object = None) -> str:
    """A number at a tick: 8B, 64M, 32k, else to four digits."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(x) >= size:
            return f"{x / (1e3 if letter == 'k' else size):.4g}{letter}"
    return f"{x:.4g}"


def log_x(axes: "Axes", x_N: np.ndarray, at_each: bool = False) -> None:
    """Numbers over two octaves, none below 0, along a log scale; ticks where the few values are, if asked for."""
    from matplotlib.ticker import NullFormatter, NullLocator

    x_N = np.unique(x_N[np.isfinite(x_N)])
    if len(x_N) and x_N[0] > 0 and x_N[-1] > 4 * x_N[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(amount)
    if at_each and 0 < len(x_N) <= 6:
        axes.set_xticks(x_N)
        axes.xaxis.set_minor_locator(NullLocator())


def look(place: int) -> dict[str, Any]:
    """Colour and marker of the series at this place, so that each tells it apart."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def values(table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as floats; what isn't a finite number, or not there, NaN."""
    if column not in table.columns:
        return np.full(len(table), np.nan)
    value_N = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(value_N), value_N, np.nan)


def reach(estimate: Any, low: Any, high: Any) -> np.ndarray:
    """Error bars `[2, N]` around estimates; none where an end isn't known."""
    estimate_N, low_N, high_N = (np.asarray(x, dtype=float) for x in (estimate, low, high))
    return np.nan_to_num(np.clip([estimate_N - low_N, high_N - estimate_N], 0, None))


def count(n: int, word: str) -> str:
    """How many, in words."""
    return f"{n} {word}" + ("" if n == 1 else "s")


def _value(value: Any) -> str:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_)
    return amount(float(value)) if number and math.isfinite(value) else str(value)
