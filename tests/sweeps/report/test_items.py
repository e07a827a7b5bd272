"""An item of the report is one function; from a file outside the packages it reaches the page, files and lists."""

import importlib.util
import json
import re
import textwrap

import pytest

from sweeps.report import item as registry
from sweeps.report import reference, render, write_all
from sweeps.report.export import figure_item
from sweeps.report.item import Figure, Table, add_section, items, report_item, sections, show
from tests.sweeps.report import made

OWN = '''
"""A figure and a table of one's own."""

import altair as alt
import pandas as pd

from sweeps.report import add_section, report_item
from sweeps.report.cells import cell
from sweeps.report.item import Figure, NothingToShow, Table

add_section("mine", "My <question>", after="spectra")


@report_item(section="mine", order=10)
def rank_histogram(results) -> Figure:
    """How many runs end at each rank. More words."""
    ranks = pd.DataFrame({"rank": results.final.rows["unembedding/effective_rank_percent"].round()})
    if ranks.empty:
        raise NothingToShow("no run has finished")
    chart = alt.Chart(alt.NamedData("ranks")).mark_bar().encode(alt.X("rank:O").title("rank, rounded"), y="count()")
    return Figure(chart, {"ranks": ranks}, "My note & more.")


@report_item(section="mine", order=20)
def rank_table(results) -> Table:
    """The runs' ranks."""
    rows = results.final.rows[["run_id", "unembedding/effective_rank_percent"]]
    cells = [[cell(run), cell(rank)] for run, rank in rows.itertuples(index=False)]
    return Table("Ranks of <runs>", ["run", "rank"], cells, rows)
'''


def load(path, source):
    """Run a file as a configuration file is run."""
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture
def kept_registry(monkeypatch):
    """The registry, which is as before after the test."""
    items()
    monkeypatch.setattr(registry, "_ITEMS", dict(registry._ITEMS))
    monkeypatch.setattr(registry, "_SECTIONS", dict(registry._SECTIONS))


@pytest.fixture
def own(kept_registry, tmp_path):
    load(tmp_path / "mine.py", OWN)


@pytest.mark.usefixtures("own")
def test_items_of_a_single_file_are_on_the_page_in_the_files_and_among_the_names(tmp_path):
    results = made.answers(made.sweep(6, checkpoints=1), {})
    chosen = [show(item, results) for item in items() if item.section in ("mine", "scatter")]
    page = write_all(tmp_path / "report", results, {}, shown=chosen).read_text()
    assert list(sections()).index("mine") == list(sections()).index("spectra") + 1
    assert "My &lt;question&gt;</h2>" in page and "My note &amp; more." in page
    assert "How many runs end at each rank." in page and "More words" not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    ranks = results.final.rows["unembedding/effective_rank_percent"].round()
    assert data["datasets"]["ranks"] == {"rank": list(ranks)}
    assert data["figures"]["rank_histogram"]["mark"]["type"] == "bar"
    assert 'id="rank_table"' in page and "Ranks of &lt;runs&gt;" in page
    assert "rank, rounded" in (tmp_path / "report/figures/rank_histogram.svg").read_text()
    csv = (tmp_path / "report/tables/rank_table.csv").read_text().splitlines()
    assert len(csv) == 1 + len(ranks) and csv[0] == "run_id,unembedding/effective_rank_percent"
    assert r"\begin{tabular}" in (tmp_path / "report/tables/rank_table.tex").read_text()
    assert figure_item("rank_histogram").meaning == "How many runs end at each rank."
    assert list(registry.own_files()) == ["mine.py"]


@pytest.mark.usefixtures("own")
def test_an_item_of_ones_own_that_fails_leaves_the_others_on_the_page(tmp_path):
    load(
        tmp_path / "broken.py",
        '''
        from sweeps.report import report_item
        from sweeps.report.item import Figure

        @report_item(section="mine", order=30)
        def broken(results) -> Figure:
            """It fails."""
            return 1 / len(results.final.rows.iloc[:0])
        ''',
    )
    results = made.answers(made.sweep(2, checkpoints=1), {})
    shown = [show(item, results) for item in items() if item.section == "mine"]
    assert [one.error for one in shown] == ["", "", "ZeroDivisionError: division by zero (broken.py, line 8)"]
    page = write_all(tmp_path / "report", results, {}, shown=shown).read_text()
    assert "broken failed: ZeroDivisionError: division by zero (broken.py, line 8)" in page
    assert "rank_histogram" in page


