"""What the report shows of saturation: the share of runs without the event over training, and hazards by factor."""

import altair as alt
import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.item import Cell, Figure, NothingToShow, Paragraph, Table, Words, add_section, report_item
from sweeps.report.numbers import percent
from sweeps.report.words import setting_name
from sweeps.studies.saturation.effects import EVENTS, FACTORS, Hazard, events, sentences

SECTION = "hazards"

add_section(SECTION, "When models saturate", after="training", optional=True)


@report_item(section="findings", order=5)
def hazard_findings(results: AnalysisResults) -> Words:
    """By which factors the rank collapses and the loss turns sooner."""
    return Words([Paragraph(line, link=SECTION) for line in sentences(_hazards(results))])


@report_item(section=SECTION, order=10)
def runs_without_event(results: AnalysisResults) -> Figure:
    """Share of runs whose rank hasn't collapsed, or whose loss hasn't turned, over training, by factor."""
    _hazards(results)
    rows = events(results.table)
    steps = sorted({0.0, *rows["step"].astype(float), *rows["collapse"].dropna(), *rows["turn"].dropna()})
    parts = []
    for factor in (factor for factor in FACTORS if rows[factor].nunique() > 1):
        for level, of in rows.groupby(factor):
            for event, name in EVENTS.items():
                share = [float((of[event].isna() | (of[event] > step)).mean()) for step in steps]
                parts.append(pd.DataFrame({"step": steps, "share": share, "level": str(level), "event": name})
                             .assign(factor=setting_name(factor)))  # fmt: skip
    data = pd.concat(parts, ignore_index=True)
    names = list(dict.fromkeys(data["factor"]))
    base = alt.Chart(alt.NamedData("without_event")).transform_filter("datum.factor == factor")
    panels = [
        base.transform_filter(f"datum.event == {charts.quoted(name)}")
        .mark_line(interpolate="step-after")
        .encode(
            alt.X("step:Q").title("step"),
            alt.Y("share:Q").title(f"runs without a {name}").scale(domain=[0, 1]),
            alt.Color("level:N").title(None),
        )
        .properties(width=300, height=220)
        for name in EVENTS.values()
    ]
    chart = alt.hconcat(*panels).add_params(charts.choice("factor", "factor", names))
    return charts.figure(chart, {"without_event": data}, "All runs of a level, whatever their other settings.")


@report_item(section=SECTION, order=20)
def hazard_ratios(results: AnalysisResults) -> Table:
    """Hazard of each event at one level of a factor over that at the first level, all other factors equal."""
    found = _hazards(results)
    rows, records = [], []
    for one in found:
        e = one.ratio
        shares = [cell(share, percent(share)) for share in one.shares]
        rows.append([cell(setting_name(one.factor), kind="name"), cell(one.first), cell(one.second), *shares,
                     estimate(e.estimate, e.low, e.high, tested=("p", e.p_value)), cell(one.events), cell(e.n),
                     Cell(one.note, kind="notes")])  # fmt: skip
        share = dict(zip(("share_first", "share_second"), one.shares, strict=True))
        named = {"event": one.event, "factor": one.factor, "first": one.first, "second": one.second}
        records.append(named | share | {"events": one.events} | e._asdict() | {"note": one.note})
    note = (
        "A ratio above 1: the event comes sooner, or in more runs, at the second level. It is Peto's estimate from the "
        "log-rank test within runs that agree in all other factors. Seeds are the replicates of its interval."
    )
    heads = ["factor", "first", "second", "runs with it, first", "second", "hazard ratio", "events", "seeds", "notes"]
    groups = [EVENTS[one.event] for one in found]
    frame = pd.DataFrame(records).replace({np.inf: np.nan})
    return Table("Hazards of saturation by factor", heads, rows, frame, groups=groups, text_columns=3, note=note)


def _hazards(results: AnalysisResults) -> tuple[Hazard, ...]:
    found: tuple[Hazard, ...] = results.studies.get("saturation", ())
    if not found:
        raise NothingToShow("no sweep of the factors that make models saturate")
    return found
