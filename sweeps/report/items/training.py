"""Figures over training: the loss and the geometry of what the probe measures."""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.curves import (
    MAX_POINTS,
    counts_note,
    geometry_curves,
    loss_curves,
    metric_name,
    target_name,
    targets_of,
)
from sweeps.report.item import Figure, NothingToShow, report_item


@report_item(section="training", order=10)
def training_loss(results: AnalysisResults) -> Figure:
    """Each run's training loss against tokens or steps; dotted for runs that diverged."""
    curves = loss_curves(results)
    if curves["loss"].notna().sum() == 0:
        raise NothingToShow("no run has written a training loss")
    base = alt.Chart().encode(charts.x("across", charts.of("against")), **charts.level())
    loss = alt.Y("loss:Q").title(f"training loss, {charts.NATS}").scale(zero=False, **_within(curves))
    line = base.mark_line(clip=True, opacity=0.9).encode(
        loss,
        detail="run:N",
        strokeDash=alt.condition("datum.diverged", alt.value([2, 3]), alt.value([1, 0])),
        tooltip=charts.ABOUT,
    )
    points = charts.hover(base, len(curves), "loss")
    chart = charts.by_runs(alt.layer(line, *points, data=alt.NamedData("losses")))
    chart = chart.transform_calculate(across="datum[against]")
    chart = chart.properties(width=560, height=280).add_params(_against())
    note = f"A line has at most {MAX_POINTS} points, fewer if there are many runs, each the mean of neighbouring steps."
    return charts.figure(chart, {"losses": curves}, note, results)


@report_item(section="training", order=20)
def geometry_over_training(results: AnalysisResults) -> Figure:
    """The geometry of the unembedding, or of another target, against tokens or steps, coloured by a setting."""
    return _geometry(results, "unembedding")


@report_item(section="training", order=30)
def states_over_training(results: AnalysisResults) -> Figure:
    """The geometry of the final states, or of another target, against tokens or steps, coloured by a setting."""
    if "final_states" not in targets_of(results.curves):
        raise NothingToShow("the final states weren't measured in training")
    return _geometry(results, "final_states")


def _geometry(results: AnalysisResults, first: str) -> Figure:
    targets = targets_of(results.curves)
    if not targets:
        raise NothingToShow("no geometry was measured in training")
    metrics = list(dict.fromkeys(metric_name(column) for columns in targets.values() for column in columns))
    curves = geometry_curves(results)
    base = alt.Chart().encode(charts.x("across", None), **charts.level())
    layers = [base.mark_line(opacity=0.9).encode(charts.y("value", None), detail="run:N", tooltip=charts.ABOUT)]
    if any(str(column).endswith(" spread") for column in curves):
        area = base.transform_filter("isValid(datum.spread)").mark_area(opacity=0.15)
        layers.insert(0, area.encode(alt.Y("low:Q"), alt.Y2("high:Q"), detail="run:N"))
    layers += charts.hover(base, len(curves) * len(metrics), "value", "spread")
    panels = alt.layer(*layers, data=alt.NamedData("geometry")).properties(width=200, height=150)
    chart = panels.facet(alt.Facet("metric:N").title(None).sort(metrics), columns=3)
    of_target = {metric: f"datum[target + {charts.quoted(f': {metric}')}]" for metric in metrics}
    chart = charts.by_runs(chart).transform_calculate(**of_target).transform_fold(metrics, as_=["metric", "value"])
    chart = chart.transform_filter("isValid(datum.value)").transform_calculate(
        across="datum[against]",
        spread="datum[target + ': ' + datum.metric + ' spread']",
        low="datum.value - datum.spread",
        high="datum.value + datum.spread",
    )
    names = [target_name(target) for target in targets]
    chart = chart.resolve_scale(y="independent").add_params(
        charts.choice("target", "geometry of", names, target_name(first)), _against()
    )
    note = (
        "Geometry is measured at probe steps. Gauge-fixing removes what no prediction depends on. A band, where there "
        f"is one, is plus and minus the standard deviation over disjoint probe sets. {counts_note(results)}"
    )
    return charts.figure(chart, {"geometry": curves}, note, results)


def _against() -> Any:
    return charts.choice("against", "against", ["tokens", "step"])


def _within(curves: pd.DataFrame) -> dict[str, Any]:
    """Return the range of the losses: a run that diverged, or the first steps, would flatten the others."""
    by_run = curves.groupby("run", sort=False)["loss"]
    highest, lowest = float(np.median(by_run.first().dropna())), float(curves["loss"].min())
    return {"domain": [lowest - 0.1, highest * 1.05]} if lowest < highest else {}
