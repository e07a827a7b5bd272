"""What the statistics over all finished runs say: saturation, shares of variance, predictions."""

import math
from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from sweeps.analysis.prediction import GAIN
from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.item import Figure, NothingToShow, Table, report_item
from sweeps.report.names import loss_name
from sweeps.report.words import counted, describe, setting_name
from sweeps.table.columns import loss_columns

_MOST_BARS, _MOST_TARGETS, _MOST_EARLY, _MOST_FEATURES = 16, 6, 4, 14
_R2 = "R\N{SUPERSCRIPT TWO}"
_OUT_OF_FOLD = f"out-of-fold {_R2}"
_INTERVALS = ["low:Q", "high:Q"]


@report_item(section="saturation", order=10)
def saturation_quadrants(results: AnalysisResults) -> Figure:
    """Rise of each run's in-domain loss after its minimum, against the effective rank at the end."""
    of = results.saturation
    if not np.isfinite(charts.values(of.runs, "rank_percent") * charts.values(of.runs, "rise")).any():
        raise NothingToShow(of.note or "no run has both a rise of its loss and a rank")
    error = 2 * np.nan_to_num(charts.values(of.runs, "standard_error"))
    rise = charts.values(of.runs, "rise")
    data = pd.DataFrame(
        {
            "run": of.runs["run_id"].astype(str),
            "rank": charts.values(of.runs, "rank_percent"),
            "rise": rise,
            "low": rise - error,
            "high": rise + error,
            "loss": of.runs["degraded"].map({True: "degraded", False: "not degraded"}).fillna("unknown"),
        }
    ).dropna(subset=["rank", "rise"])
    base = charts.by_runs(alt.Chart(alt.NamedData("saturation"))).encode(
        charts.x("rank", "effective rank of W at the end, % of D"), **charts.level()
    )
    points = base.mark_point().encode(
        charts.y("rise", "rise of loss after its minimum, nats"),
        shape=alt.Shape("loss:N")
        .title("loss")
        .scale(domain=["degraded", "not degraded", "unknown"], range=["triangle-up", "circle", "cross"]),
        tooltip=[charts.ABOUT, alt.Tooltip("rank:Q", format=".4~g"), alt.Tooltip("rise:Q", format=".3~g"), "loss:N"],
    )
    chart = base.mark_rule().encode(alt.Y("low:Q"), alt.Y2("high:Q")) + points
    if np.isfinite(of.median_rank):
        chart += (
            alt.Chart(alt.NamedData("median_rank")).mark_rule(strokeDash=[4, 3], color=charts.GREY).encode(x="rank:Q")
        )
    runs = of.quadrants.groupby(["rank", "degraded"])["runs"].sum()
    counts = [f"{rank} rank: {runs.get((rank, True), 0)} degraded, {runs.get((rank, False), 0)} not"
              for rank in ("low", "high")]  # fmt: skip
    chart = chart.properties(width=420, height=280, title=alt.Title("; ".join(counts), fontWeight="normal"))
    note = (
        "Bars are two standard errors; the vertical line is the median rank. A run is degraded if its rise is more "
        "than two standard errors. The minimum is found on the same documents, so a rise is never negative."
    )
    data_of = {"saturation": data, "median_rank": pd.DataFrame({"rank": [float(of.median_rank)]})}
    return charts.figure(chart, data_of, f"{note} {_sentence(of.note)}".strip(), results)


@report_item(section="saturation", order=20)
def saturation(results: AnalysisResults) -> Table:
    """Runs of low and high rank, degraded or not: counts, examples, and whether the rank collapsed first."""
    of = results.saturation
    if of.runs.empty:
        raise NothingToShow(of.note or "no finished run")
    sentences = []
    if of.lead.n:
        runs = counted(of.lead.n, "degraded run")
        sentences.append(f"In {runs} the rank collapsed; its lead over the minimum of the loss is {describe(of.lead)} "
                         "of training (median over configurations; negative: it came later).")  # fmt: skip
    if not math.isnan(of.association.estimate):
        sentences.append(f"Association of low rank with degradation (phi): {describe(of.association)}.")
    rows = [
        [cell(row.rank), cell(bool(row.degraded)), cell(", ".join(map(str, row.examples)), kind="name"), cell(row.runs),
         cell(row.configurations)]
        for row in of.quadrants.itertuples(index=False)
    ]  # fmt: skip
    frame = of.quadrants.assign(examples=[", ".join(map(str, runs)) for runs in of.quadrants["examples"]])
    return Table(
        "Runs by rank, and by whether the loss rose after its minimum",
        ["rank", "degraded", "examples", "runs", "configurations"],
        rows,
        frame,
        text_columns=3,
        note=" ".join(sentences),
    )


