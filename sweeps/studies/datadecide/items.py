"""What the report shows of a published table: its curves beside the sweep's."""

import altair as alt

from sweeps.analysis.results import AnalysisResults
from sweeps.report import charts
from sweeps.report.item import Figure, NothingToShow, add_section, report_item

SECTION = "published"
_NOTE = (
    "Perplexities on different texts can't be compared: the published ones are on the Pile's validation text, those of "
    "this sweep on its own."
)

add_section(SECTION, "Beside published curves", after="training", optional=True)


@report_item(section=SECTION, order=10)
def published_curves(results: AnalysisResults) -> Figure:
    """Perplexity by step, of this sweep and as published for the same size and seed."""
    curves = results.joined.get("datadecide")
    if curves is None:
        raise NothingToShow("no published table was joined; `olmo-jax report --join=FILE` joins one")
    corpora = [name for name in curves["corpus"].unique() if name != "this sweep"]
    chart = (
        alt.Chart(alt.NamedData("published"))
        .transform_filter("datum.corpus == 'this sweep' || datum.corpus == published_corpus")
        .mark_line(point=True)
        .encode(
            charts.x("step", "step"),
            alt.Y("perplexity:Q").title("perplexity").scale(type="log"),
            alt.Color("corpus:N").title(None),
            alt.StrokeDash("seed:N").title("seed"),
            tooltip=["size:N", "corpus:N", "seed:N", "step:Q", alt.Tooltip("perplexity:Q", format=".4~g")],
        )
        .properties(width=260, height=200)
        .facet(alt.Facet("size:N").title(None), columns=2)
        .add_params(charts.choice("published_corpus", "published corpus", corpora))
    )
    return charts.figure(chart, {"published": curves}, _NOTE)
