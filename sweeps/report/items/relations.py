"""Figures over final rows: a loss against geometry, and both by setting."""

import altair as alt
import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.item import Figure, NothingToShow, report_item
from sweeps.report.words import setting_name
from sweeps.table.columns import PRIMARY_PAIR, as_levels

_METRIC, _LOSS = PRIMARY_PAIR
_SIZES = ("parameters_non_embedding", "parameters")
_MOST_SETTINGS, _ACROSS = 8, 4


@report_item(section="scatter", order=10)
def loss_against_geometry(results: AnalysisResults) -> Figure:
    """A loss against a geometry metric, one point per run; initially the pair declared beforehand."""
    metrics, losses = pair(results)
    chart = charts.by_runs(alt.Chart(alt.NamedData("final"))).transform_calculate(x="datum[metric]", y="datum[loss]")
    chart = charts.scatter(chart, "metric", "loss")
    chart = chart.properties(width=420, height=320).add_params(
        charts.choice("metric", "x axis", metrics), charts.choice("loss", "y axis", losses)
    )
    note = (
        "Final rows. Hover over a point to see the run's settings. A relation here may be due to a setting that moves "
        "both; the partial correlations below control for the settings."
    )
    return charts.figure(chart, {"final": charts.final_data(results)}, note, results)


@report_item(section="by-setting", order=10)
def by_setting(results: AnalysisResults) -> Figure:
    """Means of a metric and of a loss at each value of a setting, with the range over runs."""
    metrics, losses = pair(results)
    settings = list(charts.settings_of(results).values())
    if not settings:
        raise NothingToShow("no setting differs between runs")
    base = charts.by_runs(alt.Chart(alt.NamedData("final")))
    panels = []
    for quantity in ("metric", "loss"):
        of = base.transform_calculate(y=f"datum[{quantity}]", x="datum.of[setting]").transform_filter(
            "isValid(datum.y)"
        )
        # If the colour is that of the setting on the x axis, all points belong to one line.
        of = of.transform_calculate(level="setting == colour_by ? 'all runs' : datum.level")
        across = alt.X("x:O").title(charts.of("setting")).axis(labelExpr=charts.LABEL, labelAngle=0)
        of = of.encode(across, **charts.level())
        line = of.mark_line(point=True).encode(
            charts.y("mean(y)", charts.of(quantity)),
            tooltip=["level:N", "x:O", alt.Tooltip("mean(y):Q", format=".4~g"), alt.Tooltip("count()", title="runs")],
        )
        panels.append((of.mark_rule().encode(alt.Y("min(y):Q"), alt.Y2("max(y):Q")) + line).properties(width=310))
    chart = alt.hconcat(*panels).add_params(
        charts.choice("setting", "setting", settings, settings[min(1, len(settings) - 1)]),
        charts.choice("metric", "metric", metrics),
        charts.choice("loss", "loss", losses),
    )
    note = (
        "Means over final rows at each value of the setting. Where a loss is U-shaped, its rank correlation with the "
        "setting is misleading, and so is a partial correlation given settings as ranks."
    )
    return charts.figure(chart, {"final": charts.final_data(results)}, note, results)


@report_item(section="by-setting", order=20)
def u_shapes(results: AnalysisResults) -> Figure:
    """Mean in-domain loss and effective rank against each numeric setting that varies within a size, one line per size.

    A point is the mean over the configurations of a size at that value, whatever else differs between them; its bar
    goes from the mean of their lowest seeds to that of their highest. [ours]
    """
    rows = results.final.rows
    quantities = {_LOSS: "in-domain loss", _METRIC: "effective rank, %"}
    shown = [c for c in quantities if np.isfinite(charts.values(rows, c)).any()]
    if not shown:
        raise NothingToShow("no run has finished" if rows.empty else f"no finished run has {_LOSS}")
    sizes = next((c for c in _SIZES if c in rows.columns), "")
    rows = rows.assign(size=rows[sizes] if sizes else 0)
    settings = [c for c in results.settings if _varies_within_size(rows, c)]
    if not settings:
        raise NothingToShow("no numeric setting varies within a size")
    drawn = settings[:_MOST_SETTINGS]
    data = pd.concat([_u_shape(rows, c, column).assign(setting=c, quantity=column) for c in drawn for column in shown])
    panels = []
    for setting in drawn:
        at = sorted(data.loc[data["setting"] == setting, "at"].unique())
        ticks = at if len(at) <= 6 else ()
        across = charts.x("at", setting_name(setting), log=charts.spans(at), at=ticks)
        for column in shown:
            of = alt.Chart(alt.NamedData("u_shapes")).encode(across, alt.Color("size:O").title("parameters").legend(
                labelExpr=charts.LABEL))  # fmt: skip
            of = of.transform_filter(
                f"datum.setting == {charts.quoted(setting)} && datum.quantity == {charts.quoted(column)}"
            )
            bars = of.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q"))
            line = of.mark_line(point=True).encode(charts.y("mean", quantities[column]))
            panels.append((bars + line).properties(width=150, height=130))
    columns = [alt.vconcat(*panels[i : i + len(shown)]) for i in range(0, len(panels), len(shown))]
    chart = alt.concat(*columns, columns=_ACROSS)
    left_out = f"Shown: {len(drawn)} of {len(settings)} settings. " if len(drawn) < len(settings) else ""
    note = (
        f"{left_out}A point is the mean over the configurations of a size at that value, whatever else differs between "
        "them; its bar goes from the mean of their lowest seeds to that of their highest."
    )
    return charts.figure(chart, {"u_shapes": data}, note)


def pair(results: AnalysisResults) -> tuple[list[str], list[str]]:
    """Return the names of metrics and of losses in "final". Raises NothingToShow where one is missing."""
    metrics, losses = charts.kinds(results)
    missing = [what for what, names in (("geometry metric", metrics), ("loss", losses)) if not names]
    if missing:
        raise NothingToShow(f"the table has no {' and no '.join(missing)}")
    rows = results.final.rows
    if rows.empty:
        raise NothingToShow("no run has a final row")
    for column in PRIMARY_PAIR:
        if column in rows and not np.isfinite(charts.values(rows, column)).any():
            raise NothingToShow(f"no finished run has {column}")
    return metrics, losses


def _u_shape(rows: pd.DataFrame, setting: str, column: str) -> pd.DataFrame:
    # Values that differ only by rounding are one value.
    at = [float(f"{x:.6g}") for x in charts.values(rows, setting)]
    frame = rows[["size", "configuration"]].assign(at=at, value=charts.values(rows, column))
    frame = frame[np.isfinite(frame["at"]) & np.isfinite(frame["value"])]
    of = frame.groupby(["size", "at", "configuration"])["value"].agg(["mean", "min", "max"])
    means = of.groupby(level=["size", "at"]).mean().reset_index()
    return means.rename(columns={"min": "low", "max": "high"})


def _varies_within_size(rows: pd.DataFrame, setting: str) -> bool:
    if setting not in rows.columns or pd.api.types.is_bool_dtype(as_levels(rows[setting])):
        return False
    at = pd.Series(charts.values(rows, setting), index=rows.index)
    return bool((at.groupby(rows["size"]).nunique() > 1).any())
