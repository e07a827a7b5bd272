"""One offline page of a sweep: what it found in words, then the figures, the statistics and the table behind them.

The page is HTML written here and styled by report.css. Its scripts (base.js first) sort and filter the tables and draw
the figures, from the data that lie in the page as JSON. Nothing is fetched when it is opened: plotly.js is inlined, and
the page's own policy forbids it.
"""

from collections.abc import Mapping, Sequence

from etils import epath

from sweeps.analysis.results import AnalysisResults
from sweeps.report import sections, statistics
from sweeps.report.data import page_data
from sweeps.report.html import document, template, write_whole
from sweeps.report.results import facts_section, results_section
from sweeps.report.sentences import findings
from sweeps.studies import Study, registered_studies

TITLE = "Geometry, performance and training"
# The scripts of studies run before the last of these, which draws what all the others have declared.
SCRIPTS = ("base.js", "tables.js", "training.js", "relations.js", "answers.js", "start.js")


def write_report(
    path_dir: epath.PathLike,
    results: AnalysisResults,
    facts: Mapping[str, str],
    title: str = TITLE,
    studies: Sequence[Study] | None = None,
) -> epath.Path:
    """Writes `path_dir`/index.html, whole or not at all.

    Args:
      path_dir: folder of the report, made if it isn't there.
      results: of the sweep; see sweeps.analysis.results.
      facts: how the page was made, shown in this order: command, versions, hashes, seconds.
      title: the page's heading.
      studies: those with a part in the page; None for all registered ones.

    Returns:
      The path of the page.
    """
    studies = registered_studies() if studies is None else studies
    return write_whole(epath.Path(path_dir) / "index.html", _page(results, facts, title, studies))


def _page(results: AnalysisResults, facts: Mapping[str, str], title: str, studies: Sequence[Study]) -> bytes:
    data = page_data(results, studies)
    of_studies = {study: text for study in studies if (text := study.section(results))}
    parts = {
        "training": sections.training(data),
        "spectra": sections.spectra(data),
        "scatter": sections.scatter(data),
        "by-setting": sections.by_setting(data),
        "correlation": statistics.correlation_section(results),
        "after": sections.after_training(data),
        "saturation": sections.saturation(results, statistics.quadrants_table(results.saturation)),
        "variance": sections.variance(results, statistics.variance_table(results.variance)),
        "prediction": sections.prediction(results, statistics.prediction_tables(results)),
        "results": results_section(results),
        "made": facts_section(facts),
    }
    contents = sections.contents(list(of_studies))
    parts |= {study.section_id: text for study, text in of_studies.items()}
    body = [parts[name] for name in contents if name in parts]
    head = [sections.head(results, findings(results, studies), title, contents), sections.toolbar(data)]
    *scripts, start = [template(name) for name in SCRIPTS]
    scripts += [script.read_text(encoding="utf-8") for study in studies for script in study.scripts]
    return document(title, [part for part in head + body if part], data, [*scripts, start])
