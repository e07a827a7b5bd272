"""Figures of the experiments on local dimension: their curves, what fine-tuning moved, which changes first, N and L."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.report import figure_parts as parts
from sweeps.report.figure_parts import DOUBLE, SINGLE, styled
from sweeps.studies.paper_b.claims import claims_of
from sweeps.studies.paper_b.panels import TITLES, Panel, panels, sensitivity, violins

if TYPE_CHECKING:  # matplotlib is heavy, and the command line imports this package at each command
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sweeps.analysis.results import AnalysisResults

_NO_EXPERIMENT = "the sweep has no experiment on local dimension"
_ABREAST = 4


@styled
def claim_curves(results: "AnalysisResults") -> "Figure":
    """Each experiment's quantities over steps: means over the runs of a configuration, with their range; a row each."""
    drawn = [(claim, panels(results, claim)[:_ABREAST]) for claim in claims_of(results)]
    if not drawn:
        return parts.lacking(_NO_EXPERIMENT)
    widest = max(len(of) for _, of in drawn)
    figure, axes = parts.panels(len(drawn), widest, width=DOUBLE, height=1.9)
    for row, (claim, of) in zip(axes, drawn, strict=True):
        for place, panel in zip(row, of, strict=False):
            _bands(place, panel)
        for place in row[len(of) :]:
            place.axis("off")
        row[0].set_ylabel(TITLES[claim.name])
    # One legend: the bands of a sweep's experiments are its configurations.
    handles, labels = max((row[0].get_legend_handles_labels() for row in axes), key=lambda found: len(found[0]))
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _bands(axes: "Axes", panel: Panel) -> None:
    import matplotlib

    scale = matplotlib.colormaps["viridis"]
    for i, band in enumerate(panel.bands):
        colour = scale(0.92 * i / max(len(panel.bands) - 1, 1))
        axes.plot(band.steps, band.mean, color=colour, label=parts.plain(band.name))
        if band.runs > 1:
            axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
    axes.set_title(parts.plain(panel.title))
    axes.set_xlabel(panel.across)
    axes.xaxis.set_major_formatter(parts.amount)


@styled
def claim_shift(results: "AnalysisResults") -> "Figure":
    """Local dimension around points before and after a fine-tuning, by text."""
    of = [(claim, violins(results, claim)) for claim in claims_of(results) if claim.name == "shift"]
    of = [(claim, drawn) for claim, drawn in of if drawn]
    if not of:
        return parts.lacking("local dimension wasn't measured before and after a fine-tuning on a domain")
    figure, axes = parts.panels(len(of), 1, width=SINGLE)
    for (place,), (claim, drawn) in zip(axes, of, strict=True):
        texts = list(dict.fromkeys(v.text for v in drawn))
        for i, when in enumerate(("before", "after")):
            shown = [v for v in drawn if v.when == when]
            at = [texts.index(v.text) + (-0.2 if i == 0 else 0.2) for v in shown]
            pieces = place.violinplot([v.values for v in shown], at, widths=0.35, showmedians=True)
            bodies: Any = pieces["bodies"]
            for body in bodies:
                body.set_facecolor(parts.COLOURS[i])
            for name in ("cmedians", "cbars", "cmins", "cmaxes"):
                pieces[name].set_color(parts.COLOURS[i])
            place.plot([], [], color=parts.COLOURS[i], label=when)
        place.set_xticks(range(len(texts)), [parts.plain(text) for text in texts])
        place.set_ylabel("Local dimension around a point")
        place.set_title(parts.plain(claim.evaluation.replace("_", " ")))
        place.legend()
    return figure


@styled
def claim_leads(results: "AnalysisResults") -> "Figure":
    """Which signals change before the outcome, and by how many steps, with intervals; an experiment each."""
    of = [claim for claim in claims_of(results) if claim.signals["lead"].notna().any()]
    if not of:
        return parts.lacking(
            "no signal's change can be set against an outcome's" if claims_of(results) else _NO_EXPERIMENT
        )
    figure, axes = parts.panels(1, len(of), width=SINGLE if len(of) == 1 else DOUBLE)
    for place, claim in zip(axes[0], of, strict=True):
        signals = claim.signals[claim.signals["lead"].notna()].iloc[::-1]
        at = np.arange(len(signals))
        bars = parts.reach(signals["lead"], signals["low"], signals["high"])
        place.errorbar(signals["lead"], at, xerr=bars, linestyle="none", capsize=1.5, **parts.look(0))
        place.axvline(0, color=parts.GREY, linewidth=0.6)
        place.set_yticks(at, [parts.plain(signal) for signal in signals["signal"]])
        place.set_xlabel("Steps ahead of the outcome")
        place.set_title(TITLES[claim.name])
    return figure


@styled
def claim_sensitivity(results: "AnalysisResults") -> "Figure":
    """Mean local dimension by neighbours, a line a number of points, with the range of runs; a panel a text."""
    found = sensitivity(results.table)
    if found.empty:
        return parts.lacking("evaluation.dimension.points asks for no local dimension by points and neighbours")
    texts = list(found["of"].unique())[:_ABREAST]
    figure, axes = parts.panels(1, len(texts), width=SINGLE if len(texts) == 1 else DOUBLE)
    for place, text in zip(axes[0], texts, strict=True):
        for i, (points, of) in enumerate(found[found["of"] == text].groupby("points")):
            bars = parts.reach(of["mean"], of["low"], of["high"])
            place.errorbar(of["neighbors"], of["mean"], yerr=bars, capsize=1.5, label=f"N = {points}", **parts.look(i))
        parts.log_x(place, of["neighbors"].to_numpy(float), at_each=True)
        place.set_xlabel("Neighbours L")
        place.set_title(parts.plain(text))
    axes[0][0].set_ylabel("Mean local dimension")
    axes[0][0].legend()
    return figure
