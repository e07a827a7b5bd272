"""The report of a sweep: one offline page, figures and tables for papers, from its `AnalysisResults`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from sweeps.report.item import Shown, items, show
from sweeps.report.item import add_section as add_section
from sweeps.report.item import report_item as report_item
from sweeps.report.words import TITLE

if TYPE_CHECKING:
    from sweeps.analysis.results import AnalysisResults

FIGURES, TABLES = "figures", "tables"


def write_all(
    folder: epath.PathLike,
    results: "AnalysisResults",
    facts: Mapping[str, str],
    title: str = TITLE,
    shown: Sequence[Shown] | None = None,
) -> epath.Path:
    """Write `folder`/figures (SVG, PDF), `folder`/tables (CSV, LaTeX) and `folder`/index.html.

    The arguments and the result are those of `sweeps.report.page.write_report`.
    """
    # Altair and jinja2 are slow to import, and every command imports this package.
    from sweeps.report import export, page

    shown = [show(item, results) for item in items()] if shown is None else shown
    with export.write_figures_beside(epath.Path(folder) / FIGURES, shown, ("svg", "pdf")):
        export.write_tables(epath.Path(folder) / TABLES, shown)
        return page.write_report(folder, results, facts, title, shown)


def write_report(
    folder: epath.PathLike, results: "AnalysisResults", facts: Mapping[str, str], title: str = TITLE
) -> epath.Path:
    """Write only `folder`/index.html, with the arguments of `sweeps.report.page.write_report`, and return its path."""
    from sweeps.report import page

    return page.write_report(folder, results, facts, title)
