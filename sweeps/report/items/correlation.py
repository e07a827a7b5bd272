"""Every metric of geometry with every loss: the matrix of rank correlations, and a table of all associations."""

import math
from typing import Any

import altair as alt
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.curves import metric_name, target_name
from sweeps.report.item import Cell, Figure, NothingToShow, Table, report_item
from sweeps.report.names import loss_name
from sweeps.report.numbers import signed
from sweeps.table.columns import PRIMARY_PAIR, target_of

_METHODS = {
    "raw": "raw \N{GREEK SMALL LETTER RHO}",
    "partial rank": "partial, ranks",
    "partial factor": "partial, factors",
    "incremental R2": "\N{GREEK CAPITAL LETTER DELTA}R\N{SUPERSCRIPT TWO}",
    "mixed effects": "mixed model",
}
_FORMS = {"raw": "raw", "partial rank": "given settings as ranks", "partial factor": "given settings as factors"}
_MOST_METRICS, _MOST_LOSSES = 30, 16
_NUMBERS_IN_CELLS = 150  # with more cells than this the colours alone are legible
_FIRST = "the first metrics"
_KEYS = ("metric", "target", "method")


@report_item(section="correlation", order=10)
def correlation_matrix(results: AnalysisResults) -> Figure:
    """Spearman's rank correlation of each metric with each loss, raw and given every setting that varies."""
    known = results.associations[results.associations["method"].isin(_FORMS)]
    known = known[known["estimate"].notna()].drop_duplicates([*_KEYS])
    if known.empty:
        raise NothingToShow("no correlation can be computed" if len(results.associations) else "no metric with a loss")
    metrics, losses = charts.first_of(known["metric"], len(known)), charts.first_of(known["target"], _MOST_LOSSES)
    names = charts.names_of([*metrics, *losses], losses)
    data = pd.DataFrame(
        {
            "metric": known["metric"].map(names),
            "loss": known["target"].map(names),
            "form": known["method"].map(_FORMS),
            "of": [target_name(target_of(metric)) for metric in known["metric"]],
            "first": known["metric"].isin(metrics[:_MOST_METRICS]),
            **{name: known[name] for name in ("estimate", "low", "high", "q_value")},
        }
    )[known["target"].isin(losses)].reset_index(drop=True)
    base = alt.Chart().encode(
        alt.X("loss:N").title(None).sort([names[c] for c in losses]).axis(labelAngle=-60),
        alt.Y("metric:N").title(None).sort([names[c] for c in metrics]),
        tooltip=["metric:N", "loss:N", "form:N"]
        + [alt.Tooltip(f"{name}:Q", format=".3~f") for name in ("estimate", "low", "high", "q_value")],
    )
    cells = base.mark_rect().encode(
        alt.Color("estimate:Q").title("\N{GREEK SMALL LETTER RHO}").scale(domain=[-1, 1], scheme="blueorange")
    )
    few = len(metrics[:_MOST_METRICS]) * len(losses) <= _NUMBERS_IN_CELLS
    dot = "(isValid(datum.q_value) && datum.q_value < 0.05 ? '\u2022' : '')"
    texts = base.transform_calculate(shown=f"format(datum.estimate, '.2f') + {dot}" if few else dot)
    texts = texts.mark_text(fontSize=9, color="black").encode(text="shown:N")
    chart = alt.layer(cells, texts, data=alt.NamedData("correlations"))
    chart = chart.properties(width=alt.Step(36 if few else 18), height=alt.Step(15))
    chart = chart.facet(alt.Facet("form:N").title(None).sort(list(_FORMS.values())), columns=3, spacing=10)
    chart = chart.transform_filter(
        f"metrics_of == {charts.quoted(_FIRST)} ? datum.first : datum.of == metrics_of"
    ).add_params(charts.choice("metrics_of", "geometry of", [_FIRST, *dict.fromkeys(data["of"])]))
    chart = chart.resolve_scale(x="independent")
    counts = f"{known['metric'].nunique()} metrics, {len(losses)} of {known['target'].nunique()} losses"
    note = f"A dot marks q < .05. Up to {_MOST_METRICS} metrics are shown at first; {counts} can be chosen."
    return charts.figure(chart, {"correlations": data}, note)


