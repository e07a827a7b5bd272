"""The table of results, and the settings that all runs share."""

import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report.cells import cell
from sweeps.report.item import NothingToShow, Table, report_item
from sweeps.report.numbers import format_value
from sweeps.table.columns import as_levels

# With more rows or cells than this, only final rows are on the page; all are in results.csv and results.parquet.
MAX_TABLE_ROWS = 500
MAX_TABLE_CELLS = 50_000


@report_item(section="results", order=10)
def results_table(results: AnalysisResults) -> Table:
    """Every number of the sweep, one row per run and checkpoint, with the settings that differ first."""
    table = results.table
    config, seeds = _settings(table)
    columns = ["run_id", *results.settings, *seeds, *(c for c in table.columns if c not in config and c != "run_id")]
    columns = [c for c in columns if c in table.columns]
    fits = len(table) <= min(MAX_TABLE_ROWS, MAX_TABLE_CELLS // max(len(columns), 1))
    shown = table if fits else table[table["final"].fillna(False).astype(bool)]
    if shown.empty:
        raise NothingToShow("no run has a final row" if len(table) else "no run has a checkpoint")
    rows = [
        [cell(value, kind="name" if c == "run_id" else "") for c, value in zip(columns, row, strict=True)]
        for row in shown[columns].itertuples(index=False, name=None)
    ]
    note = "" if len(shown) == len(table) else f"Final rows; all {len(table)} are in results.csv beside the page."
    return Table(
        "Results, one row per run and checkpoint",
        columns,
        rows,
        shown[columns],
        runs=[str(run) for run in shown["run_id"]],
        classes=["" if bool(final) else "not-final" for final in shown["final"].fillna(False)],
        note=note,
        for_papers=False,
    )


@report_item(section="results", order=20)
def constant_settings(results: AnalysisResults) -> Table:
    """The settings that are the same in all runs."""
    table = results.table
    config, seeds = _settings(table)
    same = [c for c in config if c not in (*results.settings, *seeds) and as_levels(table[c]).nunique() <= 1]
    if table.empty or not same:
        raise NothingToShow("no setting is the same in all runs")
    rows = [[cell(c.removeprefix("config."), kind="name"), cell(format_value(table[c].iloc[0]))] for c in same]
    frame = pd.DataFrame([[c.text for c in row] for row in rows], columns=["setting", "value"])
    return Table(
        "Settings that are the same in all runs", ["setting", "value"], rows, frame, folded=True, for_papers=False
    )


def _settings(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the columns of settings, and those of the seeds that differ."""
    config = [c for c in table.columns if c.startswith("config.")]
    return config, [c for c in config if c.endswith("seed") and as_levels(table[c]).nunique() > 1]