@report_item(section="variance", order=10)
def variance_split(results: AnalysisResults) -> Figure:
    """Share of each column's variance over runs that each setting, the seed and the rest explain."""
    known = results.variance[results.variance["share"].notna()]
    if known.empty:
        raise NothingToShow(_reason(results.variance, "no setting differs between finished runs"))
    columns = charts.first_of(known["column"], _MOST_BARS)
    names = charts.names_of(columns, loss_columns(results.table))
    varied = [s for s in dict.fromkeys(known["setting"]) if s not in ("seed", "rest")]
    settings = {s: setting_name(s) for s in [*varied, *(s for s in ("seed", "rest") if (known["setting"] == s).any())]}
    data = known[known["column"].isin(columns)].drop_duplicates(["column", "setting"])
    data = pd.DataFrame(
        {
            "column": data["column"].map(names),
            "setting": data["setting"].map(settings),
            "place": data["setting"].map({s: i for i, s in enumerate(settings)}),
            "share": data["share"].clip(lower=0.0),
            "low": data["low"],
            "high": data["high"],
        }
    )
    chart = alt.Chart(alt.NamedData("variance")).mark_bar().encode(
        alt.X("share:Q").title("share of variance over runs").scale(domain=[0, 1], clamp=True),
        alt.Y("column:N").title(None).sort(list(names.values())),
        charts.apart("setting", order=list(settings.values()), grey=("seed", "rest")),
        order="place:Q",
        tooltip=["column:N", "setting:N", *_numbers("share", "low", "high")],
    )  # fmt: skip
    left_out = f" Shown: {len(columns)} of {known['column'].nunique()} columns; all are in the table."
    note = (
        "How much of a column's variance over finished runs each setting explains by itself (its average gain over all "
        "orders in which settings enter), how much is between seeds of a configuration, and how much is left, such as "
        "interactions of settings. This holds for this grid: a setting that hardly varies in it can't explain much."
    )
    note += left_out if len(columns) < known["column"].nunique() else ""
    return charts.figure(chart.properties(width=420), {"variance": data}, note)


@report_item(section="variance", order=20)
def variance(results: AnalysisResults) -> Table:
    """Shares of each column's variance over runs by setting, with their intervals."""
    frame = results.variance
    if frame.empty:
        raise NothingToShow("no setting differs between finished runs")
    settings, columns = list(dict.fromkeys(frame["setting"])), list(dict.fromkeys(frame["column"]))
    names = charts.names_of(columns, loss_columns(pd.DataFrame(columns=columns)))
    rows = []
    for column, of in frame.groupby("column", sort=False):
        by_setting = of.set_index("setting")[["share", "low", "high"]].reindex(settings)
        shares = [estimate(row.share, row.low, row.high, 3) for row in by_setting.itertuples()]
        notes = "; ".join(dict.fromkeys(note for note in of["note"] if note))
        name = cell(column, names[column], "name")
        rows.append([name, cell(int(of["n"].max())), *shares, cell(notes, kind="notes")])
    heads = ["column", "n", *map(setting_name, settings), "note"]
    return Table("Share of variance over runs by setting, with 95 % intervals", heads, rows, frame, folded=True)


@report_item(section="prediction", order=10)
def prediction(results: AnalysisResults) -> Figure:
    """How well settings, and settings with geometry, predict a final loss of configurations unseen by the fit."""
    known = _scores(results.prediction)
    if known.empty:
        raise NothingToShow(_reason(results.prediction, "no loss could be predicted"))
    targets = charts.first_of(known["target"], _MOST_TARGETS)
    data = known[known["target"].isin(targets)].assign(loss=known["target"].map(loss_name))
    data = data[["loss", "model", "features", "r2", "low", "high", "n"]]
    # An R2 far below 0 says no more than one just below it, and would flatten the others.
    lowest = max(float(known[["r2", "low"]].min().min()) - 0.1, -1.5)
    base = alt.Chart().encode(
        alt.Y("model:N").title(None), alt.YOffset("features:N"), charts.apart("features", "predicted from"),
        tooltip=["loss:N", "model:N", "features:N", *_numbers("r2", "low", "high"), "n:Q"],
    )  # fmt: skip
    across = alt.X("r2:Q").title(_OUT_OF_FOLD).scale(domain=[lowest, 1], clamp=True)
    layers = alt.layer(
        base.mark_rule(clip=True).encode(alt.X("low:Q").scale(domain=[lowest, 1], clamp=True), alt.X2("high:Q")),
        base.mark_point().encode(across),
        data=alt.NamedData("prediction"),
    )
    chart = layers.properties(width=250, height=alt.Step(18)).facet(
        alt.Facet("loss:N").title(None).sort([loss_name(t) for t in targets]), columns=2
    )
    note = (
        f"{_R2} on runs of configurations that the fit hasn't seen, with 95 % intervals. At 0 a prediction is as good "
        "as the mean, below 0 it is worse. The gain from geometry, with its interval, is in the table."
    )
    return charts.figure(chart, {"prediction": data}, note)


