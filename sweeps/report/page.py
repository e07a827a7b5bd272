"""One offline page of a sweep: what it found in words, then the figures, the statistics and the table behind them.

The page is HTML written here and styled by report.css. Its scripts (base.js first) sort and filter the tables and draw
the figures, from the data that lie in the page as JSON. Nothing is fetched when it is opened: plotly.js is inlined, and
the page's own policy forbids it.
"""

from collections.abc import Mapping

from etils import epath

from sweeps.analysis.results import Answers
from sweeps.report import sections, statistics
from sweeps.report.data import page_data
from sweeps.report.html import document, write_whole
from sweeps.report.results import facts_section, results_section
from sweeps.report.sentences import findings
from sweeps.studies.paper_b.section import claims_section

TITLE = "Geometry, performance and training"
SCRIPTS = ("base.js", "tables.js", "training.js", "relations.js", "answers.js", "claims.js", "start.js")


def write_report(
    path_dir: epath.PathLike, answers: Answers, facts: Mapping[str, str], title: str = TITLE
) -> epath.Path:
    """Writes `path_dir`/index.html, whole or not at all.

    Args:
      path_dir: folder of the report, made if it isn't there.
      answers: of the sweep; see sweeps.analysis.results.
      facts: how the page was made, shown in this order: command, versions, hashes, seconds.
      title: the page's heading.

    Returns:
      The path of the page.
    """
    return write_whole(epath.Path(path_dir) / "index.html", _page(answers, facts, title))


def _page(answers: Answers, facts: Mapping[str, str], title: str) -> bytes:
    data = page_data(answers)
    parts = [
        sections.head(answers, findings(answers), title),
        sections.toolbar(data),
        sections.training(data),
        claims_section(answers),
        sections.spectra(data),
        sections.scatter(data),
        sections.by_setting(data),
        statistics.correlation_section(answers),
        sections.after_training(data),
        sections.saturation(answers, statistics.quadrants_table(answers.saturation)),
        sections.variance(answers, statistics.variance_table(answers.variance)),
        sections.prediction(answers, statistics.prediction_tables(answers)),
        results_section(answers),
        facts_section(facts),
    ]
    return document(title, [part for part in parts if part], data, SCRIPTS)
