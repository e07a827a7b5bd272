"""Pieces of an offline HTML page: the document around sections, tables that sort, cells.

Everything that comes from a table or a configuration is escaped here.
"""

import html
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.offline
from etils import epath

from olmo_jax import files
from sweeps.report.numbers import format_p, format_value, is_missing, signed

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_whole(path: epath.PathLike, content: str | bytes) -> epath.Path:
    """Write a file atomically, and the folders above it. Returns its path."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return files.write_whole(path, content, durable=False)


def template(name: str) -> str:
    """Return the text of a file of templates/."""
    return (importlib.resources.files("sweeps.report") / "templates" / name).read_text(encoding="utf-8")


def document(title: str, sections: Sequence[str], data: Mapping[str, Any], scripts: Sequence[str]) -> bytes:
    """A page of these sections in UTF-8 that asks for nothing: report.css, plotly.js, the scripts and `data` are in it.

    Args:
      title: of the window. sections: HTML, already escaped.
      data: what the scripts read, as JSON in the element `data`.
      scripts: their text, run in this order.
    """
    # Encoded piece by piece, for one text of all of it takes four times the memory of the page.
    return b"\n".join(
        piece.encode(errors="backslashreplace")
        for piece in (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{template('report.css')}</style>",
            "</head>",
            "<body>",
            "<main>",
            *sections,
            "</main>",
            f'<script type="application/json" id="data">{json_in_script(data)}</script>',
            "<script>window.PlotlyConfig = {MathJaxConfig: 'local'};</script>",
            f'<script id="plotly">{plotly.offline.get_plotlyjs()}</script>',
            *(f"<script>\n{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        )
    )


def section(name: str, heading: str, body: str) -> str:
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{heading}</h2>\n{body}\n</section>'


def sortable_table(
    name: str,
    label: str,
    heads: Sequence[str],
    rows: Sequence[str],
    classes: Sequence[str] = (),
    runs: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> str:
    """A table that tables.js sorts by the button in each header and gives as CSV.

    Args:
      name: of the element, and of the file that it is downloaded as. label: what it is, for those who can't see it.
      heads: text of the headers. rows: their cells, already written.
      classes: of each row; none for none. runs: the run that each row is of, for the page's filters.
      columns: names of the columns in the file, where they are others than the headers.
    """
    head = "".join(
        f'<th scope="col" aria-sort="none" data-column="{escape(column)}">'
        f'<button type="button">{escape(h)}</button></th>'
        for h, column in zip(heads, columns or heads, strict=True)
    )
    marks = [f' class="{c}"' if c else "" for c in classes] or [""] * len(rows)
    of_runs = [f' data-run="{escape(run)}"' for run in runs] or [""] * len(rows)
    body = "\n".join(f"<tr{m}{r}>{row}</tr>" for m, r, row in zip(marks, of_runs, rows, strict=True))
    return f"""<p class="download"><button type="button" data-table="{name}">Download as CSV</button></p>
<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">
<table class="sortable" id="{name}">
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>"""


def estimate_cell(
    estimate: float, low: float, high: float, tested: tuple[str, float] | None, more: Sequence[str], digits: int = 2
) -> str:
    """Return an estimate with its interval, coloured by strength; `tested` is p or q with its value, `more` follows."""
    if math.isnan(estimate):
        return cell("")
    text = f"<b>{signed(estimate, digits)}</b>"
    if tested and not math.isnan(tested[1]):
        text += f" <i>{tested[0]} {format_p(tested[1])}</i>"
    if not math.isnan(low):
        text += f" <span>{signed(low, digits)} to {signed(high, digits)}</span>"
    text += "".join(f" <span>{escape(words)}</span>" for words in more)
    sign = "negative" if estimate < 0 else "positive"
    strength = f"{min(abs(estimate), 1) * 0.5:.2f}"
    told = {"value": estimate, "low": low, "high": high} | ({tested[0]: tested[1]} if tested else {})
    data = "".join(f' data-{name}="{_as_number(x)}"' for name, x in told.items() if not math.isnan(x))
    return f'<td class="estimate {sign}" style="--strength: {strength}"{data}>{text}</td>'


def value_cell(value: Any, kind: str = "") -> str:
    return cell(value, format_value(value), kind)


def cell(value: Any, shown: str | None = None, kind: str = "") -> str:
    """Return a cell; numbers carry their full value for sorting, and text is sorted as shown."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and not is_missing(value)
    data = f' data-value="{_as_number(value)}"' if number else ""
    classes = " ".join(filter(None, [kind, "number" if number else ""]))
    style = f' class="{classes}"' if classes else ""
    text = escape(format_value(value) if shown is None else shown)
    return f"<td{style}{data}>{text.replace('/', '/<wbr>') if kind == 'name' else text}</td>"


def _as_number(value: Any) -> str:
    """Return a number with all its digits, as scripts and CSV read it."""
    if isinstance(value, int | np.integer):
        return str(value)
    return repr(float(value)).replace("inf", "Infinity")


def options(options: Iterable[str], chosen: str) -> str:
    return "".join(f"<option{' selected' if o == chosen else ''}>{escape(o)}</option>" for o in options)


def json_in_script(data: Any) -> str:
    """Return JSON for a script element: without `<`, so that neither an end tag nor a comment can begin."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def escape(value: str) -> str:
    return html.escape(str(value), quote=True)
