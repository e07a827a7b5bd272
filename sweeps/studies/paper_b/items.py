"""What the report shows of the experiments on local dimension: each claim with its verdict and its evidence."""

import altair as alt
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.item import Figure, NothingToShow, Paragraph, Table, Words, add_section, report_item
from sweeps.report.numbers import format_p
from sweeps.studies.paper_b.claim import CLAIMS, Claim
from sweeps.studies.paper_b.claims import claims_of
from sweeps.studies.paper_b.panels import TITLES, panels, quantiles, sensitivity

SECTION = "local-dimension"
_COLUMNS = 4
_LEADS = (
    "p compares with shuffled runs, the metric of each with the outcome of another; a lead is claimed if its interval "
    "excludes 0 and p < .05. The last column is the R2 that the step of a signal adds to that of the training loss in "
    "predicting the step of the outcome."
)

add_section(SECTION, "Local dimension", after="training", optional=True)


@report_item(section="findings", order=1)
def claim_findings(results: AnalysisResults) -> Words:
    """The claims on local dimension that the sweep tests, and the verdicts."""
    return Words([Paragraph(claim.text, link=SECTION) for claim in _claims(results)])


@report_item(section=SECTION, order=10)
def claim_verdicts(results: AnalysisResults) -> Words:
    """Each claim on local dimension with the verdict of this sweep and its reason."""
    return Words(
        [
            Paragraph(f"Claim (arXiv 2506.01034): {CLAIMS[claim.name]} Verdict: {claim.verdict}. {claim.sentence}",
                      heading=_title(claim))
            for claim in _claims(results)
        ]
    )  # fmt: skip


@report_item(section=SECTION, order=20)
def claim_curves(results: AnalysisResults) -> Figure:
    """Each experiment's quantities over steps: means over the runs of a configuration, with their range."""
    frames, rows = [], []
    for claim in _claims(results):
        charts_of = []
        for panel in panels(results, claim):
            name = f"{_title(claim)}: {panel.title}"
            for band in panel.bands:
                of = {"panel": name, "configuration": charts.printable(band.name), "runs": band.runs}
                values = {"step": band.steps, "mean": band.mean, "low": band.low, "high": band.high}
                frames.append(pd.DataFrame(values).assign(**of))
            base = alt.Chart(alt.NamedData("bands")).transform_filter(f"datum.panel == {charts.quoted(name)}")
            base = base.encode(
                charts.x("step", panel.across), alt.Color("configuration:O").legend(symbolOpacity=1).title(None)
            )
            area = base.mark_area(opacity=0.2).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
            line = base.mark_line().encode(
                charts.y("mean", None), tooltip=["configuration:N", "runs:Q", "step:Q", "mean:Q", "low:Q", "high:Q"]
            )
            title = alt.Title(panel.title, subtitle=_title(claim), fontSize=11)
            charts_of.append((area + line).properties(width=185, height=140, title=title))
        rows.append(alt.concat(*charts_of, columns=_COLUMNS))
    if not frames:
        raise NothingToShow("no quantity of an experiment was measured in all of its runs")
    note = "Lines are means over the runs of a configuration, bands their range."
    if any(claim.name == "grokking" for claim in _claims(results)):
        note += " Change points are searched for only after a run has memorised."
    chart = alt.vconcat(*rows).resolve_scale(color="independent")
    return charts.figure(chart, {"bands": pd.concat(frames, ignore_index=True)}, note)


@report_item(section=SECTION, order=30)
def claim_shift(results: AnalysisResults) -> Figure:
    """The distribution over points of local dimension before and after a fine-tuning, by text."""
    frames = [quantiles(results, claim).assign(tuning=_title(claim)) for claim in _claims(results)]
    data = pd.concat(frames, ignore_index=True)
    if data.empty:
        raise NothingToShow("local dimension wasn't measured before and after a fine-tuning on a domain")
    base = alt.Chart().encode(
        alt.X("text:N").title(None).axis(labelAngle=0),
        alt.XOffset("when:N").sort(["before", "after"]),
        charts.apart("when", order=["before", "after"]),
    )
    layers = alt.layer(
        base.mark_rule().encode(charts.y("q5", "local dimension around a point"), alt.Y2("q95:Q")),
        base.mark_bar(opacity=0.5, size=16).encode(alt.Y("q25:Q"), alt.Y2("q75:Q")),
        base.mark_tick(thickness=2, size=16).encode(alt.Y("median:Q"), tooltip=["text:N", "when:N", "median:Q"]),
        data=alt.NamedData("quantiles"),
    )
    chart = layers.properties(width=alt.Step(28)).facet(alt.Facet("tuning:N").title(None), columns=2)
    note = "Lines go from the 5 % to the 95 % quantile over points, bars from 25 % to 75 %, each averaged over models."
    return charts.figure(chart, {"quantiles": data}, note)


