"""Write the page's section on local dimension: each experiment with its claim, its verdict and its figures."""

import math
from typing import Any

import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report.curves import to_json
from sweeps.report.html import cell, escape, section, sortable_table
from sweeps.report.numbers import format_p, signed
from sweeps.studies.paper_b.claim import CLAIMS, Claim
from sweeps.studies.paper_b.claims import claims_of
from sweeps.studies.paper_b.panels import TITLES, panels, sensitivity, violins

SECTION_ID, HEADING = "local-dimension", "Local dimension"
_SOURCE = "arXiv 2506.01034"


def claims_data(results: AnalysisResults) -> dict[str, Any]:
    """Return the data from which the scripts draw the section."""
    tested = claims_of(results)
    means = sensitivity(results.table) if tested else pd.DataFrame()
    return {"claims": [_data(results, claim) for claim in tested], "sensitivity": means.to_dict("records")}


def _data(results: AnalysisResults, claim: Claim) -> dict[str, Any]:
    leads = (
        claim.rows if "metric_step" in claim.rows else pd.DataFrame(columns=["run_id", "metric_step", "outcome_step"])
    )
    leads = leads.dropna(subset=["metric_step", "outcome_step"])
    return {
        "name": claim.name,
        "panels": [
            {
                "title": panel.title,
                "across": panel.across,
                "bands": [
                    {"name": b.name, "runs": b.runs}
                    | {k: to_json(getattr(b, k)) for k in ("steps", "mean", "low", "high")}
                    for b in panel.bands
                ],
            }
            for panel in panels(results, claim)
        ],
        "violins": [v._asdict() | {"values": to_json(v.values)} for v in violins(results, claim)],
        "leads": {
            "run": [str(run) for run in leads["run_id"]],
            "metric": to_json(leads["metric_step"].to_numpy(float)),
            "outcome": to_json(leads["outcome_step"].to_numpy(float)),
        },
    }


def claims_section(results: AnalysisResults) -> str:
    """Return the section; "" for a sweep without such an experiment."""
    if not (tested := claims_of(results)):
        return ""
    parts = [_experiment(i, claim) for i, claim in enumerate(tested)]
    if len(sensitivity(results.table)):
        parts.append("""<h3>Points and neighbours</h3>
<div class="figure" id="figure-sensitivity"></div>
<p class="note">Mean local dimension at the last checkpoints by the size of neighbourhoods, a line a number of points:
how much of the number is the method's. Compare runs, and times of one run, only where both are the same.</p>""")
    return section(SECTION_ID, HEADING, "\n".join(parts))


def _experiment(index: int, claim: Claim) -> str:
    evaluation = f" ({escape(claim.evaluation.replace('_', ' '))})" if claim.evaluation else ""
    figures = f'<div class="panels" id="claim-{index}-panels"></div>'
    if claim.name == "shift":
        figures += f'\n<div class="figure" id="claim-{index}-violins"></div>'
    elif len(claim.signals):
        figures += f'\n<div class="figure" id="claim-{index}-leads"></div>\n{_signals_table(index, claim.signals)}'
    return f"""<h3>{TITLES[claim.name]}{evaluation}</h3>
<p><b>Claim</b> ({_SOURCE}): {escape(CLAIMS[claim.name])} <b>Here: {escape(claim.verdict)}.</b>
{escape(claim.sentence)}</p>
{figures}
<p class="note">{_NOTES[claim.name]}</p>"""


_BANDS = "Lines are means over the runs of a configuration, bands their range."
_LEADS = (
    "Below: each run's step at which local dimension changes against that of the outcome; on the line they change "
    "together. In the table p is against shuffled runs, each run's metric with another's outcome; a lead is claimed "
    "where its interval leaves out 0 and p &lt; .05. The last column is the R2 that the step of a signal adds to that "
    "of the training loss in predicting the outcome's."
)
_NOTES = {
    "shift": f"{_BANDS} The violins are drawn from five quantiles over points, each averaged over models.",
    "exhaustion": f"{_BANDS} {_LEADS}",
    "overfitting": f"{_BANDS} {_LEADS}",
    "grokking": f"{_BANDS} Change points are looked for after a run has memorised. {_LEADS}",
}


def _signals_table(index: int, signals: pd.DataFrame) -> str:
    heads = ["signal", "steps ahead of the outcome", "p", "runs", "claimed", "adds to training loss, R2", "note"]
    rows = [
        "".join(
            [
                cell(row.signal, kind="name"),
                cell(row.lead, _interval(row.lead, row.low, row.high, 0)),
                cell(row.p_value, "" if math.isnan(row.p_value) else format_p(row.p_value)),
                cell(row.n),
                cell("yes" if row.claimed else "no"),
                cell(row.adds, _interval(row.adds, row.adds_low, row.adds_high, 2)),
                cell(row.note),
            ]
        )
        for row in signals.itertuples()
    ]
    return sortable_table(f"signals-{index}", "Signals and when they change", heads, rows)


def _interval(estimate: float, low: float, high: float, digits: int) -> str:
    if math.isnan(estimate):
        return ""
    text = signed(estimate, digits)
    return text if math.isnan(low) else f"{text} ({signed(low, digits)} to {signed(high, digits)})"
