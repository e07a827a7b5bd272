"""The page's sections that hold figures: what stands around each, and what it says where its data aren't there."""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.analysis.results import AnalysisResults
from sweeps.report.curves import by_target, target_name
from sweeps.report.html import escape, options, section
from sweeps.report.row_sentences import against_unigram, caveat
from sweeps.report.sentences import Finding
from sweeps.studies import Study

# The report's own sections by their ids, in the page's order, as its contents name them.
CONTENTS = {
    "findings": "Findings",
    "training": "Over training",
    "spectra": "Spectra",
    "scatter": "Loss against geometry",
    "by-setting": "By setting",
    "correlation": "Correlations",
    "after": "Quantisation and fine-tuning",
    "saturation": "Saturation",
    "variance": "What sets it",
    "prediction": "Prediction",
    "results": "Results",
    "made": "How it was made",
}


def contents(studies: Sequence[Study]) -> dict[str, str]:
    """Return the headings of all sections by their ids, in the page's order; `studies` are those with a section.

    Raises ValueError for a study that is to follow a section which the page doesn't have.
    """
    for study in studies:
        if study.after not in CONTENTS:
            known = ", ".join(CONTENTS)
            raise ValueError(f"study {study.name}: the page has no section '{study.after}' to follow, only {known}")
    headings: dict[str, str] = {}
    for name, heading in CONTENTS.items():
        headings |= {name: heading} | {study.section_id: study.heading for study in studies if study.after == name}
    return headings


def head(results: AnalysisResults, found: Sequence[Finding], title: str, contents: Mapping[str, str]) -> str:
    """Title, what the findings rest on, the findings each with a link to its figure, and the page's contents."""
    items = "\n".join(
        f'<li>{escape(f.sentence)} <a href="#{f.figure}">{escape(contents[f.figure])}</a></li>' for f in found
    )
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading in contents.items())
    return f"""<header>
<h1>{escape(title)}</h1>
<p class="caveat">{escape(caveat(results.final))}</p>
<nav aria-label="Contents"><ul class="contents">{links}</ul></nav>
</header>
<section aria-labelledby="findings">
<h2 id="findings">{CONTENTS["findings"]}</h2>
<ol class="findings">
{items}
</ol>
<p class="unigram">{escape(against_unigram(results.table))}</p>
</section>"""


def toolbar(data: dict[str, Any]) -> str:
    """Colour and filters, which hold for every figure of single runs and for the table of results."""
    if not data["settings"]:
        return ""
    return """<div class="toolbar" role="region" aria-label="Colour and filters">
<label>Colour by <select id="colour"></select></label>
<details class="filters"><summary>Filter runs</summary><div id="filters"></div></details>
<span id="shown" role="status"></span>
<button type="button" id="show-all">Show all</button>
</div>"""


def training(data: dict[str, Any]) -> str:
    if not data["curves"]:
        return _section("training", "<p>No run has written metrics yet.</p>")
    targets = "".join(f'<option value="{escape(t["key"])}">{escape(t["name"])}</option>' for t in data["targets"])
    choice = f'<label>Geometry of <select id="target">{targets}</select></label>\n' if targets else ""
    points = data["points"]
    return _section(
        "training",
        f"""<div class="controls">
{choice}<label>Against <select id="against"><option value="tokens">tokens</option><option value="step">steps</option>
</select></label>
</div>
<ul class="legend"></ul>
<div class="panels" id="panels"></div>
<p class="note" id="counts"></p>
<p class="note">A run's loss is drawn by at most {points["loss"]} points, a metric by at most {points["geometry"]}, each
the mean of its neighbours. Geometry is measured at probe steps. Gauge-fixed takes away what no prediction depends on. A
band, where there is one, is the standard deviation over disjoint probe sets, up and down.</p>""",
    )


def spectra(data: dict[str, Any]) -> str:
    if not data["spectra"]:
        return _section(
            "spectra", "<p>No spectrum was measured; <code>probe.unembedding.spectrum=True</code> does.</p>"
        )
    names = "".join(f'<option value="{escape(k)}">{escape(t["name"])}</option>' for k, t in data["spectra"].items())
    return _section(
        "spectra",
        f"""<div class="controls">
<label>Singular values of <select id="spectrum-of">{names}</select></label>
<label>Run <select id="spectrum-run"></select></label>
</div>
<div class="figure" id="figure-spectra"></div>
<p class="note">Singular values by their place, the largest first; a line a step, from early (blue) to late (red). All
runs: the last step of each, coloured as chosen above. Under a hundred thousandth of the largest is rounding and not
drawn: W, gauge-fixed, has lost directions.</p>""",
    )


def scatter(data: dict[str, Any]) -> str:
    if why := _lacking(data):
        return _section("scatter", f"<p>No figure: {why}.</p>")
    return _section(
        "scatter",
        f"""<div class="controls">
<label>Across <select id="x">{_metrics(data)}</select></label>
<label>Up <select id="y">{options(data["losses"], data["primary"][1])}</select></label>
</div>
<ul class="legend"></ul>
<div class="figure" id="figure-scatter"></div>
<p class="note">Final rows, one point a run. Point at a run for its settings. A relation here may be that of a setting
which moves both: the partial correlations below take the settings away.</p>""",
    )


