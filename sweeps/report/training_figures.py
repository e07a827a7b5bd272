"""Figures over training, for papers: the loss, geometry, and the spectrum."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sweeps.report import figure_parts as parts
from sweeps.report.curves import LOSS, MAX_POINTS, by_target, metric_name, target_name, thinned
from sweeps.table.columns import FIRST_TARGETS, SPECTRUM, geometry_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sweeps.analysis.results import AnalysisResults

# Of a target so many metrics are drawn, of a sweep so many spectra, each at so many steps.
_MOST_METRICS, _MOST_RUNS, _MOST_STEPS = 3, 4, 8
# Drawn if they were measured, else the first two targets that were.
_TARGETS = ("unembedding", "final_states")


@parts.styled
def training_loss(results: "AnalysisResults") -> "Figure":
    """Each run's training loss against tokens, coloured by the first setting; dotted where the run diverged."""
    curves = {run: curve for run, curve in results.curves.items() if _has(curve, LOSS["key"])}
    if not curves:
        return parts.lacking("no run has written a training loss")
    figure, [[axes]] = parts.panels(1, 1)
    colours = _colours(results)
    diverged = _diverged(results.table)
    for run, curve in curves.items():
        _line(axes, curve, LOSS["key"], colours.of(run), run in diverged)
    highest = [
        float(np.nanmax(curve[LOSS["key"]].to_numpy(dtype=float)[:10], initial=0.0)) for curve in curves.values()
    ]
    lowest = min(float(np.nanmin(curve[LOSS["key"]].to_numpy(dtype=float))) for curve in curves.values())
    if np.isfinite(lowest) and 0 < lowest < np.median(highest):
        axes.set_ylim(lowest - 0.1, float(np.median(highest)) * 1.05)  # a run that diverged would flatten the others
    _over_tokens(axes, curves)
    axes.set_ylabel(LOSS["name"])
    colours.legend(axes, loc="upper right")
    return figure


@parts.styled
def geometry_over_training(results: "AnalysisResults") -> "Figure":
    """The first metrics of the unembedding and of the final states against tokens, coloured by the first setting."""
    columns = pd.DataFrame(columns=list(dict.fromkeys(c for curve in results.curves.values() for c in curve.columns)))
    there = [c for c in geometry_columns(columns) if any(_has(curve, c) for curve in results.curves.values())]
    of = by_target(there)
    chosen = [t for t in _TARGETS if t in of] or list(of)[:2]
    if not chosen:
        return parts.lacking("no geometry was measured in training")
    across = min(_MOST_METRICS, max(len(of[target]) for target in chosen))
    figure, rows = parts.panels(len(chosen), across, parts.DOUBLE, 1.8)
    colours = _colours(results)
    for row, target in zip(rows, chosen, strict=True):
        for axes in row[len(of[target]) :]:
            axes.set_axis_off()
        for axes, column in zip(row, of[target], strict=False):
            curves = {run: curve for run, curve in results.curves.items() if _has(curve, column)}
            for run, curve in curves.items():
                _line(axes, curve, column, colours.of(run))
            _over_tokens(axes, curves)
            axes.set_title(parts.plain(metric_name(column)))
        row[0].set_ylabel(parts.plain(target_name(target)))
    colours.legend(figure, loc="outside right upper")
    return figure


@parts.styled
def spectra(results: "AnalysisResults") -> "Figure":
    """Singular values of the unembedding by place, at some steps of one run each of a few configurations."""
    of = next((t for t in FIRST_TARGETS if any(_places(curve, t) for curve in results.curves.values())), None)
    if of is None:
        return parts.lacking("no spectrum was measured; `spectrum` of the probe's unembedding turns it on")
    runs = [run for run in _one_a_configuration(results.table) if _places(results.curves.get(run, pd.DataFrame()), of)]
    runs = runs or [run for run, curve in results.curves.items() if _places(curve, of)]
    chosen = [runs[i] for i in np.unique(np.linspace(0, len(runs) - 1, min(len(runs), _MOST_RUNS)).round().astype(int))]
    figure, [row] = parts.panels(1, len(chosen), parts.DOUBLE if len(chosen) > 1 else parts.SINGLE, sharey=True)
    for axes, run in zip(row, chosen, strict=True):
        _spectrum(axes, results.curves[run], of)
        axes.set_title(_title(results, run), fontsize=6.5)
        axes.set_xlabel("Place")
    row[0].set_ylabel(f"Singular value of {target_name(of)}")
    return figure


