"""The tables of papers: .csv with every digit, .tex that LaTeX reads."""

import csv
import re

import numpy as np
import pandas as pd
import pytest

from sweeps.report.cells import cell as table_cell
from sweeps.report.cells import estimate, rounded
from sweeps.report.export import escape_latex, tabular, write_tables
from sweeps.report.item import Table, items, show
from tests.sweeps.report import made

NAMES = ["associations", "saturation", "variance", "predictions", "early"]


def shown_tables(answers):
    return [show(item, answers) for item in items(Table) if item.name in NAMES]


def tokens(tex):
    """Return the tokens of LaTeX source: commands, escaped characters and single characters, without comments."""
    text = re.sub(r"(?<!\\)%.*", "", tex)
    return re.findall(r"\\[A-Za-z]+|\\.|.", text, flags=re.DOTALL)


def cells(tex):
    """Rows of a tabular as lists of cells; asserts that groups close within their cell."""
    body = tex.split(r"\toprule")[1].split(r"\bottomrule")[0].replace(r"\midrule", "")
    rows, depth = [[""]], 0
    for token in tokens(body):
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
        if token == "&":
            assert depth == 0
            rows[-1].append("")
        elif token == "\\\\":
            assert depth == 0
            rows.append([""])
        else:
            rows[-1][-1] += token
    assert depth == 0 and not "".join(rows.pop()).strip()
    return [[cell.strip() for cell in row] for row in rows]


def shown(tex):
    """Return the text of a cell as LaTeX prints it."""
    named = {r"\textbackslash": "\\", r"\textasciitilde": "~", r"\textasciicircum": "^", r"\textless": "<"}
    named |= {r"\textgreater": ">", r"\textbar": "|"}
    return "".join(named.get(t, t[1:] if t[0] == "\\" else t) for t in tokens(tex) if t not in "{}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers") / "tables"
    paths = write_tables(folder, shown_tables(made.answers()))
    assert [path.name for path in paths] == [f"{name}.{ending}" for name in NAMES for ending in ("csv", "tex")]
    assert sorted(p.name for p in folder.iterdir()) == sorted(path.name for path in paths)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_tabular_has_as_many_cells_in_each_row_as_columns(folder, name):
    tex = (folder / f"{name}.tex").read_text()
    spec = re.search(r"\\begin\{tabular\}\{([lr]+)\}", tex)[1]
    rows = cells(tex)
    assert {len(row) for row in rows} == {len(spec)}
    assert tex.endswith("\\bottomrule\n\\end{tabular}\n")
    assert "nan" not in tex and len(rows) > 2


def test_associations_have_a_row_per_pair_and_a_column_per_method(folder):
    rows = cells((folder / "associations.tex").read_text())
    methods = [r"raw $\rho$", "partial, ranks", "partial, factors", "$\\Delta$R$^2$", "mixed model"]
    assert rows[0] == ["", "metric", "loss", "n", *methods, "note"]
    pair = ["Unembedding W", r"Effective rank, \% of D", "loss, in domain", "24"]
    assert rows[1][:5] == [*pair, "$-$0.90 ($-$1.00 to $-$0.80)"]
    assert rows[1][6] == "--" and "3 configurations are too few for 5 folds" in rows[1][-1]
    assert len(rows) == 1 + len(made.METRICS) * len(made.LOSSES)

    read = pd.read_csv(folder / "associations.csv")
    given = made.associations()
    assert read["metric"].tolist() == made.METRICS * 2
    of = given[given["method"] == "mixed effects"]
    for column in ("estimate", "low", "p_value", "q_value", "seed_sds", "with_diverged", "left_out"):
        np.testing.assert_allclose(read[f"mixed effects {column}"], of[column])
    assert set(read["partial factor note"]) == {"3 configurations are too few for 5 folds"}