@pytest.mark.usefixtures("kept_registry")
@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("return Figure(", "Figure(", "TypeError: returned NoneType, not Figure as its annotation says"),
        ("mark_bar()", "mark_bar(opacity=[])", "SchemaValidationError: "),
    ],
)
def test_a_figure_that_is_none_or_no_chart_is_an_error_of_its_item(tmp_path, old, new, error):
    load(tmp_path / "mine.py", OWN.replace(old, new))
    (item,) = (item for item in items(Figure) if item.is_own)
    assert show(item, made.answers(made.sweep(2, checkpoints=1), {})).error.startswith(error)


@pytest.mark.usefixtures("own")
def test_a_file_that_is_read_twice_replaces_its_items(tmp_path):
    before = [item.name for item in items()]
    load(tmp_path / "mine.py", OWN.replace("My note", "Another note"))
    assert [item.name for item in items()] == before
    (histogram,) = (item for item in items() if item.name == "rank_histogram")
    assert show(histogram, made.answers(made.sweep(2, checkpoints=1), {})).content.note.startswith("Another")


@pytest.mark.usefixtures("own")
def test_a_name_that_is_another_items_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"'rank_histogram' of .*other\.py is already defined in .*mine\.py; rename it"
    ):
        load(tmp_path / "other.py", OWN)
    with pytest.raises(ValueError, match=r"'u_shapes' of .*u\.py is already defined in .*relations\.py"):
        load(
            tmp_path / "u.py",
            OWN.replace("rank_histogram", "u_shapes").replace('add_section("mine"', 'add_section("my"'),
        )


@pytest.mark.usefixtures("kept_registry")
def test_unknown_sections_and_kinds_are_refused():
    with pytest.raises(ValueError, match="no section 'nowhere'; sections: findings, "):

        @report_item(section="nowhere", order=1)
        def lost(results) -> Figure: ...

    with pytest.raises(ValueError, match="'plain' needs the return annotation Figure, Table or Words"):

        @report_item(section="spectra", order=1)
        def plain(results): ...

    with pytest.raises(ValueError, match="'new' follows 'nowhere', which isn't a section; sections: findings, "):
        add_section("new", "New", after="nowhere")
    with pytest.raises(ValueError, match="'spectra' is already declared, with the heading 'Spectra'"):
        add_section("spectra", "Other spectra")


@pytest.mark.usefixtures("kept_registry")
def test_figures_that_share_a_name_of_data_must_agree_on_them(tmp_path):
    load(tmp_path / "mine.py", OWN)
    load(tmp_path / "more.py", OWN.replace("rank_histogram", "again").replace("rank_table", "table_again")
         .replace(".round()", ""))  # fmt: skip
    results = made.answers(made.sweep(2, checkpoints=1), {})
    shown = [show(item, results) for item in items(Figure) if item.section == "mine"]
    with pytest.raises(ValueError, match="figure 'rank_histogram' has other data named 'ranks'"):
        write_all(tmp_path / "report", results, {}, shown=shown)


@pytest.mark.usefixtures("kept_registry")
def test_the_example_of_the_documentation_draws(tmp_path):
    (source,) = re.findall(r"```python\n(.*?)```", reference.PAGE.read_text(), re.DOTALL)
    load(tmp_path / "mine.py", source)
    (item,) = (item for item in items() if item.is_own)
    shown = show(item, made.answers(made.sweep(6, checkpoints=1), {}))
    assert (item.name, item.section, shown.error, shown.why) == ("cosine_by_decay", "mine", "", "")
    assert b"mean cosine" in render.files(shown.content)["svg"]


def test_the_documentation_lists_all_items():
    assert reference.PAGE.read_text() == reference.page(), "run python -m sweeps.report.reference"


def test_each_item_says_what_it_is_in_one_sentence():
    for item in items():
        assert 10 < len(item.meaning) < 130 and item.meaning.endswith("."), item.name
        assert item.kind in (Figure, Table, registry.Words) and not item.is_own