def _spectrum(axes: "Axes", curve: pd.DataFrame, target: str) -> None:
    """Light to dark over training."""
    import matplotlib

    places = _places(curve, target)
    columns = [f"{target}{SPECTRUM}/{place}" for place in places]
    measured = curve[curve[columns].notna().any(axis=1)]
    at = np.unique(np.linspace(0, len(measured) - 1, min(len(measured), _MOST_STEPS)).round().astype(int))
    scale = matplotlib.colormaps["viridis_r"]
    for i, row in enumerate(at):
        value_K = measured.iloc[row][columns].to_numpy(dtype=float)
        there = value_K > 0
        step = parts.amount(float(measured.iloc[row]["step"])) if "step" in measured.columns else str(row)
        colour = scale(0.1 + 0.9 * i / max(len(at) - 1, 1))
        axes.plot(np.array(places)[there], value_K[there], color=colour, marker=".", markersize=2.5, label=step)
    if axes.has_data():
        parts.log_x(axes, np.array(places, dtype=float))
        axes.set_yscale("log")
        axes.legend(title="Step", title_fontsize=6.0, fontsize=6.0, handlelength=0.8, labelspacing=0.2)


def _line(axes: "Axes", curve: pd.DataFrame, column: str, colour: object, dotted: bool = False) -> None:
    there = curve[curve[column].notna()]
    # A loss that was infinite would make its neighbours' mean infinite: it is a gap.
    value_N = there[column].to_numpy(dtype=float)
    x_N = there[_across(curve)].to_numpy(dtype=float)
    style = ":" if dotted else "-"
    axes.plot(
        thinned(x_N, MAX_POINTS),
        thinned(value_N, MAX_POINTS),
        color=colour,
        linestyle=style,
        linewidth=0.7,
        alpha=0.9,
    )


def _over_tokens(axes: "Axes", curves: Mapping[str, pd.DataFrame]) -> None:
    some = next(iter(curves.values()))
    axes.set_xlabel({"tokens": "Tokens", "step": "Step"}[_across(some)])
    axes.xaxis.set_major_formatter(parts.amount)
    axes.locator_params(axis="x", nbins=4)


def _across(curve: pd.DataFrame) -> str:
    return "tokens" if _has(curve, "tokens") else "step"


def _has(curve: pd.DataFrame, column: str) -> bool:
    return column in curve.columns and bool(curve[column].notna().any())


def _places(curve: pd.DataFrame, target: str) -> list[int]:
    """Places of the spectrum that the curve has values at, in order."""
    found = [m for c in curve.columns if (m := re.fullmatch(rf"{re.escape(target + SPECTRUM)}/(\d+)", c))]
    return sorted(int(m[1]) for m in found if _has(curve, m[0]))


def _colours(results: "AnalysisResults") -> parts.Levels:
    return parts.levels(results.table, results.settings[0] if results.settings else "")


def _diverged(table: pd.DataFrame) -> set[str]:
    return set(table.loc[table["diverged_at"].notna(), "run_id"]) if "diverged_at" in table.columns else set()


def _one_a_configuration(table: pd.DataFrame) -> list[str]:
    """The first run of each configuration, by the effective rank it ended at, as far as that is known."""
    if "configuration" not in table.columns:
        return []
    last = table.drop_duplicates("run_id", keep="last").drop_duplicates("configuration")
    rank = parts.values(last, "unembedding/effective_rank")
    return list(last["run_id"].iloc[np.argsort(np.nan_to_num(rank), kind="stable")])


def _title(results: "AnalysisResults", run: str) -> str:
    """A run by its first settings, a line each."""
    told = [parts.levels(results.table, column) for column in results.settings[:2]]
    lines = [f"{of.name} {of.text[of.by_run[run]]}" for of in told if of.by_run.get(run) in of.text]
    return "\n".join(lines) or parts.plain(run)