@report_item(section="correlation", order=20)
def associations(results: AnalysisResults) -> Table:
    """Every association of a metric with a loss, raw and by each method that controls for settings, with intervals."""
    frame = results.associations
    if frame.empty:
        raise NothingToShow("no metric with a loss")
    methods = [m for m in _METHODS if (frame["method"] == m).any()]
    by_pair: dict[tuple[str, str], dict[str, Any]] = {}
    for row in frame.itertuples(index=False):
        by_pair.setdefault((row.metric, row.target), {})[row.method] = row
    targets = list(dict.fromkeys(map(target_of, frame["metric"])))
    by_pair = dict(sorted(by_pair.items(), key=lambda entry: targets.index(target_of(entry[0][0]))))
    rows = []
    for (metric, loss), by_method in by_pair.items():
        notes = "; ".join(dict.fromkeys(f"{_METHODS[r.method]}: {r.note}" for r in by_method.values() if r.note))
        n = int(max(row.n for row in by_method.values()))
        found = [_cell(by_method.get(method)) for method in methods]
        rows.append([cell(metric, metric_name(metric), "name"), cell(loss, loss_name(loss), "name"), cell(n), *found,
                     cell(notes, kind="notes")])  # fmt: skip
    return Table(
        "Associations of geometry with losses, with 95 % intervals, clustered by configuration",
        ["metric", "loss", "n", *(_METHODS[m] for m in methods), "note"],
        rows,
        _wide(frame, methods),
        groups=[target_name(target_of(metric)) for metric, _ in by_pair],
        text_columns=2,
        note=_about(results),
    )


def _cell(row: Any) -> Cell:
    if row is None or math.isnan(row.estimate):
        return Cell("")
    tested = ("p", row.p_value) if (row.metric, row.target) == PRIMARY_PAIR else ("q", row.q_value)
    details = []
    if not math.isnan(row.seed_sds):
        details.append(f"{signed(row.seed_sds)} SD")
    if row.method == "incremental R2" and row.variance_inflation >= 5:
        finite = math.isfinite(row.variance_inflation)
        details.append(f"inflation {row.variance_inflation:.0f}" if finite else "explained")
    if not math.isnan(row.with_diverged):
        details.append(f"with diverged {signed(row.with_diverged)}")
    digits = 3 if row.method == "incremental R2" else 2
    return estimate(row.estimate, row.low, row.high, digits, tested, details)


def _wide(frame: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Return one row per (metric, target), with the methods side by side."""
    wide = frame[["metric", "target"]].drop_duplicates()
    for method in methods:
        of = frame[frame["method"] == method].drop_duplicates(["metric", "target"]).drop(columns="method")
        of = of.rename(columns={name: f"{method} {name}" for name in of.columns if name not in _KEYS})
        wide = wide.merge(of, on=["metric", "target"], how="left")
    return wide


def _about(results: AnalysisResults) -> str:
    left_out = int(results.associations["left_out"].max())
    tested = int(results.associations["q_value"].notna().sum())
    diverged = ' "With diverged" includes the last rows of runs that diverged.' if results.final.diverged else ""
    runs = "run that diverged or didn't finish is" if left_out == 1 else "runs that diverged or didn't finish are"
    return (
        f"Over final rows, clustered by configuration; {f'{left_out} {runs}' if left_out else 'no run is'} left out."
        f"{diverged} \N{GREEK SMALL LETTER RHO} is "
        "Spearman's rank correlation, with its 95 % interval. Partial: given every setting that varies, as ranks "
        "(misled by a setting with a U-shaped effect) and as factors. "
        "\N{GREEK CAPITAL LETTER DELTA}R\N{SUPERSCRIPT TWO}: what the metric adds to a linear prediction from size, "
        "compute and tokens on unseen configurations. Mixed model: change of the loss per standard deviation "
        "of the metric, with sizes as groups. q: p-values corrected together "
        f"(Benjamini and Hochberg), {tested} of them on this page; the first row is the pair declared beforehand, "
        "whose p-values aren't corrected. Inflation: the factor by which the baseline inflates the variance of "
        "its coefficient. SD: the effect in standard deviations over seeds."
    )
