"""The page's tables of statistics: associations, saturation's four cases, shares of variance, predictions."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.analysis.saturation import Saturation
from sweeps.report.curves import metric_name, target_name
from sweeps.report.html import cell, escape, estimate_cell, section, sortable_table
from sweeps.report.numbers import signed
from sweeps.report.words import counted, describe, setting_name
from sweeps.table.columns import PRIMARY_PAIR, target_of

# So many targets of the probe show their correlations at once, the others when asked.
OPEN_TARGETS = 1
METHODS = {
    "raw": "raw \N{GREEK SMALL LETTER RHO}",
    "partial rank": "partial, ranks",
    "partial factor": "partial, factors",
    "incremental R2": "\N{GREEK CAPITAL LETTER DELTA}R\N{SUPERSCRIPT TWO}",
    "mixed effects": "mixed model",
}


def correlation_section(results: AnalysisResults) -> str:
    """The matrix of rank correlations, and every association with its interval in a table a target."""
    associations = results.associations
    if associations.empty:
        return section("correlation", "Correlations", "<p>No pair to correlate.</p>")
    tables = [
        f"<details{' open' if i < OPEN_TARGETS else ''}><summary>{escape(target_name(target))}</summary>\n"
        + _associations_table(f"correlations-{i}", target, of_target)
        + "\n</details>"
        for i, (target, of_target) in enumerate(associations.groupby(associations["metric"].map(target_of), sort=False))
    ]
    return section("correlation", "Correlations", "\n".join([_about(results), _MATRIX, *tables]))


_MATRIX = """<div class="controls">
<label>Geometry of <select id="matrix-of"></select></label>
<label>Partial: settings as <select id="matrix-form"><option value="partial factor">factors</option>
<option value="partial rank">ranks</option></select></label>
</div>
<div class="pair"><div class="figure matrix" id="figure-matrix-raw"></div>
<div class="figure matrix" id="figure-matrix-partial"></div></div>
<p class="note">Spearman's rank correlation of each metric with each loss, left raw, right given every setting that
varies. A dot marks those with q under .05.</p>"""


def _about(results: AnalysisResults) -> str:
    left_out = int(results.associations["left_out"].max())
    tested = int(results.associations["q_value"].notna().sum())
    again = " Where runs diverged, the value with their last rows in stands behind." if results.final.diverged else ""
    return f"""<p class="note">Over final rows, clustered by configuration; {left_out or "no"}
run{"" if left_out == 1 else "s"} diverged or unfinished and left out.{again} \N{GREEK SMALL LETTER RHO} is Spearman's,
with its 95 % interval. Partial: given every setting that varies, as ranks (misled by a setting with a U-shaped effect)
and as factors. \N{GREEK CAPITAL LETTER DELTA}R\N{SUPERSCRIPT TWO}: what the metric adds to a linear prediction from
size, compute and tokens on unseen configurations. Mixed model: change of loss by one standard deviation of the metric,
sizes as groups. q: p-values corrected together (Benjamini and Hochberg), {tested} of them on this page; the first row
is the pair declared beforehand, its p-values aren't corrected. SD: the effect in standard deviations over seeds.</p>"""


def _associations_table(name: str, target: str, associations: pd.DataFrame) -> str:
    methods = [m for m in METHODS if (associations["method"] == m).any()]
    heads = ["metric", "loss", "n", *(METHODS[m] for m in methods), "note"]
    by_pair: dict[tuple[str, str], dict[str, Any]] = {}
    for row in associations.itertuples(index=False):
        by_pair.setdefault((row.metric, row.target), {})[row.method] = row
    rows = []
    for (metric, loss), by_method in by_pair.items():
        notes = "; ".join(dict.fromkeys(f"{METHODS[r.method]}: {r.note}" for r in by_method.values() if r.note))
        cells = [cell(metric, metric_name(metric), "name"), cell(loss, loss, "name")]
        cells += [cell(int(max(row.n for row in by_method.values())))]
        cells += [_association_cell(by_method.get(m)) for m in methods] + [cell(notes, notes, "notes")]
        rows.append("".join(cells))
    return sortable_table(name, f"Associations of loss and {target_name(target)}", heads, rows)


def _association_cell(row: Any) -> str:
    if row is None or math.isnan(row.estimate):
        return cell("")
    primary = (row.metric, row.target) == PRIMARY_PAIR
    tested = ("p", row.p_value) if primary else ("q", row.q_value)
    more = []
    if not math.isnan(row.seed_sds):
        more.append(f"{signed(row.seed_sds)} SD")
    if row.method == "incremental R2" and row.variance_inflation >= 5:
        more.append(f"inflation {row.variance_inflation:.0f}" if math.isfinite(row.variance_inflation) else "explained")
    if not math.isnan(row.with_diverged):
        more.append(f"with diverged {signed(row.with_diverged)}")
    digits = 3 if row.method == "incremental R2" else 2
    return estimate_cell(row.estimate, row.low, row.high, tested, more, digits)


def quadrants_table(saturation: Saturation) -> str:
    """Low or high rank, degraded or not: how many runs, and which; and whether rank leads loss."""
    rows = [
        cell(row.rank) + cell("yes" if row.degraded else "no") + cell(int(row.runs)) + cell(int(row.configurations))
        + cell(", ".join(row.examples), None, "name")
        for row in saturation.quadrants.itertuples(index=False)
    ]  # fmt: skip
    lead, told = saturation.lead, ""
    if lead.n:
        told = f"Over {counted(lead.n, 'degraded run')} whose rank collapsed, it did so {describe(lead)} of training "
        told += "before the loss was at its best (median; under zero: after it)."
    if not math.isnan(saturation.association.estimate):
        told += f" Association of a low rank with degrading (phi): {describe(saturation.association)}."
    heads = ["rank", "degraded", "runs", "configurations", "examples"]
    table = sortable_table("quadrants", "Saturation: rank against degradation", heads, rows)
    return f"<p>{escape(told)}</p>{table}" if told else table


def variance_table(variance: pd.DataFrame) -> str:
    """Shares of variance, one row a column and setting."""
    named = variance.assign(setting=[_setting(s) for s in variance["setting"]])
    return _estimates_table("variance-table", "Shares of variance", named, ["column", "setting"], "share")


def prediction_tables(results: AnalysisResults) -> str:
    """R2 out of fold of the final loss, from final geometry and from early on."""
    early = results.early.assign(share=[f"{100 * share:.0f} %" for share in results.early["share"]])
    return _estimates_table(
        "prediction-table", "Prediction of loss", results.prediction, ["target", "model", "features"], "r2"
    ) + _estimates_table("early-table", "Prediction from early on", early, ["target", "share", "features"], "r2")


def _estimates_table(name: str, label: str, frame: pd.DataFrame, keys: Sequence[str], value: str) -> str:
    rows = [
        "".join(cell(row[key], None, "name") for key in keys)
        + estimate_cell(row[value], row["low"], row["high"], None, (), 3)
        + cell(int(row["n"]))
        + cell(row["note"], None, "notes")
        for row in frame.to_dict("records")
    ]
    return sortable_table(name, label, [*keys, "R\N{SUPERSCRIPT TWO}" if value == "r2" else value, "n", "note"], rows)


def _setting(column: str) -> str:
    return setting_name(column) if column.startswith("config.") else column
