"""One offline page of a sweep: what it found in words, then the figures, the statistics and the table behind them.

The page is made from templates/ and from the items that the registry has. Nothing is fetched when it is opened: the
scripts that draw its figures (vega, vega-lite, vega-embed) and the data are in it, and its content security policy
forbids any request.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pandas as pd
from etils import epath

from olmo_jax import files
from sweeps.analysis.results import AnalysisResults
from sweeps.report import cells, charts, render
from sweeps.report.item import Figure, Shown, Table, items, sections, show
from sweeps.report.row_sentences import against_unigram, caveat
from sweeps.report.words import TITLE


def write_report(
    folder: epath.PathLike,
    results: AnalysisResults,
    facts: Mapping[str, str],
    title: str = TITLE,
    shown: Sequence[Shown] | None = None,
) -> epath.Path:
    """Write `folder`/index.html atomically.

    Args:
      folder: folder of the report, created if it doesn't exist.
      results: results of the sweep; see sweeps.analysis.results.
      facts: how the page was made, shown in this order: command, versions, hashes, seconds.
      title: the page's heading.
      shown: the items with what they show; None for all registered ones.

    Returns:
      The path of the page.
    """
    shown = [show(item, results) for item in items()] if shown is None else shown
    by_section = {name: [one for one in shown if one.item.section == name] for name in sections()}
    headings = {
        name: section.heading
        for name, section in sections().items()
        if not section.optional or any(one.content or one.error for one in by_section[name])
    }
    return write_page(
        epath.Path(folder) / "index.html",
        "report.html",
        {one.item.name: one.content for one in shown if isinstance(one.content, Figure)},
        title=title,
        caveat=caveat(results.final),
        against_unigram=against_unigram(results.table),
        headings=headings,
        by_section=by_section,
        facts=facts,
        settings=_settings(results),
    )


def write_page(path: epath.Path, template: str, figures: Mapping[str, Figure], **context: Any) -> epath.Path:
    """Write a page from a template, with its figures' specifications and data by name, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "figures": {name: figure.specification for name, figure in figures.items()},
        "datasets": {name: render.columns_of(frame) for name, frame in _datasets(figures).items()},
        "style": render.STYLE,
        "settings": context.pop("settings", []),
    }
    page = _environment().get_template(template).generate(data=data, scripts=render.scripts(), **context)
    # Encoded piece by piece, because a single string of all of it would take four times the memory of the page.
    return files.write_whole(path, b"".join(p.encode(errors="backslashreplace") for p in page), durable=False)


def live_page(title: str) -> bytes:
    """Return the page that follows a sweep, whose numbers its script asks for; see serve.py."""
    page = _environment().get_template("live.html").render(title=title, style=render.STYLE, scripts=render.scripts())
    return page.encode(errors="backslashreplace")


def _settings(results: AnalysisResults) -> list[str]:
    return list(charts.settings_of(results).values())


def _datasets(figures: Mapping[str, Figure]) -> dict[str, pd.DataFrame]:
    """Return all figures' data by name. Raises ValueError for two that share a name and differ."""
    datasets: dict[str, pd.DataFrame] = {}
    for figure_name, figure in figures.items():
        for name, frame in figure.data.items():
            if not frame.equals(datasets.setdefault(name, frame)):
                raise ValueError(f"figure {figure_name!r} has other data named {name!r} than an earlier figure; rename "
                                 "them")  # fmt: skip
    return datasets


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sweeps.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "exact": cells.exact,
        "interval": cells.interval_text,
        "tested": cells.tested_text,
        "json_in_script": json_in_script,
    }
    environment.tests |= {
        "figure": lambda content: isinstance(content, Figure),
        "table": lambda content: isinstance(content, Table),
    }
    return environment


def json_in_script(data: Any) -> str:
    """Return JSON for a script element: without `<`, so that neither an end tag nor a comment can begin."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
