"""Figures of what the statistics say, for papers: correlations, saturation, shares of variance, prediction."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sweeps.analysis.prediction import GAIN
from sweeps.report import figure_parts as parts
from sweeps.report.words import setting_name
from sweeps.table.columns import PRIMARY_PAIR, loss_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from sweeps.analysis.results import AnalysisResults

_MOST_METRICS, _MOST_LOSSES, _MOST_BARS, _MOST_TARGETS, _MOST_FEATURES = 30, 16, 16, 6, 12
_NUMBERS_IN_CELLS = 150  # with more cells than this the colours alone are legible
_FORMS = {"raw": "Raw", "partial rank": "Settings as ranks", "partial factor": "Settings as factors"}
_R2 = "R\N{SUPERSCRIPT TWO} out of fold"


@parts.styled
def correlation_matrix(results: "AnalysisResults") -> "Figure":
    """Spearman's rho of each metric and loss, raw and given the settings in both forms; white: it can't be given."""
    known = results.associations[results.associations["estimate"].notna()]
    known = known[known["method"].isin(_FORMS)]
    if known.empty:
        return parts.lacking("no correlation can be given" if len(results.associations) else "no pair to correlate")
    metrics, losses = _first(known["metric"], _MOST_METRICS), _first(known["target"], _MOST_LOSSES)
    height = 1.1 + 0.14 * len(metrics) + 0.06 * max(map(len, losses))
    figure, [row] = parts.panels(1, len(_FORMS), parts.DOUBLE, height, sharey=True)
    for axes, (method, title) in zip(row, _FORMS.items(), strict=True):
        of = known[known["method"] == method].drop_duplicates(["metric", "target"])
        matrix_MT = of.pivot(index="metric", columns="target", values="estimate").reindex(metrics, columns=losses)
        image = _matrix(axes, matrix_MT.to_numpy(dtype=float))
        axes.set_title(title)
        axes.set_xticks(range(len(losses)), [parts.loss_name(c) for c in losses], rotation=90, fontsize=6.0)
        axes.set_yticks(range(len(metrics)), [parts.column_name(c) for c in metrics], fontsize=6.0)
    figure.colorbar(image, ax=row, label="Spearman's \N{GREEK SMALL LETTER RHO}", shrink=0.9)
    there = known["metric"].nunique(), known["target"].nunique()
    if there != (len(metrics), len(losses)):
        told = f"{len(metrics)} of {there[0]} metrics, {len(losses)} of {there[1]} losses"
        figure.suptitle(told, fontsize=7.0)
    return figure


@parts.styled
def saturation_quadrants(results: "AnalysisResults") -> "Figure":
    """Rise of the loss after its best against rank, a point a run, filled if it degraded; how many did of each rank."""
    of = results.saturation
    x_N, y_N = parts.values(of.runs, "rank_percent"), parts.values(of.runs, "rise")
    if not (np.isfinite(x_N) & np.isfinite(y_N)).any():
        return parts.lacking(of.note or "no run has both a rise of its loss and a rank")
    figure, [[axes]] = parts.panels(1, 1)
    degraded_N = of.runs["degraded"].map({True: "degraded", False: "not degraded"}).fillna("can't be told").to_numpy()
    for label, fill in (("degraded", parts.COLOURS[1]), ("not degraded", "white"), ("can't be told", parts.GREY)):
        which_N = degraded_N == label
        if which_N.any():
            axes.scatter(x_N[which_N], y_N[which_N], s=16, c=fill, edgecolors="black", linewidths=0.5, label=label)
    if np.isfinite(of.median_rank):
        axes.axvline(of.median_rank, color=parts.GREY, linestyle="--", linewidth=0.7)
    axes.set_title(_of_rank(of.quadrants, "low"), loc="left", fontsize=6.0)
    axes.set_title(_of_rank(of.quadrants, "high"), loc="right", fontsize=6.0)
    axes.set_xlabel("Effective rank of W, % of D")
    axes.set_ylabel("Rise of loss after its best, nats")
    axes.legend(fontsize=6.0)
    return figure


@parts.styled
def variance_split(results: "AnalysisResults") -> "Figure":
    """What share of each column's variance each setting, the seed and the rest bear, as stacked bars."""
    known = results.variance[results.variance["share"].notna()]
    if known.empty:
        return parts.lacking(_why(results.variance, "no column's variance can be split"))
    columns, settings = _first(known["column"], _MOST_BARS), list(dict.fromkeys(known["setting"]))
    settings.sort(key=lambda s: ("seed", "rest").index(s) + 1 if s in ("seed", "rest") else 0)
    losses = loss_columns(results.table)
    figure, [[axes]] = parts.panels(1, 1, parts.DOUBLE, 1.0 + 0.22 * len(columns))
    left_C = np.zeros(len(columns))
    for i, setting in enumerate(settings):
        of = known[known["setting"] == setting].drop_duplicates("column").set_index("column")["share"]
        share_C = of.reindex(columns).fillna(0.0).clip(lower=0.0).to_numpy(dtype=float)
        look = _bar_look(i, setting)
        axes.barh(range(len(columns)), share_C, left=left_C, edgecolor="white", linewidth=0.4, **look)
        left_C = left_C + share_C
    axes.set_yticks(range(len(columns)), [parts.any_name(c, losses) for c in columns], fontsize=6.5)
    axes.invert_yaxis()
    axes.set_xlabel("Share of variance over runs")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=6.5)
    _say_cut(figure, len(columns), known["column"].nunique(), "columns")
    return figure