def test_the_csv_has_full_precision(tmp_path):
    third = made.prediction().assign(r2=1 / 3)
    write_tables(tmp_path, shown_tables(made.answers(prediction=third)))
    with (tmp_path / "predictions.csv").open() as file:
        assert {float(row["r2"]) for row in csv.DictReader(file)} == {1 / 3}


def test_variance_rows_have_a_column_per_setting(folder):
    rows = cells((folder / "variance.tex").read_text())
    assert rows[0] == ["column", "n", "batch size", "weight decay", "seed", "rest"]  # no note, no column of notes
    assert rows[2][:3] == ["loss, in domain", "24", "0.500 (0.460 to 0.540)"]
    assert [row[4] for row in rows[1:]] == ["0.150 (0.110 to 0.190)"] * 2
    assert len(pd.read_csv(folder / "variance.csv")) == 8


def test_notes_replace_missing_numbers(tmp_path):
    failed = made.early().assign(r2=np.nan, low=np.nan, high=np.nan, n=3, note="3 configurations & 5 folds_")
    write_tables(tmp_path, shown_tables(made.answers(early=failed)))
    rows = cells((tmp_path / "early.tex").read_text())
    assert rows[0] == ["target", "share", "features", "R$^2$", "n", "note"]
    assert rows[1] == [r"lm\_loss/in\_domain", r"10 \%", "settings", "--", "3", r"3 configurations \& 5 folds\_"]


def test_run_names_are_shown_literally(tmp_path):
    quadrants = made.saturation(made.answers().final.rows).quadrants
    quadrants.at[0, "examples"] = [made.EVIL, "b"]
    answers = made.answers()
    answers.saturation.quadrants = quadrants
    write_tables(tmp_path, shown_tables(answers))
    assert pd.read_csv(tmp_path / "saturation.csv")["examples"][0] == f"{made.EVIL}, b"
    assert shown(cells((tmp_path / "saturation.tex").read_text())[1][2]) == f"{made.EVIL}, b"


@pytest.mark.parametrize("text", ["_ % & # $ ~ ^ \\ { }", made.EVIL, "\\\\", "}{", "[x]*", "a|<b>", "\\textbf{x}", "%"])
def test_any_text_is_one_cell_and_reads_literally(text):
    table = Table("A table", [text, "x"], [[table_cell(text), table_cell(1)]], pd.DataFrame())
    for (first, second), other in zip(cells(tabular(table)), ("x", "1"), strict=True):
        assert shown(first) == text and second == other
    assert not re.match(r"[\[*]", escape_latex(text))


def test_unprintable_characters_become_spaces():
    assert escape_latex("a\nb\x00c") == "a b c"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0.421, 0.31, 0.53), "0.42 (0.31 to 0.53)"),
        ((0.42134, 0.4201, 0.4225), "0.4213 (0.4201 to 0.4225)"),
        ((-0.421, -0.9, 0.001), "\N{MINUS SIGN}0.42 (\N{MINUS SIGN}0.90 to 0.00)"),
        ((0.5, np.nan, np.nan), "0.50"),
        ((0.5, 0.5, 0.5), "0.50 (0.50 to 0.50)"),
        ((np.nan, np.nan, np.nan), "--"),
        ((0.5, -np.inf, 1.0), "0.50"),
    ],
)
def test_numbers_are_rounded_according_to_their_intervals(numbers, expected):
    assert rounded(estimate(*numbers)) == expected


def test_zero_has_no_minus_sign():
    assert rounded(estimate(-0.0001, np.nan, np.nan)) == "0.00"
    assert rounded(estimate(-0.01, np.nan, np.nan)) == "\N{MINUS SIGN}0.01"


def test_without_results_there_is_no_table_and_files_of_earlier_ones_go(tmp_path):
    assert len(write_tables(tmp_path, shown_tables(made.answers()))) == 10
    assert write_tables(tmp_path, shown_tables(made.empty_answers())) == []
    assert list(tmp_path.iterdir()) == []
