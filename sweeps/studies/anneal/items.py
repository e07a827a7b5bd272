"""What the report shows of the end of training: quantisation against tokens, rate and rank, and the paired changes."""

import altair as alt
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.item import Figure, NothingToShow, Paragraph, Table, Words, add_section, report_item
from sweeps.report.numbers import number
from sweeps.studies.anneal.effects import RANK, RATE, SEED, TOKENS, Change, ends, outcome_name, outcomes, sentences

SECTION = "ends"

add_section(SECTION, "The end of training", after="training", optional=True)


@report_item(section="findings", order=3)
def end_findings(results: AnalysisResults) -> Words:
    """What decay, tokens and rate did to quantisation and to forgetting, paired within trunks."""
    return Words([Paragraph(line, link=SECTION) for line in sentences(_changes(results))])


@report_item(section=SECTION, order=10)
def end_against_causes(results: AnalysisResults) -> Figure:
    """Each outcome against tokens, peak learning rate and effective rank, side by side; lines join what is paired."""
    _changes(results)
    rows = ends(results.table)
    columns = [c for c in outcomes(results.table) if c != RANK]
    columns.sort(key=lambda c: not c.endswith("/relative_rise/in_domain"))  # what is shown first
    names = {column: outcome_name(column) for column in columns}
    places = {TOKENS: "tokens", RATE: "peak learning rate", RANK: "effective rank, gauge-fixed, % of D"}
    kept = rows.reindex(columns=["run_id", "trunk", "end", SEED, *places])  # without the rank if it wasn't measured
    kept = kept.rename(columns={TOKENS: "tokens", RATE: "rate", RANK: "rank", SEED: "seed"})
    data = pd.concat([kept.assign(outcome=names[c], value=rows[c]) for c in columns], ignore_index=True)
    base = alt.Chart(alt.NamedData("ends")).transform_filter("datum.outcome == outcome")
    panels = []
    for field, title in zip(("tokens", "rate", "rank"), places.values(), strict=True):
        scale = alt.Scale(type="linear" if field == "rank" else "log", zero=False, nice=False, padding=12)
        place = base.encode(
            alt.X(f"{field}:Q").title(title).scale(scale),
            alt.Color("end:N").title(None).scale(scheme="tableau10"),
            charts.y("value", "outcome"),
        )
        paired = ["seed:N", "tokens:N"] if field == "rate" else ["trunk:N"]
        lines = place.mark_line(opacity=0.35).encode(detail=paired, order=f"{field}:Q")
        points = place.mark_point().encode(tooltip=["run_id:N", "end:N", "value:Q"])
        panels.append((lines + points).properties(width=230, height=240))
    heading = alt.TitleParams(text=alt.ExprRef("outcome"), anchor="start", fontSize=12, fontWeight="normal")
    chart = alt.hconcat(*panels, title=heading).add_params(charts.choice("outcome", "outcome", list(names.values())))
    note = (
        "Every point is a branch at the end of its budget. A line joins the ends of one trunk that are of the same "
        "kind, at several budgets; in the middle, ends of one seed, kind and budget at several peak rates."
    )
    return charts.figure(chart, {"ends": data}, note)


@report_item(section=SECTION, order=20)
def end_changes(results: AnalysisResults) -> Table:
    """The change of each outcome by decay, sharpness-aware minimisation, averaging, tokens and rate, paired by seed."""
    found = _changes(results)
    rows, records = [], []
    for one in found:
        of = one.estimate
        shown = estimate(of.estimate, of.low, of.high, digits=4, tested=("p", of.p_value))
        rows.append([cell(one.factor, kind="name"), cell(one.first), cell(one.second), cell(one.base, number(one.base)),
                     shown, cell(of.n)])  # fmt: skip
        records.append(one._asdict() | of._asdict())
    note = (
        "Second level minus first, averaged within each seed over all pairs that agree in everything else (tokens, "
        "peak rate, kind of end). Intervals are Student's t over seeds; p-values aren't corrected for the number of "
        "rows."
    )
    heads = ["factor", "from", "to", "outcome before", "change", "seeds"]
    frame = pd.DataFrame(records)
    groups = [outcome_name(one.outcome) for one in found]
    return Table("Changes of outcomes, paired", heads, rows, frame, groups=groups, text_columns=3, note=note)


def _changes(results: AnalysisResults) -> tuple[Change, ...]:
    found: tuple[Change, ...] = results.studies.get("anneal", ())
    if not found:
        raise NothingToShow("no run branches off a trunk with a constant rate to end in another way")
    return found
