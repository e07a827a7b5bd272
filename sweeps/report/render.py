"""Figures as files, and their data, style and scripts for the page."""

import functools
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sweeps.report.charts import COLOURS, HOVER
from sweeps.report.item import Figure
from sweeps.report.numbers import as_json

if TYPE_CHECKING:  # vl-convert is slow to import
    from sweeps.report.draw import Drawing

FORMATS = ("svg", "pdf", "png")

# From low to high, legible on white and on near-black.
_RAMP = ["#3a6ebe", "#1c968c", "#d69628", "#cd4655"]

# How figures look, except for the colours of ink and grid, which the page takes from its theme. A single weight of one
# font, since vl-convert writes several to a PDF file in random order.
STYLE: dict[str, Any] = {
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None, "continuousWidth": 330, "continuousHeight": 240, "discreteHeight": {"step": 16}},
    "axis": {"labelFontSize": 10, "titleFontSize": 11, "titleFontWeight": "normal", "domain": False, "labelLimit": 300},
    "legend": {"labelFontSize": 10, "titleFontSize": 10, "titleFontWeight": "normal", "labelLimit": 300},
    "header": {"labelFontSize": 12, "titleFontSize": 12, "labelFontWeight": "normal", "titleFontWeight": "normal"},
    "title": {"fontSize": 12, "anchor": "start", "fontWeight": "normal", "subtitleFontSize": 10},
    "line": {"strokeWidth": 1.2},
    "point": {"size": 45, "filled": True, "opacity": 0.9},
    "rule": {"strokeWidth": 1.2},
    "concat": {"spacing": 24},
    "range": {"ordinal": {"scheme": _RAMP}, "ramp": {"scheme": _RAMP}, "category": COLOURS},
}
_LIGHT = {"axis": {"gridColor": "#e4e7ea", "tickColor": "#c3c9cf"}, "background": "white"}


def files(figure: Figure, formats: Sequence[str] = FORMATS) -> dict[str, bytes]:
    """Return the figure's files by format, drawn in this process."""
    from sweeps.report.draw import draw

    return draw(_drawing(figure, formats))


def start(figures: Sequence[Figure], formats: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start a process that draws the figures; `finish` waits for it."""
    drawings = [tuple(_drawing(figure, formats)) for figure in figures]
    # -P: a module beside the script has the name of one of the standard library's.
    command = [sys.executable, "-P", str(Path(__file__).with_name("draw.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    with process.stdin:  # the process reads all of it before it draws, so this doesn't wait
        pickle.dump(drawings, process.stdin)
    return process


def finish(process: "subprocess.Popen[bytes]") -> list[dict[str, bytes] | str]:
    """Return each figure's files by format, or why it can't be drawn. Raises RuntimeError if the process failed."""
    assert process.stdout is not None
    content = process.stdout.read()
    if code := process.wait():
        raise RuntimeError(f"drawing the figures failed with exit code {code}; its error is above")
    drawn: list[dict[str, bytes] | str] = pickle.loads(content)  # noqa: S301 (of our own child process)
    return drawn


def _drawing(figure: Figure, formats: Sequence[str]) -> "Drawing":
    from sweeps.report.draw import Drawing

    style = {**STYLE, **_LIGHT, "axis": STYLE["axis"] | _LIGHT["axis"]}
    columns = {
        name: {str(column): as_json(frame[column]) for column in frame.columns} for name, frame in figure.data.items()
    }
    return Drawing(_without_hover(figure.specification), columns, style, formats)


@functools.cache
def scripts() -> str:
    """Return JavaScript that defines vegaEmbed, which includes Vega-Lite; a page that contains it needs no network."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def columns_of(frame: pd.DataFrame) -> dict[str, Any]:
    """Return a frame by column: each a list of JSON values or, if these repeat, levels and codes."""
    return {str(name): _coded(as_json(frame[name])) for name in frame.columns}


def _coded(values: list[Any]) -> list[Any] | dict[str, list[Any]]:
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return {"levels": list(codes), "codes": [codes[x] for x in values]} if 8 * len(codes) < len(values) else values


def _without_hover(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the specification without the layers of invisible points, which are there for tooltips."""
    inner = {"spec": _without_hover(spec["spec"])} if "spec" in spec else {}
    layers = {"layer": [one for one in spec["layer"] if one.get("name") != HOVER]} if "layer" in spec else {}
    return spec | inner | layers
