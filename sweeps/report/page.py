"""One offline page of a sweep: what it found in words, then the curves, the correlations and the table behind them.

The page is HTML written here and styled by report.css. report.js sorts the tables and draws the figures, from the data
that lie in the page as JSON. Nothing is fetched when it is opened: plotly.js is inlined, and the page's own policy
forbids it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from sweeps import analysis
from sweeps.report import findings
from sweeps.report.curves import by_target, curve_data, target_name, to_json
from sweeps.report.html import (
    cell,
    document,
    escape,
    estimate_cell,
    format_value,
    is_missing,
    options,
    section,
    sortable_table,
    value_cell,
    write_whole,
)

# With more rows or cells than this only final rows stand in the page; all are in results.parquet.
MAX_TABLE_ROWS = 500
MAX_TABLE_CELLS = 50_000
# So many targets of the probe show their correlations at once, the others when asked.
OPEN_TARGETS = 3
SCRIPTS = ("tables.js", "report.js")


def write_report(
    path_dir: epath.PathLike,
    table: pd.DataFrame,
    curves: Mapping[str, pd.DataFrame],
    facts: Mapping[str, str],
    title: str = "Geometry, performance and training",
) -> epath.Path:
    """Writes `path_dir`/index.html, whole or not at all.

    Args:
      path_dir: folder of the report, made if it isn't there.
      table: one row a (run, checkpoint); see sweeps.table.
      curves: metrics.jsonl of each run, by run id; geometry is NaN but at probe steps. A run may be lacking.
      facts: how the page was made, shown in this order: command, versions, hashes, seconds.
      title: the page's heading.

    Returns:
      The path of the page.
    """
    return write_whole(epath.Path(path_dir) / "index.html", _page(table, curves, facts, title))


def _page(table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], facts: Mapping[str, str], title: str) -> str:
    final = analysis.final_rows(table).rows
    settings = analysis.controls_of(table)
    data = {
        "runs": _runs(table, settings),
        "settings": [{"key": c, "name": findings.setting_name(c)} for c in settings],
        **curve_data(curves),
        "final": _final(final),
        "metrics": analysis.geometry_columns(table),
        "losses": analysis.loss_columns(table),
        "primary": analysis.PRIMARY_PAIR,
    }
    sections = [
        _summary(table, title),
        _curves_section(data),
        _scatter_section(data),
        _correlations_section(analysis.correlations(table)),
        _table_section(table, settings),
        _facts_section(facts),
    ]
    return document(title, sections, data, SCRIPTS)


# Sections.


def _summary(table: pd.DataFrame, title: str) -> str:
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in findings.findings(table))
    return f"""<header>
<h1>{escape(title)}</h1>
<p class="caveat">{escape(findings.caveat(table))}</p>
</header>
<section aria-labelledby="findings">
<h2 id="findings">Findings</h2>
<ol class="findings">
{items}
</ol>
<p class="unigram">{escape(findings.against_unigram(table))}</p>
</section>"""


def _curves_section(data: dict[str, Any]) -> str:
    if not data["curves"]:
        return section("training", "Over training", "<p>No run has written metrics yet.</p>")
    targets = "".join(f'<option value="{escape(t["key"])}">{escape(t["name"])}</option>' for t in data["targets"])
    choice = f'<label>Geometry of <select id="target">{targets}</select></label>\n' if targets else ""
    points = data["points"]
    return section(
        "training",
        "Over training",
        f"""<div class="controls">
{choice}<label>Colour by <select id="colour"></select></label>
<label>Against <select id="against"><option value="tokens">tokens</option><option value="step">steps</option></select>
</label>
</div>
<ul class="legend" id="legend"></ul>
<div class="panels" id="panels"></div>
<p class="note" id="counts"></p>
<p class="note">A run's loss is drawn by at most {points["loss"]} points, a metric by at most {points["geometry"]}, each
the mean of its neighbours. Geometry is measured at probe steps. Gauge-fixed takes away what no prediction depends on. A
band, where there is one, is the standard deviation over disjoint probe sets, up and down.</p>""",
    )


def _scatter_section(data: dict[str, Any]) -> str:
    lacking = [what for what, names in (("geometry metric", "metrics"), ("loss", "losses")) if not data[names]]
    if lacking or not data["final"]["run"]:
        why = f"the table has no {' and no '.join(lacking)}" if lacking else "no run has a final row"
        return section("scatter", "Loss against geometry", f"<p>No figure: {why}.</p>")
    metrics = "".join(
        f'<optgroup label="{escape(target_name(target))}">{options(columns, data["primary"][0])}</optgroup>'
        for target, columns in by_target(data["metrics"]).items()
    )
    return section(
        "scatter",
        "Loss against geometry",
        f"""<div class="controls">
