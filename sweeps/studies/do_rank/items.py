"""What the report shows of interventions: achieved geometry by dose, the outcome against it, and the slopes."""

import altair as alt
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.item import Cell, Figure, NothingToShow, Paragraph, Table, Words, add_section, report_item
from sweeps.report.names import any_name, loss_name
from sweeps.report.numbers import change
from sweeps.studies.do_rank.effects import Effect, sentences

SECTION = "interventions"
_NOTE = (
    "Means over pairs of a run with the intervention and the run of the same seeds without it; bars are 95 % intervals."
)

add_section(SECTION, "Interventions", after="training", optional=True)


@report_item(section="findings", order=2)
def intervention_findings(results: AnalysisResults) -> Words:
    """What the arms that move the unembedding did to the in-domain loss."""
    return Words([Paragraph(line, link=SECTION) for line in sentences(_effects(results))])


@report_item(section=SECTION, order=10)
def intervention_doses(results: AnalysisResults) -> Figure:
    """The change of the effective rank by dose, one panel per arm, raw and gauge-fixed."""
    frames = []
    for one in _of_first_outcome(results):
        of_arm = one.doses.assign(matrix=_matrix(one), level=one.doses.groupby("arm")["dose"].rank().astype(int))
        frames.append(of_arm[["arm", "dose", "level", "matrix", "metric_change", "metric_low", "metric_high"]])
    data = pd.concat(frames, ignore_index=True)
    base = alt.Chart().encode(alt.X("dose:O").title("dose"), alt.Color("matrix:N").title(None))
    layers = alt.layer(
        base.mark_line().encode(charts.y("metric_change", "change of the effective rank, % of D")),
        base.mark_point().encode(alt.Y("metric_change:Q"), tooltip=["arm:N", "dose:Q", "metric_change:Q"]),
        base.mark_rule().encode(alt.Y("metric_low:Q"), alt.Y2("metric_high:Q")),
        data=alt.NamedData("doses"),
    )
    chart = layers.properties(width=150, height=120).facet(alt.Facet("arm:N").title(None), columns=4)
    return charts.figure(chart.resolve_scale(x="independent"), {"doses": data}, _NOTE)


@report_item(section=SECTION, order=20)
def intervention_outcomes(results: AnalysisResults) -> Figure:
    """Each outcome against the achieved effective rank, one line per arm; if rank is the only cause, they coincide."""
    frames = []
    for one in _effects(results):
        points = one.doses[["arm", "dose", "metric_change", "outcome_change", "outcome_low", "outcome_high"]]
        start = pd.DataFrame({"arm": points["arm"].unique()})
        start = start.assign(dose=[_neutral_dose(arm) for arm in start["arm"]], metric_change=0.0, outcome_change=0.0)
        both = pd.concat([start, points], ignore_index=True)
        frames.append(both.assign(matrix=_matrix(one), outcome=loss_name(one.outcome)))
    data = pd.concat(frames, ignore_index=True)
    outcomes = list(dict.fromkeys(data["outcome"]))
    base = alt.Chart(alt.NamedData("responses")).transform_filter("datum.outcome == outcome")
    panels = []
    for matrix in dict.fromkeys(data["matrix"]):
        of = base.transform_filter(f"datum.matrix == {charts.quoted(matrix)}").encode(
            charts.x("metric_change", "change of the effective rank, % of D"),
            alt.Color("arm:N").title(None).scale(scheme="tableau20"),
        )
        change_of = charts.y("outcome_change", "change of the outcome")
        panels.append(
            (
                of.mark_line(opacity=0.5).encode(change_of, order="dose:Q")
                + of.mark_point().encode(
                    change_of,
                    alt.Shape("arm:N").legend(None),
                    tooltip=["arm:N", "dose:Q", "metric_change:Q", "outcome_change:Q"],
                )
                + of.mark_rule().encode(alt.Y("outcome_low:Q"), alt.Y2("outcome_high:Q"))
            ).properties(width=300, height=240, title=matrix)
        )
    chart = alt.hconcat(*panels).add_params(charts.choice("outcome", "outcome", outcomes))
    return charts.figure(chart, {"responses": data}, _NOTE)


@report_item(section=SECTION, order=30)
def intervention_slopes(results: AnalysisResults) -> Table:
    """The slope of each outcome on the effective rank by each arm, with the observational slope and Cochran's Q."""
    records, rows, groups = [], [], []
    for one in _effects(results):
        group = f"{loss_name(one.outcome)} by {any_name(one.metric, [])}"
        for row in one.arms.itertuples():
            records.append(row._asdict() | {"metric": one.metric, "outcome": one.outcome})
            shown = estimate(row.slope, row.slope_low, row.slope_high, digits=4)
            rows.append([cell(row.arm, kind="name"), cell(row.pairs), _changed(row.metric_change),
                         _changed(row.outcome_change), shown, Cell(row.note, kind="notes")])  # fmt: skip
            groups.append(group)
        for name, slope, low, high, note in _summaries(one):
            records.append({"arm": name, "slope": slope, "slope_low": low, "slope_high": high, "note": note}
                           | {"metric": one.metric, "outcome": one.outcome})  # fmt: skip
            shown = estimate(slope, low, high, digits=4)
            rows.append([cell(name, kind="name"), Cell(""), Cell(""), Cell(""), shown, Cell(note, kind="notes")])
            groups.append(group)
    heads = ["arm", "pairs", "largest change of the rank", "change of the outcome", "slope per % of D", "notes"]
    frame = pd.DataFrame(records).drop(columns="Index", errors="ignore")
    note = (
        "The slope is the change of the outcome divided by that of the metric (Wald ratio), over all doses of an arm, "
        "with Fieller's interval over pairs. Q tests whether one slope fits all arms."
    )
    return Table("Slopes of outcomes on the effective rank", heads, rows, frame, groups=groups, note=note)


def _neutral_dose(arm: str) -> float:
    """Return the place of the control among an arm's doses: a rank without a bound is the highest."""
    if arm.startswith(("head_rank", "backward_rank")):
        return 1e9
    return 1.0 if arm.startswith("head_rate") else 0.0


def _summaries(one: Effect) -> list[tuple[str, float, float, float, str]]:
    nan = float("nan")
    lines = [("observed, without intervention", *one.observed[:3], f"{one.observed.n} configurations")]
    if one.over is None:
        return [*lines, ("all arms", nan, nan, nan, one.over_note)]
    q = f"Q = {one.over.q:.3g}, {one.over.dof} and {one.over.error_dof} degrees of freedom, p = {one.over.p_value:.3g}"
    return [*lines, ("all arms", one.over.slope, nan, nan, q)]


def _changed(value: float) -> Cell:
    return Cell("") if pd.isna(value) else cell(float(value), change(float(value)))


def _matrix(one: Effect) -> str:
    return "gauge-fixed W" if "gauge_fixed" in one.metric else "W as stored"


def _of_first_outcome(results: AnalysisResults) -> list[Effect]:
    found = _effects(results)
    return [one for one in found if one.outcome == found[0].outcome]


def _effects(results: AnalysisResults) -> tuple[Effect, ...]:
    found: tuple[Effect, ...] = results.studies.get("do_rank", ())
    if not found:
        raise NothingToShow("no run has an intervention")
    if all(one.doses.empty for one in found):
        raise NothingToShow("no run with an intervention has a control of the same settings and seeds")
    return found
