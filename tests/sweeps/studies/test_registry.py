"""A study is a folder that declares itself: its content appears in the report, and no other module names it."""

import json
import sys

import pandas as pd
import pytest

from sweeps import studies
from sweeps.analysis.results import analyze
from sweeps.report import item as registry
from sweeps.report import write_report
from sweeps.report.export import figure_item
from sweeps.report.item import items, sections

STUDY = """
from sweeps.studies import Study

STUDY = Study(
    name="counting",
    analyze=lambda table, curves, courses: {"runs": table["run_id"].nunique(), "curves": len(curves)},
    sentences=lambda results: [f"The sweep has {results['runs']} runs."],
    in_summary=lambda table: True,
)
"""
ITEMS = """
import altair as alt
import pandas as pd

from sweeps.report import add_section, report_item
from sweeps.report.item import Figure, NothingToShow, Paragraph, Words

add_section("count", "How many", after="spectra", optional=True)


@report_item(section="findings", order=0)
def count_findings(results) -> Words:
    '''How many runs the sweep has.'''
    return Words([Paragraph(f"The sweep has {_counts(results)['runs']} runs.", link="count")])


@report_item(section="count", order=10)
def count(results) -> Figure:
    '''The numbers of runs and curves.'''
    data = pd.DataFrame([_counts(results)])
    return Figure(alt.Chart(alt.NamedData("count")).mark_point().encode(x="runs:Q", y="curves:Q"), {"count": data})


def _counts(results):
    if "counting" not in results.studies:
        raise NothingToShow("nothing was counted")
    return results.studies["counting"]
"""


def sweep():
    """Two runs without measurements."""
    rows = {"run_id": ["a", "b"], "configuration": ["a", "b"], "step": 10, "final": True, "diverged_at": None}
    return pd.DataFrame(rows), {"a": pd.DataFrame({"step": [10], "tokens": [80], "loss": [1.0]})}


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An additional folder of studies, with one that declares itself and one that doesn't."""
    items()
    monkeypatch.setattr(registry, "_ITEMS", dict(registry._ITEMS))
    monkeypatch.setattr(registry, "_SECTIONS", dict(registry._SECTIONS))
    for folder in ("counting", "notes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "counting" / "study.py").write_text(STUDY)
    (tmp_path / "counting" / "items.py").write_text(ITEMS)
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    studies.load_items()
    yield next(study for study in studies.registered_studies() if study.name == "counting")
    for module in ("sweeps.studies.counting.study", "sweeps.studies.counting.items", "sweeps.studies.counting"):
        del sys.modules[module]
    delattr(studies, "counting")


def test_folders_that_declare_a_study_are_registered():
    assert [study.name for study in studies.registered_studies()] == [
        "anneal",
        "datadecide",
        "do_rank",
        "overtraining",
        "paper_b",
        "saturation",
    ]


def test_adding_a_folder_registers_a_study(counting):
    assert [study.name for study in studies.registered_studies()] == [
        "anneal",
        "counting",
        "datadecide",
        "do_rank",
        "overtraining",
        "paper_b",
        "saturation",
    ]
    assert figure_item("count").section == "count"
    assert list(sections()).index("count") == list(sections()).index("spectra") + 1


def test_the_page_has_section_sentence_and_figure_of_a_study(counting, tmp_path):
    results = analyze(*sweep(), studies={"counting": counting.analyze})
    source = write_report(tmp_path / "report", results, {}).read_text()
    headings = [piece.partition('"')[0] for piece in source.split('<h2 id="')[1:]]
    assert headings.index("count") == headings.index("spectra") + 1
    assert '<li><a href="#count">How many</a></li>' in source
    first = source.split('<ol class="findings">\n')[1].partition("\n")[0]
    assert first == '<li>The sweep has 2 runs. <a href="#count">How many</a></li>'
    data = json.loads(source.split('id="data">')[1].split("</script>")[0])
    assert data["datasets"]["count"] == {"runs": [2], "curves": [1]} and "count" in data["figures"]


def test_a_page_without_a_studys_results_leaves_its_section_out(counting, tmp_path):
    source = write_report(tmp_path / "report", analyze(*sweep()), {}).read_text()
    assert "How many" not in source and "The sweep has" not in source and "local-dimension" not in source


def test_results_are_keyed_by_study_name():
    table = pd.DataFrame()
    results = analyze(table, {}, studies={"columns": lambda table, curves, courses: (list(table.columns), courses)})
    columns, courses = results.studies["columns"]
    assert "run_id" in columns and courses is None