<label>Across <select id="x">{metrics}</select></label>
<label>Up <select id="y">{options(data["losses"], data["primary"][1])}</select></label>
</div>
<ul class="legend"></ul>
<div class="figure" id="figure-scatter"></div>
<p class="note">Final rows, one point a run, coloured as chosen above. Point at a run for its settings.</p>""",
    )


def _correlations_section(correlations: pd.DataFrame) -> str:
    heads = ["metric", "loss", "n", "raw \N{GREEK SMALL LETTER RHO}", "partial, ranks", "partial, factors", "note"]
    pairs: dict[tuple[str, str], list[Any]] = {}
    for row in correlations.itertuples(index=False):
        pairs.setdefault((row.metric, row.target), []).append(row)
    rows: dict[str, list[str]] = {}
    for (metric, loss), forms in pairs.items():
        notes = "; ".join(dict.fromkeys(form.note for form in forms if form.note))
        cells = [cell(metric, metric, "name"), cell(loss, loss, "name"), cell(int(forms[0].n))]
        cells += [estimate_cell(form) for form in forms] + [cell(notes, notes, "notes")]
        rows.setdefault(analysis.target_of(metric), []).append("".join(cells))
    if not rows:
        return section("correlation", "Correlations", "<p>No pair to correlate.</p>")
    left_out = int(correlations["left_out"].max())
    about = f"""<p class="note">Spearman's rank correlation with its 95 % interval and p-value, over final rows,
clustered by configuration; {left_out or "no"} run{"" if left_out == 1 else "s"} diverged or unfinished and left out.
Partial: given every setting that varies, as ranks (misled by a setting with a U-shaped effect) and as factors. The
first row is the pair declared beforehand; the p-values of all others are not corrected for their number.</p>"""
    groups = [
        f"<details{' open' if i < OPEN_TARGETS else ''}><summary>{escape(target_name(target))}</summary>\n"
        + sortable_table(f"correlations-{i}", f"Correlations of loss and {target_name(target)}", heads, body)
        + "\n</details>"
        for i, (target, body) in enumerate(rows.items())
    ]
    return section("correlation", "Correlations", "\n".join([about, *groups]))


def _table_section(table: pd.DataFrame, settings: list[str]) -> str:
    config = [c for c in table.columns if c.startswith("config.")]
    seeds = [c for c in config if c.endswith("seed") and analysis.as_levels(table[c]).nunique() > 1]
    columns = ["run_id", *settings, *seeds, *(c for c in table.columns if c not in config and c != "run_id")]
    columns = [c for c in columns if c in table.columns]
    fits = len(table) <= min(MAX_TABLE_ROWS, MAX_TABLE_CELLS // max(len(columns), 1))
    rows = table if fits else table[table["final"].fillna(False).astype(bool)]
    body = ["".join(value_cell(row[c], "name" if c == "run_id" else "") for c in columns) for _, row in rows.iterrows()]
    only_final = [not bool(f) for f in rows["final"].fillna(False)]
    about = "" if len(rows) == len(table) else f"<p>Final rows; all {len(table)} are in results.parquet.</p>"
    if any(only_final) and not all(only_final):
        about += '<div class="controls"><label><input type="checkbox" id="only-final"> final rows only</label></div>'
    same = [c for c in config if c not in settings and c not in seeds and len(table)]
    equal = "".join(
        f"<dt>{escape(c.removeprefix('config.'))}</dt><dd>{escape(format_value(table[c].iloc[0])) or '&nbsp;'}</dd>"
        for c in same
        if analysis.as_levels(table[c]).nunique() <= 1
    )
    return section(
        "results",
        "Results",
        about
        + sortable_table(
            "table", "Results, one row a run and checkpoint", [_short(c) for c in columns], body, only_final
        )
        + f"<details><summary>Settings that are the same in all runs</summary><dl>{equal}</dl></details>",
    )


def _facts_section(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return section("made", "How it was made", f"<dl>{items}</dl>" if items else "<p>Not recorded.</p>")


# Data for report.js.


def _runs(table: pd.DataFrame, settings: list[str]) -> dict[str, Any]:
    """Each run's settings as [value to order by, text], and where it diverged."""
    first = table.drop_duplicates("run_id")
    diverged = table.groupby("run_id")["diverged_at"].max() if len(table) else {}
    return {
        str(row["run_id"]): {
            "settings": {c: [_plain(row[c]), format_value(row[c]) or "missing"] for c in settings},
            "diverged_at": _plain(diverged[row["run_id"]]),
        }
        for _, row in first.iterrows()
    }


def _final(final: pd.DataFrame) -> dict[str, Any]:
    columns = analysis.geometry_columns(final) + analysis.loss_columns(final)
    values = {c: to_json(pd.to_numeric(final[c], errors="coerce").to_numpy(dtype=float)) for c in columns}
    return {"run": [str(r) for r in final["run_id"]], "values": values}


def _plain(value: Any) -> str | float | bool | None:
    """The value as JSON has it."""
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.number):
        return float(value) if math.isfinite(value) else str(value)
    return str(value)


def _short(column: str) -> str:
    return findings.setting_name(column) if column.startswith("config.") else column
