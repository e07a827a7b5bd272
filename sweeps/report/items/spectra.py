"""Figures of singular values: over training, and at the end of each run."""

from collections.abc import Iterator

import altair as alt
import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.curves import by_target, target_name
from sweeps.report.item import Figure, NothingToShow, report_item
from sweeps.table.columns import FIRST_TARGETS, SPECTRUM

# At most MAX_SPECTRA spectra of a run are drawn, evenly spaced among those measured; at first, those of MOST_RUNS runs.
MAX_SPECTRA, MOST_RUNS = 8, 4
# Singular values below this share of the largest are rounding error, which has no place on a logarithmic axis.
ROUNDING = 1e-5
A_FEW = "a few configurations"


@report_item(section="spectra", order=10)
def spectra(results: AnalysisResults) -> Figure:
    """Singular values by index, the largest first, at several steps of a run, from early to late."""
    data, targets = _data(results)
    few = _few(results, list(dict.fromkeys(data["run"])))
    chart = charts.by_runs(alt.Chart(alt.NamedData("spectra"))).transform_filter("datum.target == target")
    chart = chart.transform_filter(
        f"which == {charts.quoted(A_FEW)} ? indexof(few, datum.run) >= 0 : datum.run == which"
    )
    chart = chart.mark_line(point={"size": 14}).encode(
        *_axes(data),
        alt.Color("step:O").scale(scheme="viridis", reverse=True),
        tooltip=[charts.ABOUT, "step:Q", alt.Tooltip("place:Q", title="index"), alt.Tooltip("value:Q", format=".4~g")],
        facet=alt.Facet("of.about:N", columns=4).title(None).header(labelLimit=190, labelFontSize=9),
    )
    chart = chart.properties(width=170, height=200).add_params(
        targets,
        charts.choice("which", "run", [A_FEW, *dict.fromkeys(data["run"])]),
        alt.param(name="few", value=few),
    )
    return charts.figure(chart, {"spectra": data}, _NOTE, results)


@report_item(section="spectra", order=20)
def final_spectra(results: AnalysisResults) -> Figure:
    """Singular values by index at the last probe of each run."""
    data, targets = _data(results)
    chart = charts.by_runs(alt.Chart(alt.NamedData("spectra"))).transform_filter("datum.target == target && datum.last")
    chart = chart.mark_line(point={"size": 14}).encode(
        *_axes(data),
        **charts.level(),
        detail="run:N",
        tooltip=[charts.ABOUT, "step:Q", alt.Tooltip("place:Q", title="index"), alt.Tooltip("value:Q", format=".4~g")],
    )
    return charts.figure(chart.add_params(targets), {"spectra": data}, "", results)


_NOTE = (
    f"Values under {ROUNDING:g} of the largest are rounding error and not drawn: gauge-fixing W removes directions. "
    "Two matrices can have equal spectra and still differ."
)


def _data(results: AnalysisResults) -> tuple[pd.DataFrame, alt.Parameter]:
    frames = list(_spectra(results))
    if not frames:
        raise NothingToShow("no spectrum was measured; set config.train.probe.unembedding.spectrum to measure it")
    data = pd.concat(frames, ignore_index=True)
    order = {target_name(target): i for i, target in enumerate(FIRST_TARGETS)}
    targets = sorted(dict.fromkeys(data["target"]), key=lambda target: order.get(target, len(order)))
    return data, charts.choice("target", "singular values of", targets)


def _spectra(results: AnalysisResults) -> Iterator[pd.DataFrame]:
    """Yield for each run and target one row per step and place drawn: run, target, step, last, place, value."""
    for run, curve in results.curves.items():
        columns = [c for c in curve.columns if c.partition("/")[0].endswith(SPECTRUM)]
        for target, of_target in by_target(columns).items():
            value_NK = curve[of_target].to_numpy(dtype=float)
            measured = np.flatnonzero(~np.isnan(value_NK).all(axis=1))
            if not len(measured):
                continue
            at = measured[np.unique(np.linspace(0, len(measured) - 1, MAX_SPECTRA).round().astype(int))]
            step_S, place_K = curve["step"].to_numpy()[at], [int(c.rpartition("/")[2]) for c in of_target]
            value_SK = value_NK[at]
            kept_SK = value_SK > ROUNDING * np.nanmax(value_SK, axis=1, keepdims=True)
            s, k = np.nonzero(kept_SK)
            rows = {"step": step_S[s], "place": np.array(place_K)[k], "value": value_SK[kept_SK]}
            last = step_S[s] == step_S[-1]
            yield (
                pd.DataFrame(rows)
                .assign(run=str(run), target=target_name(target.removesuffix(SPECTRUM)), last=last)
                .sort_values(["step", "place"], ignore_index=True)
            )


def _axes(data: pd.DataFrame) -> tuple[alt.X, alt.Y]:
    places = sorted(data["place"].unique())
    return (
        charts.x("place", "index, from the largest", log=True, at=places),
        charts.y("value", "singular value", log=True, at=charts.decades(data["value"])),
    )


def _few(results: AnalysisResults, runs: list[str]) -> list[str]:
    """Return the first run of a few configurations, evenly spaced by final effective rank."""
    if "configuration" in results.table:
        last = results.table.drop_duplicates("run_id", keep="last").drop_duplicates("configuration")
        last = last[last["run_id"].astype(str).isin(runs)]
        rank = np.nan_to_num(charts.values(last, "unembedding/effective_rank"))
        runs = list(last["run_id"].astype(str).iloc[np.argsort(rank, kind="stable")]) or runs
    return [runs[i] for i in np.unique(np.linspace(0, len(runs) - 1, min(len(runs), MOST_RUNS)).round().astype(int))]
