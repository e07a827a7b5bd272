"""Draw the experiments on local dimension: curves, shifts by fine-tuning, leads of signals, dependence on N and L."""

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
_COLUMNS = 4


@styled
def claim_curves(results: "AnalysisResults") -> "Figure":
    """Draw each experiment's quantities over steps in one row: means over the runs of a configuration, with ranges."""
    drawn = [(claim, panels(results, claim)[:_COLUMNS]) for claim in claims_of(results)]
    if not drawn:
        return parts.lacking(_NO_EXPERIMENT)
    widest = max(len(quantities) for _, quantities in drawn)
    figure, axes = parts.panels(len(drawn), widest, width=DOUBLE, height=1.9)
    for row, (claim, quantities) in zip(axes, drawn, strict=True):
        for panel_axes, panel in zip(row, quantities, strict=False):
            _bands(panel_axes, panel)
        for panel_axes in row[len(quantities) :]:
            panel_axes.axis("off")
        row[0].set_ylabel(TITLES[claim.name])
    # One legend is enough: the bands of all experiments are the configurations of the sweep.
    handles, labels = max((row[0].get_legend_handles_labels() for row in axes), key=lambda legend: len(legend[0]))
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
    """Draw the distribution over points of local dimension before and after a fine-tuning, by text."""
    claims = [(claim, violins(results, claim)) for claim in claims_of(results) if claim.name == "shift"]
    claims = [(claim, drawn) for claim, drawn in claims if drawn]
    if not claims:
        return parts.lacking("local dimension wasn't measured before and after a fine-tuning on a domain")
    figure, axes = parts.panels(len(claims), 1, width=SINGLE)
    for (panel_axes,), (claim, drawn) in zip(axes, claims, strict=True):
        texts = list(dict.fromkeys(v.text for v in drawn))
        for i, when in enumerate(("before", "after")):
            shown = [v for v in drawn if v.when == when]
            at = [texts.index(v.text) + (-0.2 if i == 0 else 0.2) for v in shown]
            pieces = panel_axes.violinplot([v.values for v in shown], at, widths=0.35, showmedians=True)
            bodies: Any = pieces["bodies"]
            for body in bodies:
                body.set_facecolor(parts.COLOURS[i])
            for name in ("cmedians", "cbars", "cmins", "cmaxes"):
                pieces[name].set_color(parts.COLOURS[i])
            panel_axes.plot([], [], color=parts.COLOURS[i], label=when)
        panel_axes.set_xticks(range(len(texts)), [parts.plain(text) for text in texts])
        panel_axes.set_ylabel("Local dimension around a point")
        panel_axes.set_title(parts.plain(claim.evaluation.replace("_", " ")))
        panel_axes.legend()
    return figure


@styled
def claim_leads(results: "AnalysisResults") -> "Figure":
    """Draw by how many steps signals change before the outcome, with intervals; one panel per experiment."""
    claims = [claim for claim in claims_of(results) if claim.signals["lead"].notna().any()]
    if not claims:
        return parts.lacking(
            "no signal's change can be set against an outcome's" if claims_of(results) else _NO_EXPERIMENT
        )
    figure, axes = parts.panels(1, len(claims), width=SINGLE if len(claims) == 1 else DOUBLE)
    for panel_axes, claim in zip(axes[0], claims, strict=True):
        signals = claim.signals[claim.signals["lead"].notna()].iloc[::-1]
        at = np.arange(len(signals))
        bars = parts.reach(signals["lead"], signals["low"], signals["high"])
        panel_axes.errorbar(signals["lead"], at, xerr=bars, linestyle="none", capsize=1.5, **parts.look(0))
        panel_axes.axvline(0, color=parts.GREY, linewidth=0.6)
        panel_axes.set_yticks(at, [parts.plain(signal) for signal in signals["signal"]])
        panel_axes.set_xlabel("Steps ahead of the outcome")
        panel_axes.set_title(TITLES[claim.name])
    return figure


@styled
def claim_sensitivity(results: "AnalysisResults") -> "Figure":
    """Draw mean local dimension by neighbours, one line per number of points, with ranges over runs, by text."""
    means = sensitivity(results.table)
    if means.empty:
        return parts.lacking("evaluation.dimension.points asks for no local dimension by points and neighbours")
    texts = list(means["of"].unique())[:_COLUMNS]
    figure, axes = parts.panels(1, len(texts), width=SINGLE if len(texts) == 1 else DOUBLE)
    for panel_axes, text in zip(axes[0], texts, strict=True):
        for i, (points, line) in enumerate(means[means["of"] == text].groupby("points")):
            bars = parts.reach(line["mean"], line["low"], line["high"])
            style = parts.look(i)
            panel_axes.errorbar(line["neighbors"], line["mean"], yerr=bars, capsize=1.5, label=f"N = {points}", **style)
        parts.log_x(panel_axes, line["neighbors"].to_numpy(float), at_each=True)
        panel_axes.set_xlabel("Neighbours L")
        panel_axes.set_title(parts.plain(text))
    axes[0][0].set_ylabel("Mean local dimension")
    axes[0][0].legend()
    return figure
