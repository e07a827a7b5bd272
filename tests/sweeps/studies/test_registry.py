"""A study is a folder that declares itself: its content appears in the report, and no other module names it."""

import dataclasses
import json
import sys

import pandas as pd
import pytest

from sweeps import studies
from sweeps.analysis.results import analyze
from sweeps.report import write_report
from sweeps.report.figures import all_figures, check_names

STUDY = """
import pathlib
from sweeps.studies import Study

STUDY = Study(
    name="counting",
    analyze=lambda table, curves, courses: {"runs": table["run_id"].nunique(), "curves": len(curves)},
    section_id="count",
    heading="How many",
    after="spectra",
    section=lambda results: '<section aria-labelledby="count"><h2 id="count">How many</h2></section>',
    data=lambda results: {"count": results.studies["counting"]},
    sentences=lambda results: [f"The sweep has {results['runs']} runs."],
    in_summary=lambda table: True,
    figures={"count": lambda results: None},
    scripts=(pathlib.Path(__file__).parent / "count.js",),
)
"""


def sweep():
    """Two runs without measurements."""
    rows = {"run_id": ["a", "b"], "configuration": ["a", "b"], "step": 10, "final": True, "diverged_at": None}
    return pd.DataFrame(rows), {"a": pd.DataFrame({"step": [10], "tokens": [80], "loss": [1.0]})}


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An additional folder of studies, with one that declares itself and one that doesn't."""
    for folder in ("counting", "notes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "counting" / "study.py").write_text(STUDY)
    (tmp_path / "counting" / "count.js").write_text("drawCount(data.count);")
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    yield next(study for study in studies.registered_studies() if study.name == "counting")
    for module in ("sweeps.studies.counting.study", "sweeps.studies.counting"):
        del sys.modules[module]
    delattr(studies, "counting")


def test_folders_that_declare_a_study_are_registered():
    assert [study.name for study in studies.registered_studies()] == ["paper_b"]


def test_adding_a_folder_registers_a_study(counting):
    assert [study.name for study in studies.registered_studies()] == ["counting", "paper_b"]
    assert "count" in all_figures()
    check_names(["count"])


def test_the_page_has_section_sentence_data_and_script_of_a_study(counting, tmp_path):
    results = analyze(*sweep(), studies={"counting": counting.analyze})
    source = write_report(tmp_path / "report", results, {}).read_text()
    headings = [piece.partition('"')[0] for piece in source.split('<h2 id="')[1:]]
    assert headings.index("count") == headings.index("spectra") + 1
    assert '<li><a href="#count">How many</a></li>' in source
    first = source.split('<ol class="findings">\n')[1].partition("\n")[0]
    assert first == '<li>The sweep has 2 runs. <a href="#count">How many</a></li>'
    data = json.loads(source.split('id="data">')[1].split("</script>")[0])
    assert data["count"] == {"runs": 2, "curves": 1}
    assert source.index("drawCount(data.count);") > source.index("<script>\n")


def test_a_page_without_a_study_has_no_study_content(counting, tmp_path):
    source = write_report(tmp_path / "report", analyze(*sweep()), {}, studies=[]).read_text()
    assert "drawCount" not in source and '"claims"' not in source and "How many" not in source


def test_results_are_keyed_by_study_name():
    table = pd.DataFrame()
    results = analyze(table, {}, studies={"columns": lambda table, curves, courses: (list(table.columns), courses)})
    columns, courses = results.studies["columns"]
    assert "run_id" in columns and courses is None


def test_a_study_placed_after_an_unknown_section_is_an_error(counting, tmp_path):
    lost = dataclasses.replace(counting, after="elsewhere")
    results = analyze(*sweep(), studies={"counting": counting.analyze})
    with pytest.raises(ValueError, match="counting.*'elsewhere'.*findings"):
        write_report(tmp_path, results, {}, studies=[lost])
