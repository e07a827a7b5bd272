"""Figures of the last rows, for papers: loss against geometry, U-shapes, quantisation and fine-tuning."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sweeps.report import figure_parts as parts
from sweeps.report.words import setting_name
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import PRIMARY_PAIR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sweeps.analysis.results import AnalysisResults

_METRIC, _LOSS = PRIMARY_PAIR
_RANK_LABEL = "Effective rank of W, % of D"
_MOST_SETTINGS, _MOST_PANELS, _PANELS_A_ROW = 3, 8, 4
_METHODS = {"round_to_nearest": "rounding", "gptq": "GPTQ"}
_SIZES = ("parameters_non_embedding", "parameters")


@parts.styled
def loss_against_geometry(results: "AnalysisResults") -> "Figure":
    """The pair declared beforehand, a point a run; a panel each of the first settings, which colour the points."""
    rows = results.final.rows
    x_N, y_N = parts.values(rows, _METRIC), parts.values(rows, _LOSS)
    if why := _lacking(rows, _METRIC, _LOSS):
        return parts.lacking(why)
    settings = results.settings[:_MOST_SETTINGS] or [""]
    figure, [row] = parts.panels(1, len(settings), parts.SINGLE if len(settings) == 1 else parts.DOUBLE, sharey=True)
    for axes, setting in zip(row, settings, strict=True):
        colours = parts.levels(rows, setting)
        _points(axes, x_N, y_N, [colours.of(run) for run in rows["run_id"]])
        axes.set_xlabel(_RANK_LABEL)
        colours.legend(axes, marker="o")
    row[0].set_ylabel(parts.LOSS_LABEL)
    return figure


@parts.styled
def u_shapes(results: "AnalysisResults") -> "Figure":
    """Mean in-domain loss and effective rank against each number that varies within a size, one line per size.

    A point is the mean over the configurations of a size at that value, whatever else differs between them; its bar
    goes from the mean of their lowest seeds to that of their highest. [ours]
    """
    rows = results.final.rows
    shown = [c for c in (_LOSS, _METRIC) if np.isfinite(parts.values(rows, c)).any()]
    if not shown:
        return parts.lacking(_lacking(rows, _LOSS))
    sizes = next((c for c in _SIZES if c in rows.columns), "")
    rows = rows.assign(size=rows[sizes] if sizes else 0)
    settings = [c for c in results.settings if _varies_within_size(rows, c)]
    if not settings:
        return parts.lacking("no setting that is a number varies within a size")
    drawn = settings[:_MOST_PANELS]
    across = min(len(drawn), _PANELS_A_ROW)
    bands = -(-len(drawn) // across)
    figure, grid = parts.panels(bands * len(shown), across, parts.DOUBLE if across > 1 else parts.SINGLE, 1.7)
    for i, setting in enumerate(drawn):
        band, place = divmod(i, across)
        for j, column in enumerate(shown):
            axes = grid[band * len(shown) + j][place]
            _u_shape(axes, rows, setting, column)
            if j == len(shown) - 1:
                axes.set_xlabel(parts.plain(setting_name(setting)))
            if place == 0:
                axes.set_ylabel({_LOSS: "In-domain loss", _METRIC: "Effective rank, %"}[column])
    for axes in (a for line in grid[-len(shown) :] for a in line[len(drawn) - across * (bands - 1) :]):
        axes.set_axis_off()
    if rows["size"].nunique() > 1:
        grid[0][0].legend(title="Parameters", title_fontsize=6.0, fontsize=6.0)
    if len(settings) > len(drawn):
        figure.suptitle(f"{len(drawn)} of {len(settings)} settings", fontsize=7.0)
    return figure


@parts.styled
def quantisation(results: "AnalysisResults") -> "Figure":
    """Rise of the in-domain loss against bits, means over runs with their range, and, at the fewest, against rank."""
    rows = results.final.rows
    catalog = catalog_of(rows)
    quantised = catalog.select(kind="loss", after="quantize", scope="blocks", domain="in_domain")
    rises = {
        (catalog[c].of["method"], catalog[c].of["bits"]): parts.values(rows, c) - parts.values(rows, _LOSS)
        for c in quantised
    }
    rises = {key: rise_N for key, rise_N in rises.items() if np.isfinite(rise_N).any()}
    if not rises:
        return parts.lacking("no finished run was quantised")
    rank_N = parts.values(rows, _METRIC)
    figure, [[left, right]] = parts.panels(1, 2, parts.DOUBLE)
    for i, method in enumerate(m for m in _METHODS if any(m == of for of, _ in rises)):
        look = parts.look(i)
        bits = sorted(b for of, b in rises if of == method)
        told = np.array([_mean_and_range(rises[method, b]) for b in bits])
        bars = parts.reach(told[:, 0], told[:, 1], told[:, 2])
        left.errorbar(bits, told[:, 0], bars, capsize=2, label=_METHODS[method], **look)
        fewest = rises[method, bits[0]]
        right.plot(rank_N, fewest, linestyle="none", label=f"{_METHODS[method]}, {parts.count(bits[0], 'bit')}", **look)
    left.set_xticks(sorted({bits for _, bits in rises}))
    left.set_xlabel("Bits a weight")
    right.set_xlabel(_RANK_LABEL)
    for axes in (left, right):
        axes.set_ylabel("Rise of in-domain loss")
        axes.legend()
    return figure


@parts.styled
def finetuning(results: "AnalysisResults") -> "Figure":
    """What fine-tuning cost against what it gave, by learning rate, and forgetting at the highest against rank."""
    rows = results.final.rows
    catalog = catalog_of(rows)
    tunings = {}
    for column in catalog.select(kind="change", after="finetune", measure="forgetting"):
        of, forgetting_N = catalog[column].of, parts.values(rows, column)
        if np.isfinite(forgetting_N).any() and of["rate"] != "best":
            targets = catalog.select(
                kind="loss", after="finetune", domain="target", target=of["target"], rate=of["rate"]
            )
            tunings[str(of["target"]), of["rate"]] = forgetting_N, parts.values(rows, (*targets, "")[0])
    if not tunings:
        return parts.lacking("no finished run was fine-tuned")
    rates, domains = sorted({rate for _, rate in tunings}), sorted({target for target, _ in tunings})
    figure, [[left, right]] = parts.panels(1, 2, parts.DOUBLE)
    rank_N = parts.values(rows, _METRIC)
    for (target, rate), (forgetting_N, loss_N) in sorted(tunings.items(), key=lambda item: item[0]):
        name = f"{target.replace('_', ' ')}, rate {rate:g}"
        look = parts.look(rates.index(rate)) | {"marker": parts.look(domains.index(target))["marker"]}
        look |= {"label": parts.plain(name), "linestyle": "none"}
        left.plot(loss_N, forgetting_N, **look)
        if rate == max(other for of, other in tunings if of == target):
            right.plot(rank_N, forgetting_N, **look)
    left.set_xlabel("Loss on the target, after")
    right.set_xlabel(_RANK_LABEL)
    for axes in (left, right):
        axes.set_ylabel("Rise of in-domain loss")
        axes.legend(fontsize=6.0)
    return figure


def _points(axes: "Axes", x_N: np.ndarray, y_N: np.ndarray, colours: Sequence[Any]) -> None:
    axes.scatter(x_N, y_N, s=14, c=colours, linewidths=0.3, edgecolors="white")


def _u_shape(axes: "Axes", rows: pd.DataFrame, setting: str, column: str) -> None:
    frame = pd.DataFrame(
        {
            "size": rows["size"].to_numpy(),
            "at": parts.values(rows, setting),
            "configuration": rows["configuration"].to_numpy(),
            "value": parts.values(rows, column),
        }
    )
    # What differs by rounding alone is one value.
    frame["at"] = [float(f"{x:.6g}") for x in frame["at"]]
    frame = frame[np.isfinite(frame["at"]) & np.isfinite(frame["value"])]
    of = frame.groupby(["size", "at", "configuration"])["value"].agg(["mean", "min", "max"])
    means = of.groupby(level=["size", "at"]).mean()
    sizes = sorted(frame["size"].unique())
    for i, size in enumerate(sizes):
        line = means.loc[size]
        bars = parts.reach(line["mean"], line["min"], line["max"])
        axes.errorbar(
            line.index, line["mean"], bars, capsize=1.5, markersize=3, label=parts.amount(size), **parts.look(i)
        )
    parts.log_x(axes, frame["at"].to_numpy(), at_each=True)
    axes.tick_params(labelsize=6.0)


def _varies_within_size(rows: pd.DataFrame, setting: str) -> bool:
    if setting not in rows.columns or pd.api.types.is_bool_dtype(rows[setting]):
        return False
    at = pd.Series(parts.values(rows, setting), index=rows.index)
    return bool((at.groupby(rows["size"]).nunique() > 1).any())


def _mean_and_range(x_N: np.ndarray) -> tuple[float, float, float]:
    return float(np.nanmean(x_N)), float(np.nanmin(x_N)), float(np.nanmax(x_N))


def _lacking(rows: pd.DataFrame, *columns: str) -> str:
    """Why there is no point to draw; "" where there is one."""
    if rows.empty:
        return "no run has finished"
    for column in columns:
        if not np.isfinite(parts.values(rows, column)).any():
            return f"no finished run has {column}"
    both = np.all([np.isfinite(parts.values(rows, column)) for column in columns], axis=0)
    return "" if both.any() else f"no finished run has {' and '.join(columns)} both"