@report_item(section=SECTION, order=40)
def claim_change_points(results: AnalysisResults) -> Figure:
    """Each run's step at which the outcome changes against that of local dimension; on the line, they are equal."""
    steps = ["metric_step", "outcome_step"]
    known = [claim for claim in _claims(results) if len(claim.signals) and {*steps} <= {*claim.rows}]
    data = pd.concat([pd.DataFrame({"run": []}), *(c.rows.dropna(subset=steps).assign(claim=_title(c)) for c in known)])
    if data.empty:
        raise NothingToShow("in no run do local dimension and outcome both change")
    data = data.assign(run=data["run_id"].astype(str))[["run", "claim", *steps]].reset_index(drop=True)
    ends = pd.DataFrame({"step": [data[steps].min(axis=None), data[steps].max(axis=None)]}).astype(float)
    points = (
        charts.by_runs(alt.Chart(alt.NamedData("change_points")))
        .mark_point(size=70)
        .encode(
            charts.x("metric_step", "step at which local dimension changes"),
            charts.y("outcome_step", "step of the outcome"),
            alt.Shape("claim:N").title(None),
            tooltip=[charts.ABOUT, "metric_step:Q", "outcome_step:Q"],
            **charts.level(),
        )
    )
    line = alt.Chart(alt.NamedData("together")).mark_line(strokeDash=[3, 3], color=charts.GREY)
    line = line.encode(alt.X("step:Q"), alt.Y("step:Q"))
    return charts.figure(line + points, {"change_points": data, "together": ends}, "", results)


@report_item(section=SECTION, order=50)
def claim_leads(results: AnalysisResults) -> Figure:
    """By how many steps each signal changes before the outcome, with 95 % intervals."""
    data = _signals(results)
    data = data[data["lead"].notna()]
    if data.empty:
        raise NothingToShow("in no run do a signal and its outcome both change")
    base = alt.Chart().encode(alt.Y("signal:N").title(None).sort(list(dict.fromkeys(data["signal"]))))
    layers = alt.layer(
        alt.Chart().mark_rule(color=charts.GREY, strokeDash=[3, 3]).encode(x=alt.datum(0)),
        base.mark_rule().encode(alt.X("low:Q"), alt.X2("high:Q")),
        base.mark_point().encode(
            charts.x("lead", "steps ahead of the outcome"), tooltip=["signal:N", "lead:Q", "low:Q", "high:Q"]
        ),
        data=alt.NamedData("leads"),
    )
    chart = (
        layers.properties(width=260).facet(alt.Facet("claim:N").title(None), columns=2).resolve_scale(y="independent")
    )
    return charts.figure(chart, {"leads": data[["claim", "signal", "lead", "low", "high"]].reset_index(drop=True)})


@report_item(section=SECTION, order=60)
def claim_signals(results: AnalysisResults) -> Table:
    """When each signal changes, and what its step adds to that of the training loss in predicting the outcome."""
    frame = _signals(results)
    if frame.empty:
        raise NothingToShow("no signal was measured in an experiment")
    rows = [
        [
            cell(row.signal, kind="name"),
            estimate(row.lead, row.low, row.high, 0),
            cell(row.p_value, "" if pd.isna(row.p_value) else format_p(row.p_value)),
            cell(row.n),
            cell(bool(row.claimed)),
            estimate(row.adds, row.adds_low, row.adds_high),
            cell(row.note, kind="notes"),
        ]
        for row in frame.itertuples()
    ]
    heads = ["signal", "steps ahead of the outcome", "p", "runs", "claimed", "adds to training loss, R2", "note"]
    return Table("Signals and when they change", heads, rows, frame, groups=list(frame["claim"]), note=_LEADS)


@report_item(section=SECTION, order=70)
def claim_sensitivity(results: AnalysisResults) -> Figure:
    """Mean local dimension at the last checkpoints by neighbours, one line per number of points, by text."""
    means = sensitivity(results.table) if _claims(results) else pd.DataFrame()
    if means.empty:
        raise NothingToShow("evaluation.dimension.points requests no local dimension by points and neighbours")
    across = charts.x("neighbors", "neighbours", log=True, at=sorted(means["neighbors"].unique()))
    base = alt.Chart().encode(across, charts.apart("points", "points"))
    layers = alt.layer(
        base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q")),
        base.mark_line(point=True).encode(charts.y("mean", "mean local dimension"), tooltip=["points:N", "mean:Q"]),
        data=alt.NamedData("sensitivity"),
    )
    chart = layers.properties(width=200, height=160).facet(alt.Facet("of:N").title(None), columns=_COLUMNS)
    note = (
        "How much the estimate depends on the method's parameters. Bars are the range over runs. Compare runs, or "
        "steps of a run, only at the same numbers of points and neighbours."
    )
    return charts.figure(chart, {"sensitivity": means}, note)


def _claims(results: AnalysisResults) -> list[Claim]:
    if not (tested := claims_of(results)):
        raise NothingToShow("the sweep has no experiment on local dimension")
    return list(tested)


def _title(claim: Claim) -> str:
    return TITLES[claim.name] + (f" ({claim.evaluation.replace('_', ' ')})" if claim.evaluation else "")


def _signals(results: AnalysisResults) -> pd.DataFrame:
    frames = [claim.signals.assign(claim=_title(claim)) for claim in _claims(results) if len(claim.signals)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["claim", "signal", "lead"])