@parts.styled
def prediction(results: "AnalysisResults") -> "Figure":
    """R2 out of fold from settings, and from settings and geometry, by target and model; and what the best rests on."""
    known = _scores(results.prediction)
    if known.empty:
        return parts.lacking(_why(results.prediction, "nothing was predicted"))
    targets = _first(known["target"], _MOST_TARGETS)
    pairs = [(t, m) for t in targets for m in dict.fromkeys(known.loc[known["target"] == t, "model"])]
    importance = _importance(results.importance, targets[0])
    height = 1.0 + 0.2 * max(len(pairs), len(importance))
    figure, [row] = parts.panels(1, 2 if len(importance) else 1, parts.DOUBLE, height)
    for i, features in enumerate(dict.fromkeys(known["features"])):
        of = known[known["features"] == features].drop_duplicates(["target", "model"]).set_index(["target", "model"])
        of = of.reindex(pd.MultiIndex.from_tuples(pairs))
        _intervals(row[0], of, "r2", i, features)
    row[0].set_yticks(range(len(pairs)), [f"{parts.loss_name(t)}\n{parts.plain(m)}" for t, m in pairs], fontsize=6.0)
    row[0].invert_yaxis()
    # An R2 far below 0 says no more than one just below it, and would flatten the others.
    row[0].set_xlim(max(float(known[["r2", "low"]].min().min()) - 0.1, -1.5), 1.05)
    row[0].axvline(0.0, color=parts.GREY, linewidth=0.5)
    row[0].set_xlabel(_R2)
    row[0].legend(fontsize=6.0, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    if len(importance):
        _intervals(row[1], importance, "importance", 0, "")
        row[1].set_yticks(range(len(importance)), [_feature_name(f) for f in importance["feature"]], fontsize=6.0)
        row[1].invert_yaxis()
        row[1].set_xlabel("R\N{SUPERSCRIPT TWO} lost when shuffled")
        row[1].set_title(f"{parts.loss_name(targets[0])}, {importance['model'].iloc[0]}")
    _say_cut(figure, len(targets), known["target"].nunique(), "targets")
    return figure


@parts.styled
def early_prediction(results: "AnalysisResults") -> "Figure":
    """R2 out of fold of the final loss from what is known after a share of training, by what it is told from."""
    known = _scores(results.early)
    if known.empty:
        return parts.lacking(_why(results.early, "nothing was predicted from early training"))
    targets = _first(known["target"], 4)
    figure, [row] = parts.panels(1, len(targets), parts.SINGLE if len(targets) == 1 else parts.DOUBLE, sharey=True)
    features = list(dict.fromkeys(known["features"]))
    for axes, target in zip(row, targets, strict=True):
        for i, told in enumerate(features):
            of = known[(known["target"] == target) & (known["features"] == told)].sort_values("share")
            at = 100 * of["share"].astype(float) + 1.2 * (i - (len(features) - 1) / 2)  # side by side
            bars = parts.reach(of["r2"], of["low"], of["high"])
            axes.errorbar(at, of["r2"], bars, capsize=1.5, markersize=3, label=parts.plain(told), **parts.look(i))
        axes.set_xticks(sorted(100 * known["share"].astype(float).unique()))
        axes.xaxis.set_major_formatter(parts.amount)
        axes.set_xlabel("% of training")
        axes.set_title(parts.loss_name(target))
    row[0].set_ylabel(_R2)
    row[0].set_ylim(max(float(known["r2"].min()) - 0.3, -1.5), 1.05)
    row[0].legend(fontsize=6.0)
    _say_cut(figure, len(targets), known["target"].nunique(), "targets")
    return figure


def _matrix(axes: "Axes", value_MT: np.ndarray) -> "AxesImage":
    image = axes.imshow(value_MT, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    if value_MT.size <= _NUMBERS_IN_CELLS:
        for (m, t), value in np.ndenumerate(value_MT):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.65 else "black"
                text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
                axes.text(t, m, text, ha="center", va="center", fontsize=5.5, color=colour)
    return image


def _of_rank(quadrants: pd.DataFrame, rank: str) -> str:
    runs = {bool(q.degraded): int(q.runs) for q in quadrants.itertuples(index=False) if q.rank == rank}
    return f"{rank} rank: {runs.get(True, 0)} degraded, {runs.get(False, 0)} not"


def _intervals(axes: "Axes", of: pd.DataFrame, column: str, place: int, label: str) -> None:
    """Points with their intervals, a row each; `place` sets series apart."""
    value_R = of[column].to_numpy(dtype=float)
    bars = parts.reach(value_R, of["low"], of["high"])
    axes.errorbar(
        value_R,
        np.arange(len(of)) + 0.18 * place,
        xerr=bars,
        linestyle="none",
        capsize=1.5,
        markersize=3,
        label=parts.plain(label),
        **parts.look(place),
    )


def _scores(found: pd.DataFrame) -> pd.DataFrame:
    """Rows that hold an R2; a gain is a difference of two."""
    return found[found["r2"].notna() & (found["features"] != GAIN)]


def _importance(importance: pd.DataFrame, target: str) -> pd.DataFrame:
    """The features that the first model of a target rests on most."""
    of = importance[(importance["target"] == target) & importance["importance"].notna()]
    of = of[of["model"] == of["model"].iloc[0]] if len(of) else of
    return of.sort_values("importance", ascending=False, kind="stable").head(_MOST_FEATURES)


def _feature_name(feature: str) -> str:
    if feature.startswith("config."):
        return parts.plain(setting_name(feature))
    return parts.column_name(feature) if "/" in feature else parts.plain(feature.replace("_", " "))


def _bar_look(place: int, setting: str) -> dict[str, Any]:
    """Colours first, then the same ones hatched; seed and rest are grey."""
    if setting in ("seed", "rest"):
        return {"color": parts.GREY if setting == "seed" else "#E0E0E0", "label": setting}
    hatch = ("", "///", "...", "xxx")[place // len(parts.COLOURS) % 4]
    colour = parts.COLOURS[place % len(parts.COLOURS)]
    return {"color": colour, "hatch": hatch, "label": parts.plain(setting_name(setting))}


def _first(column: pd.Series, most: int) -> list[str]:
    """The values in order, so many at most; those of the pair declared beforehand come first."""
    return sorted(dict.fromkeys(column), key=lambda name: name not in PRIMARY_PAIR)[:most]


def _why(frame: pd.DataFrame, otherwise: str) -> str:
    notes = [note for note in frame["note"] if isinstance(note, str) and note]
    return notes[0] if notes else otherwise


def _say_cut(figure: "Figure", shown: int, there: int, what: str) -> None:
    if shown < there:
        figure.suptitle(f"{shown} of {there} {what}", fontsize=7.0)