@report_item(section="prediction", order=20)
def importance(results: AnalysisResults) -> Figure:
    """How much R2 is lost when one column is shuffled."""
    known = results.importance[results.importance["importance"].notna()]
    if known.empty:
        raise NothingToShow("no loss could be predicted from settings and geometry")
    targets = [loss_name(t) for t in charts.first_of(known["target"], len(known))]
    features = list(dict.fromkeys(known["feature"]))
    names = charts.names_of(f for f in features if "/" in f or f.startswith("config."))
    named = {f: names.get(f, charts.printable(f.replace("_", " "))) for f in features}
    data = known.assign(loss=known["target"].map(loss_name), feature=known["feature"].map(named))
    data["place"] = data.groupby(["target", "model"])["importance"].rank(ascending=False, method="first")
    data = data.loc[data["place"] <= _MOST_FEATURES, ["loss", "model", "feature", "importance", "low", "high"]]
    base = alt.Chart().transform_filter("datum.loss == loss").encode(
        alt.Y("feature:N").title(None).sort(field="importance", op="max", order="descending"),
        tooltip=["model:N", "feature:N", *_numbers("importance", "low", "high")],
    )  # fmt: skip
    layers = alt.layer(
        base.mark_bar(opacity=0.7).encode(alt.X("importance:Q").title(f"{_R2} lost when shuffled")),
        base.mark_rule().encode(alt.X("low:Q"), alt.X2("high:Q")),
        data=alt.NamedData("importance"),
    )
    chart = layers.properties(width=210).facet(alt.Facet("model:N").title(None), columns=3)
    chart = chart.resolve_scale(y="independent").add_params(charts.choice("loss", "loss", targets))
    note = 'At most 2. Correlated columns can replace each other; "all geometry" shuffles all of its columns at once.'
    return charts.figure(chart, {"importance": data}, note)


@report_item(section="prediction", order=30)
def early_prediction(results: AnalysisResults) -> Figure:
    """How well the final loss is predicted from what is known after a share of training."""
    known = _scores(results.early)
    if known.empty:
        raise NothingToShow(_reason(results.early, "no loss could be predicted from early training"))
    targets = charts.first_of(known["target"], _MOST_EARLY)
    data = known[known["target"].isin(targets)].assign(
        loss=known["target"].map(loss_name), percent=(100 * known["share"]).round(6)
    )
    data = data[["loss", "percent", "features", "r2", "low", "high", "n"]]
    lowest = max(float(known["r2"].min()) - 0.3, -1.5)
    base = alt.Chart().encode(
        alt.X("percent:O").title("% of training done").axis(labelAngle=0),
        alt.XOffset("features:N").sort(list(dict.fromkeys(known["features"]))),
        charts.apart("features", "predicted from", list(dict.fromkeys(known["features"]))),
        tooltip=["percent:O", "features:N", *_numbers("r2", "low", "high"), "n:Q"],
    )  # fmt: skip
    scale = alt.Scale(domain=[lowest, 1], clamp=True)
    layers = alt.layer(
        base.mark_rule(clip=True).encode(alt.Y("low:Q").scale(scale), alt.Y2("high:Q")),
        base.mark_point().encode(alt.Y("r2:Q").title(_OUT_OF_FOLD).scale(scale)),
        data=alt.NamedData("early"),
    )
    chart = layers.properties(width=320).facet(
        alt.Facet("loss:N").title(None).sort([loss_name(t) for t in targets]), columns=2
    )
    return charts.figure(chart, {"early": data})


@report_item(section="prediction", order=40)
def predictions(results: AnalysisResults) -> Table:
    """Out-of-fold R2 of each loss by model, from settings without and with geometry, and the gain from geometry."""
    keys = ["target", "model", "features"]
    return _table(f"Prediction of loss: {_OUT_OF_FOLD}", results.prediction, results.prediction, keys, "r2")


@report_item(section="prediction", order=50)
def early(results: AnalysisResults) -> Table:
    """Out-of-fold R2 of the final loss by the share of training that is known, and the gain from geometry."""
    named = results.early.assign(share=[f"{100 * share:.0f} %" for share in results.early["share"]])
    return _table(
        f"Prediction from early training: {_OUT_OF_FOLD}", named, results.early, ["target", "share", "features"], "r2"
    )


def _table(label: str, shown: pd.DataFrame, frame: pd.DataFrame, keys: Sequence[str], value: str) -> Table:
    """Return a table of estimates, one row per row of `shown`; `frame` is what is stored."""
    if frame.empty:
        raise NothingToShow("no finished run")
    rows = [
        [*(cell(row[key], kind="name") for key in keys), estimate(row[value], row["low"], row["high"], 3),
         cell(int(row["n"])), cell(row["note"], kind="notes")]
        for row in shown.to_dict("records")
    ]  # fmt: skip
    head = _R2 if value == "r2" else value
    return Table(label, [*keys, head, "n", "note"], rows, frame, text_columns=len(keys), folded=True)


def _scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that hold an R2; a gain is a difference of two."""
    return frame[frame["r2"].notna() & (frame["features"] != GAIN)]


def _reason(frame: pd.DataFrame, otherwise: str) -> str:
    notes = [note for note in frame["note"] if isinstance(note, str) and note]
    return notes[0] if notes else otherwise


def _numbers(*fields: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:Q", format=".3f") for field in fields]


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}." if note else ""
