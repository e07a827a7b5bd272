"""What quantisation and fine-tuning do to trained models, against their geometry."""

import altair as alt
import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.item import Figure, NothingToShow, report_item
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import PRIMARY_PAIR

_METRIC, _LOSS = PRIMARY_PAIR
_METHODS = {"round_to_nearest": "rounding", "gptq": "GPTQ"}
_RANK = "effective rank of W, % of D"
_RISE = "rise of in-domain loss, nats"


@report_item(section="after", order=10)
def effects(results: AnalysisResults) -> Figure:
    """Effect of quantisation or fine-tuning on the loss against a geometry metric, one point per run."""
    of_runs = pd.concat([frame for frame in (_rises(results), _tunings(results)) if len(frame)] or [pd.DataFrame()])
    metrics = charts.kinds(results)[0]
    if of_runs.empty or not metrics:
        raise NothingToShow("no quantisation or fine-tuning of a finished run")
    names = list(dict.fromkeys(of_runs["effect"]))
    wide = of_runs.pivot_table(index="run", columns="effect", values="change", sort=False)[names].reset_index()
    final = charts.final_data(results)
    chart = charts.by_runs(alt.Chart(alt.NamedData("effects"))).transform_lookup(
        "run", from_=alt.LookupData(alt.NamedData("final"), key="run"), as_="at"
    )
    chart = chart.transform_calculate(x="datum.at[metric]", y="datum[effect]")
    chart = charts.scatter(chart, "metric", "effect")
    chart = chart.properties(width=420, height=300).add_params(
        charts.choice("effect", "effect", names), charts.choice("metric", "against", metrics)
    )
    note = "Nats per token. A rise is the loss after quantisation minus the loss before, on the same documents."
    return charts.figure(chart, {"effects": wide, "final": final}, note, results)


@report_item(section="after", order=20)
def quantisation(results: AnalysisResults) -> Figure:
    """Rise of the in-domain loss against bits per weight, one line per run, with means; at the fewest, against rank."""
    data = _rises(results)
    data = data[data["scope"] == "blocks"] if len(data) else data
    if data.empty:
        raise NothingToShow("no finished run was quantised")
    data = data[["run", "method", "bits", "change", "rank"]].reset_index(drop=True)
    data["fewest"] = data["bits"] == data.groupby("method")["bits"].transform("min")
    base = charts.by_runs(alt.Chart(alt.NamedData("quantised")))
    tooltip = [charts.ABOUT, "method:N", "bits:Q", alt.Tooltip("change:Q", format=".4~g")]
    bits = alt.X("bits:O").title("bits per weight").axis(labelAngle=0)
    change = charts.y("change", _RISE)
    runs = base.mark_line(opacity=0.45).encode(
        bits, change, detail="run:N", strokeDash=alt.StrokeDash("method:N"), tooltip=tooltip, **charts.level()
    )
    means = base.mark_point(size=70).encode(
        bits, charts.y("mean(change)", _RISE), shape=alt.Shape("method:N").title("mean"), color=alt.value(charts.GREY)
    )
    right = base.transform_filter("datum.fewest && isValid(datum.rank)").mark_point().encode(
        charts.x("rank", _RANK), change, shape=alt.Shape("method:N"), tooltip=tooltip, **charts.level()
    )  # fmt: skip
    chart = alt.hconcat((runs + means).properties(width=260), right.properties(width=300, title="at the fewest bits"))
    return charts.figure(chart, {"quantised": data}, "", results)


@report_item(section="after", order=30)
def finetuning(results: AnalysisResults) -> Figure:
    """Forgetting against the loss on the fine-tuning text, by learning rate; at the highest rate, against rank."""
    data = _tunings(results)
    data = data[data["what"] == "forgetting"] if len(data) else data
    if data.empty:
        raise NothingToShow("no finished run was fine-tuned")
    data = data[["run", "target", "rate", "change", "after", "rank"]].reset_index(drop=True)
    data["highest"] = data["rate"] == data.groupby("target")["rate"].transform("max")
    base = (
        charts.by_runs(alt.Chart(alt.NamedData("finetuned")))
        .mark_point()
        .encode(
            charts.y("change", _RISE),
            alt.Color("rate:O").title("learning rate").legend(labelExpr=charts.LABEL),
            alt.Shape("target:N").title("fine-tuned on"),
            tooltip=[charts.ABOUT, "target:N", "rate:Q", alt.Tooltip("change:Q", format=".4~g")],
        )
    )
    left = base.transform_filter("isValid(datum.after)").encode(charts.x("after", "loss on the target afterwards"))
    right = base.transform_filter("datum.highest && isValid(datum.rank)").encode(charts.x("rank", _RANK))
    chart = alt.hconcat(left.properties(width=280), right.properties(width=280, title="at the highest rate"))
    return charts.figure(chart, {"finetuned": data}, "", results)


def _rises(results: AnalysisResults) -> pd.DataFrame:
    """Return one row per run and quantisation: run, effect, method, scope, bits, change (of in-domain loss), rank."""
    rows = results.final.rows
    catalog = catalog_of(rows)
    frames = []
    for method, name in _METHODS.items():
        for column in catalog.select(kind="loss", after="quantize", method=method, domain="in_domain"):
            of = catalog[column].of
            variant = f" in groups of {of['group']}" if "group" in of else ""
            variant += "" if of["scope"] == "blocks" else f" {of['scope']}".replace("_", " ")
            effect = f"{name} to {of['bits']} bits{variant}: rise of in-domain loss"
            rise_N = charts.values(rows, column) - charts.values(rows, _LOSS)
            frames.append(_frame(rows, effect, rise_N, method=f"{name}{variant}", scope=of["scope"], bits=of["bits"]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _tunings(results: AnalysisResults) -> pd.DataFrame:
    """Return one row per run and fine-tuning: run, effect, what, target, rate, change, after (loss on it), rank."""
    rows = results.final.rows
    catalog = catalog_of(rows)
    frames = []
    for column in catalog.select(after="finetune"):
        of = catalog[column].of
        forgetting = of.get("measure") == "forgetting"
        if of.get("rate") in (None, "best") or not (forgetting or of.get("domain") == "target"):
            continue
        key = {"target": of["target"], "rate": of["rate"]}
        after = (*catalog.select(kind="loss", after="finetune", domain="target", **key), "")[0]
        what = "forgetting" if forgetting else "loss on its text"
        words = str(of["target"]).replace("_", " ")
        effect = f"fine-tuning on {words} at rate {of['rate']:g}: {what}"
        frames.append(_frame(rows, effect, charts.values(rows, column), what=what, after=charts.values(rows, after),
                             target=words, rate=of["rate"]))  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _frame(rows: pd.DataFrame, effect: str, change_N: np.ndarray, **of: object) -> pd.DataFrame:
    known = {"run": rows["run_id"].astype(str), "change": change_N, "rank": charts.values(rows, _METRIC)}
    frame = pd.DataFrame(known).assign(effect=charts.printable(effect), **of)
    return frame[np.isfinite(frame["change"])]
