"""Draw Vega-Lite figures by vl-convert, which needs no browser.

Run as a script, it draws the figures that it reads from standard input, in a process beside the one that writes the
page, since vl-convert holds the GIL while it draws. It imports nothing of this package, which would take longer than
drawing.
"""

import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import vl_convert


class Drawing(NamedTuple):
    """A figure to be drawn: its specification, its data as columns by name, the style, and the formats wanted."""

    specification: Mapping[str, Any]
    datasets: Mapping[str, Mapping[str, Sequence[Any]]]
    style: Mapping[str, Any]
    formats: Sequence[str]


def draw(drawing: Drawing) -> dict[str, bytes]:
    """Return the figure's files by format: svg, pdf or png. The same figure gives the same bytes."""
    datasets = {
        name: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for name, columns in drawing.datasets.items()
    }
    spec = {**drawing.specification, "datasets": datasets}
    svg = _numbered(vl_convert.vegalite_to_svg(spec, config=dict(drawing.style)))
    make = {
        "svg": lambda: svg.encode(),
        "pdf": lambda: _in_order(vl_convert.svg_to_pdf(svg)),
        "png": lambda: vl_convert.svg_to_png(svg, scale=2),
    }
    return {ending: make[ending]() for ending in drawing.formats}


def _numbered(svg: str) -> str:
    """Number the ids of clipping paths and gradients from 0 on; vl-convert keeps counting from figure to figure."""
    numbers: dict[str, str] = {}
    return re.sub(r"\b(clip|gradient_)(\d+)\b", lambda m: m[1] + numbers.setdefault(m[0], str(len(numbers))), svg)


def _in_order(pdf: bytes) -> bytes:
    """Sort the resources of each page and group, which vl-convert writes in random order."""
    return re.sub(rb"(?m)(?:^ +/[a-z]+\d+ \d+ 0 R\n){2,}", lambda m: b"".join(sorted(m[0].splitlines(True))), pdf)


if __name__ == "__main__":
    drawings = [Drawing(*fields) for fields in pickle.load(sys.stdin.buffer)]  # noqa: S301 (of the parent process)
    results: list[dict[str, bytes] | str] = []
    for drawing in drawings:
        try:
            results.append(draw(drawing))
        except ValueError as error:  # raised by vl-convert for a chart that it can't draw
            results.append(" ".join(str(error).split()[:40]))
    pickle.dump(results, sys.stdout.buffer)
