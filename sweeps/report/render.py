"""Figures as files and as specifications for the page: Vega-Lite by vl-convert, which needs no browser."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sweeps.report.charts import COLOURS, HOVER
from sweeps.report.item import Figure
from sweeps.report.numbers import as_json

FORMATS = ("svg", "pdf", "png")

# From low to high, legible on white and on near-black.
_RAMP = ["#3a6ebe", "#1c968c", "#d69628", "#cd4655"]

# How figures look, but for the colours of ink and grid, which the page takes from its theme.
STYLE: dict[str, Any] = {
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None, "continuousWidth": 330, "continuousHeight": 240, "discreteHeight": {"step": 16}},
    "axis": {"labelFontSize": 10, "titleFontSize": 11, "titleFontWeight": "normal", "domain": False, "labelLimit": 300},
    "legend": {"labelFontSize": 10, "titleFontSize": 10, "titleFontWeight": "normal", "labelLimit": 300},
    "header": {"labelFontSize": 11, "titleFontSize": 11, "labelFontWeight": "bold"},
    "title": {"fontSize": 12, "anchor": "start", "fontWeight": "bold", "subtitleFontSize": 10},
    "line": {"strokeWidth": 1.2},
    "point": {"size": 45, "filled": True, "opacity": 0.9},
    "rule": {"strokeWidth": 1.2},
    "concat": {"spacing": 24},
    "range": {"ordinal": {"scheme": _RAMP}, "ramp": {"scheme": _RAMP}, "category": COLOURS},
}
_LIGHT = {"axis": {"gridColor": "#e4e7ea", "tickColor": "#c3c9cf"}, "background": "white"}


def files(figure: Figure, formats: Sequence[str] = FORMATS) -> dict[str, bytes]:
    """Return the figure's files by extension. The same figure gives the same bytes."""
    import vl_convert

    style = {**STYLE, **_LIGHT, "axis": STYLE["axis"] | _LIGHT["axis"]}
    spec = _without_hover(figure.specification) | {
        "datasets": {name: rows(frame) for name, frame in figure.data.items()}
    }
    svg = _numbered(vl_convert.vegalite_to_svg(spec, config=style))
    make = {
        "svg": lambda: svg.encode(),
        "pdf": lambda: _in_order(vl_convert.svg_to_pdf(svg)),
        "png": lambda: vl_convert.svg_to_png(svg, scale=2),
    }
    return {ending: make[ending]() for ending in formats}


@functools.cache
def scripts() -> str:
    """Return JavaScript that defines vegaEmbed, which has Vega-Lite in it; a page that has it needs no network."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a frame as a list of rows of JSON values; see `as_json`."""
    columns = {str(name): as_json(frame[name]) for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def columns_of(frame: pd.DataFrame) -> dict[str, Any]:
    """Return a frame by column, smaller than as rows: each a list of values or, if these repeat, levels and codes."""
    return {str(name): _coded(as_json(frame[name])) for name in frame.columns}


def _coded(values: list[Any]) -> list[Any] | dict[str, list[Any]]:
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return {"levels": list(codes), "codes": [codes[x] for x in values]} if 8 * len(codes) < len(values) else values


def _without_hover(spec: dict[str, Any]) -> dict[str, Any]:
    """Leave out the layer of invisible points that is there for tooltips."""
    inner = {"spec": _without_hover(spec["spec"])} if "spec" in spec else {}
    layers = {"layer": [one for one in spec["layer"] if one.get("name") != HOVER]} if "layer" in spec else {}
    return spec | inner | layers


def _numbered(svg: str) -> str:
    """Number the ids of clipping paths and gradients from 0 on; vl-convert counts on from figure to figure."""
    numbers: dict[str, str] = {}
    return re.sub(r"\b(clip|gradient_)(\d+)\b", lambda m: m[1] + numbers.setdefault(m[0], str(len(numbers))), svg)


def _in_order(pdf: bytes) -> bytes:
    """Sort the resources of each page and group, which vl-convert writes in an order of chance."""
    return re.sub(rb"(?m)(?:^ +/[a-z]+\d+ \d+ 0 R\n){2,}", lambda m: b"".join(sorted(m[0].splitlines(True))), pdf)
