"""The page's table of results, and how the page was made."""

from collections.abc import Mapping

import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report.html import escape, section, sortable_table, value_cell
from sweeps.report.numbers import format_value
from sweeps.report.words import setting_name
from sweeps.table.columns import as_levels

# With more rows or cells than this only final rows stand in the page; all are in results.csv and results.parquet.
MAX_TABLE_ROWS = 500
MAX_TABLE_CELLS = 50_000


def results_section(results: AnalysisResults) -> str:
    """Return the table, one row per run and checkpoint, with the differing settings first, the others in a list."""
    table, settings = results.table, results.settings
    config = [c for c in table.columns if c.startswith("config.")]
    seeds = [c for c in config if c.endswith("seed") and as_levels(table[c]).nunique() > 1]
    columns = ["run_id", *settings, *seeds, *(c for c in table.columns if c not in config and c != "run_id")]
    columns = [c for c in columns if c in table.columns]
    fits = len(table) <= min(MAX_TABLE_ROWS, MAX_TABLE_CELLS // max(len(columns), 1))
    rows = table if fits else table[table["final"].fillna(False).astype(bool)]
    body = ["".join(value_cell(row[c], "name" if c == "run_id" else "") for c in columns) for _, row in rows.iterrows()]
    not_final = [not bool(f) for f in rows["final"].fillna(False)]
    about = (
        "" if len(rows) == len(table) else f"<p>Final rows; all {len(table)} are in results.csv beside the page.</p>"
    )
    if any(not_final) and not all(not_final):
        about += '<div class="controls"><label><input type="checkbox" id="only-final"> final rows only</label></div>'
    drawn = sortable_table(
        "table",
        "Results, one row a run and checkpoint",
        [_short(c) for c in columns],
        body,
        classes=["not-final" if mark else "" for mark in not_final],
        runs=[str(run) for run in rows["run_id"]] if "run_id" in rows else (),
        columns=columns,
    )
    return section("results", "Results", about + drawn + _equal(table, [*settings, *seeds]))


def facts_section(facts: Mapping[str, str]) -> str:
    """Return how the page was made: command, versions, hashes, seconds."""
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return section("made", "How it was made", f"<dl>{items}</dl>" if items else "<p>Not recorded.</p>")


def _equal(table: pd.DataFrame, differing: list[str]) -> str:
    same = [c for c in table.columns if c.startswith("config.") and c not in differing and len(table)]
    items = "".join(
        f"<dt>{escape(c.removeprefix('config.'))}</dt><dd>{escape(format_value(table[c].iloc[0])) or '&nbsp;'}</dd>"
        for c in same
        if as_levels(table[c]).nunique() <= 1
    )
    return f"<details><summary>Settings that are the same in all runs</summary><dl>{items}</dl></details>"


def _short(column: str) -> str:
    return setting_name(column) if column.startswith("config.") else column