def by_setting(data: dict[str, Any]) -> str:
    if why := _lacking(data) or ("" if data["settings"] else "no setting differs between runs"):
        return _section("by-setting", f"<p>No figure: {why}.</p>")
    names = "".join(f'<option value="{escape(s["key"])}">{escape(s["name"])}</option>' for s in data["settings"])
    return _section(
        "by-setting",
        f"""<div class="controls">
<label>Setting <select id="setting">{names}</select></label>
<label>Metric <select id="setting-metric">{_metrics(data)}</select></label>
<label>Loss <select id="setting-loss">{options(data["losses"], data["primary"][1])}</select></label>
</div>
<ul class="legend"></ul>
<div class="pair"><div class="figure" id="figure-setting-metric"></div>
<div class="figure" id="figure-setting-loss"></div></div>
<p class="note">Means over final rows at each value of the setting, with the range of runs; a line a value of the colour
chosen above. Where a loss is U-shaped, its rank correlation with the setting misleads, and so does a partial
correlation that takes settings as ranks.</p>""",
    )


def after_training(data: dict[str, Any]) -> str:
    if not data["effects"] or not data["final"]["run"] or not data["metrics"]:
        return _section("after", "<p>No figure: no quantisation or fine-tuning of a finished run.</p>")
    effects = "".join(f'<option value="{escape(e["key"])}">{escape(e["name"])}</option>' for e in data["effects"])
    bits = any(e["bits"] for e in data["effects"])
    told = "Right: the rise by bits, one line a run and method." if bits else ""
    return _section(
        "after",
        f"""<div class="controls">
<label>Effect <select id="effect">{effects}</select></label>
<label>Against <select id="effect-metric">{_metrics(data)}</select></label>
</div>
<ul class="legend"></ul>
<div class="pair"><div class="figure" id="figure-effect"></div>
{'<div class="figure" id="figure-bits"></div>' if bits else ""}</div>
<p class="note">Final rows, one point a run; nats a token. {told}
A rise is the loss after quantisation minus the loss before, on the same documents.</p>""",
    )


def saturation(results: AnalysisResults, table: str) -> str:
    found = results.saturation
    if found.runs.empty:
        return _section("saturation", f"<p>No figure: {escape(found.note or 'no finished run')}.</p>")
    note = f" {escape(found.note[0].upper() + found.note[1:])}." if found.note else ""
    return _section(
        "saturation",
        f"""<ul class="legend"></ul>
<div class="figure" id="figure-saturation"></div>
<p class="note">How far each run's in-domain loss rose after its best, with two standard errors, against the effective
rank at its end; the vertical line is the median. A run is degraded where the rise is more than two standard errors. The
best is picked on the same documents, so a rise is never negative.{note}</p>
{table}""",
    )


def variance(results: AnalysisResults, table: str) -> str:
    if results.variance["share"].notna().sum() == 0:
        notes = [n for n in results.variance["note"] if n] or ["no setting differs between finished runs"]
        return _section("variance", f"<p>No figure: {escape(notes[0])}.</p>")
    return _section(
        "variance",
        f"""<div class="figure" id="figure-variance"></div>
<p class="note">How much of a column's variance over finished runs each setting sets on its own (its average gain over
all orders of entering), how much differs between seeds of a configuration, and what is left, such as effects of
settings on each other. It tells of this grid: a setting that hardly varies in it can't explain much.</p>
<details><summary>As a table, with intervals</summary>{table}</details>""",
    )


def prediction(results: AnalysisResults, tables: str) -> str:
    if results.prediction["r2"].notna().sum() == 0 and results.early["r2"].notna().sum() == 0:
        notes = [n for n in [*results.prediction["note"], *results.early["note"]] if n] or ["no finished run"]
        return _section("prediction", f"<p>No figure: {escape(notes[0])}.</p>")
    return _section(
        "prediction",
        f"""<div class="controls"><label>Loss <select id="predicted"></select></label></div>
<div class="pair"><div class="figure" id="figure-prediction"></div><div class="figure" id="figure-early"></div></div>
<div class="figure" id="figure-importance"></div>
<p class="note">R2 on runs of configurations that the fit hasn't seen, with 95 % intervals: left, of the final loss from
settings alone and with final geometry; right, from what was known after part of training. Zero is no better than the
mean; below it, worse. Below: R2 lost when one column is shuffled, up to 2; columns that move together stand in for each
other, and "all geometry" shuffles it whole. What geometry gains, with its interval, is in the tables.</p>
<details><summary>As tables</summary>{tables}</details>""",
    )


def _section(name: str, body: str) -> str:
    return section(name, CONTENTS[name], body)


def _metrics(data: dict[str, Any]) -> str:
    return "".join(
        f'<optgroup label="{escape(target_name(target))}">{options(columns, data["primary"][0])}</optgroup>'
        for target, columns in by_target(data["metrics"]).items()
    )


def _lacking(data: dict[str, Any]) -> str:
    """Why metric and loss can't be drawn, or "" where they can."""
    lacking = [what for what, names in (("geometry metric", "metrics"), ("loss", "losses")) if not data[names]]
    if lacking:
        return f"the table has no {' and no '.join(lacking)}"
    return "" if data["final"]["run"] else "no run has a final row"
