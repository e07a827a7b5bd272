"""What the sweep found, in sentences: those of `sweeps.report.sentences`, each with the section that shows it."""

from sweeps.analysis.results import AnalysisResults
from sweeps.report import sentences
from sweeps.report.item import Paragraph, Words, report_item
from sweeps.report.row_sentences import after_training, primary, strongest_setting


@report_item(section="findings", order=10)
def findings(results: AnalysisResults) -> Words:
    """What the sweep found, each sentence with its number and interval, or the reason why there is none."""
    rows = results.final.rows
    return Words(
        [
            Paragraph(primary(rows), link="scatter"),
            Paragraph(strongest_setting(rows), link="by-setting"),
            Paragraph(after_training(rows), link="after"),
            Paragraph(sentences.increment(results), link="correlation"),
            Paragraph(sentences.others(results), link="correlation"),
            Paragraph(sentences.prediction(results), link="prediction"),
            Paragraph(sentences.early(results), link="prediction"),
            Paragraph(sentences.what_sets_it(results), link="variance"),
            Paragraph(sentences.saturation(results), link="saturation"),
        ]
    )
