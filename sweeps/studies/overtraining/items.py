"""What the report shows of fine-tuning after more and more tokens of pre-training."""

import altair as alt
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.cells import cell, estimate
from sweeps.report.item import Figure, NothingToShow, Paragraph, Table, Words, add_section, report_item
from sweeps.studies.anneal.effects import TOKENS
from sweeps.studies.overtraining.effects import MEASURES, ByRate, sentences, tuned

SECTION = "overtraining"

add_section(SECTION, "Fine-tuning by tokens of pre-training", after="training", optional=True)


@report_item(section="findings", order=4)
def overtraining_findings(results: AnalysisResults) -> Words:
    """At how many fine-tuning rates more tokens of pre-training made the fine-tuned models worse."""
    return Words([Paragraph(line, link=SECTION) for line in sentences(_by_rate(results))])


@report_item(section=SECTION, order=10)
def finetuning_by_tokens(results: AnalysisResults) -> Figure:
    """Loss on the new and the old text and forgetting after fine-tuning, against tokens of pre-training, by rate."""
    _by_rate(results)
    rows = tuned(results.table)
    data = rows[["run_id", "trunk", TOKENS, "rate", "measure", "value"]].rename(columns={TOKENS: "tokens"})
    base = alt.Chart(alt.NamedData("overtraining")).encode(
        alt.X("tokens:Q").title("tokens of pre-training").scale(type="log", nice=False, padding=12),
        alt.Color("rate:O").title("fine-tuning rate").scale(scheme="viridis"),
    )
    panels = []
    for measure, name in MEASURES.items():
        of = base.transform_filter(f"datum.measure == {charts.quoted(measure)}")
        place = charts.y("value", f"{name}, {charts.NATS}")
        lines = of.mark_line().encode(alt.Y("mean(value):Q").title(f"{name}, {charts.NATS}").scale(zero=False))
        points = of.mark_point(opacity=0.5).encode(place, tooltip=["run_id:N", "rate:O", "value:Q"])
        panels.append((lines + points).properties(width=230, height=240))
    note = "Points are runs, whose rate decayed over the last tenth of each budget; lines join the means over seeds."
    return charts.figure(alt.hconcat(*panels), {"overtraining": data}, note)


@report_item(section=SECTION, order=20)
def overtraining_changes(results: AnalysisResults) -> Table:
    """The change from the fewest tokens, and from the best budget, to the most tokens, by fine-tuning rate."""
    found = _by_rate(results)
    rows, records, groups = [], [], []
    for one in found:
        e, past = one.estimate, one.past_best
        best = one.tokens[min(range(len(one.means)), key=lambda i: one.means[i])]
        rows.append([cell(one.rate), cell(one.means[0]), cell(one.means[-1]),
                     estimate(e.estimate, e.low, e.high, digits=4, tested=("p", e.p_value)), cell(best),
                     estimate(past.estimate, past.low, past.high, digits=4), cell(e.n)])  # fmt: skip
        records.append(
            {"target": one.target, "rate": one.rate, "measure": one.measure, "best_tokens": best}
            | e._asdict()
            | {f"past_best_{key}": value for key, value in past._asdict().items()}
        )
        groups.append(f"{one.target}: {MEASURES[one.measure]}")
    heads = [
        "fine-tuning rate",
        "at the fewest tokens",
        "at the most",
        "change",
        "best tokens",
        "past the best",
        "seeds",
    ]
    note = (
        "Changes are averaged over seeds, paired within trunks, with Student's interval. The best budget is chosen on "
        "the same runs, so the change past it is never negative on average, and its interval is too optimistic."
    )
    return Table("Fine-tuning by tokens of pre-training", heads, rows, pd.DataFrame(records), groups=groups, note=note)


def _by_rate(results: AnalysisResults) -> tuple[ByRate, ...]:
    found: tuple[ByRate, ...] = results.studies.get("overtraining", ())
    if not found:
        raise NothingToShow("no branches of several budgets were fine-tuned")
    return found
