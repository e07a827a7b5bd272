"""The report of a sweep: one offline page, figures and tables for papers, from its `AnalysisResults`."""

from collections.abc import Mapping

from etils import epath

from sweeps.analysis.results import AnalysisResults
from sweeps.report.page import TITLE, write_report

__all__ = ["write_all", "write_report"]

FIGURES, TABLES = "figures", "tables"


def write_all(
    folder: epath.PathLike, results: AnalysisResults, facts: Mapping[str, str], title: str = TITLE
) -> epath.Path:
    """Writes `folder`/figures (SVG, PDF), `folder`/tables (CSV, LaTeX) and, last, `folder`/index.html, its result.

    Arguments as `write_report`.
    """
    # matplotlib is heavy, and the command line imports this package at each command.
    from sweeps.report.figures import write_figures
    from sweeps.report.latex import write_tables

    write_figures(epath.Path(folder) / FIGURES, results)
    write_tables(epath.Path(folder) / TABLES, results)
    return write_report(folder, results, facts, title)
