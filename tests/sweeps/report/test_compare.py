"""The verb `compare`: its page, table and printed lines, and the input it refuses."""

import html.parser
import json
import re

import numpy as np
import pandas as pd
import pytest

from sweeps import cli

LOSS, RANK = "lm_loss/in_domain", "unembedding/effective_rank_percent"
EVIL = "evil<b onclick='x()'>&\"<!--"


def sweep(decays, shift=0.0, seeds=(0, 1), columns=(LOSS, RANK), **settings):
    """Return a table with an intermediate checkpoint and a final row of each run."""
    rows = [
        {
            "run_id": f"run-{decay}-{seed}",
            "configuration": f"{decay}-{settings}",
            "step": step,
            "final": step == 20,
            "diverged_at": pd.NA,
            "config.init_seed": seed,
            "config.optimizer.weight_decay": decay,
            **settings,
            **{c: i + 3 * decay + 0.1 * seed + shift * (1 + 0.1 * decay) * (step == 20) for i, c in enumerate(columns)},
        }
        for decay in decays
        for seed in seeds
        for step in (10, 20)
    ]
    return pd.DataFrame(rows).astype({"diverged_at": "Int64"})


@pytest.fixture
def folders(tmp_path):
    """A function that writes sweeps by name and returns their folders."""

    def write(**tables):
        for name, table in tables.items():
            (tmp_path / name).mkdir()
            table.to_parquet(tmp_path / name / "results.parquet")
        return [str(tmp_path / name) for name in tables]

    return write


DECAYS = [0.0, 0.1, 0.5, 1.0, 2.0, 4.0]


def tied_and_not(**more):
    tied = "config.model.tied"
    return {"untied": sweep(DECAYS, **{tied: False}), "tied": sweep([*DECAYS, 9.0], 0.5, **{tied: True}), **more}


def compare(capsys, *arguments):
    assert cli.main(["compare", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


class Page(html.parser.HTMLParser):
    """A parsed page: elements with attributes, table cells, text outside scripts, scripts, and unclosed elements."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.cells, self.scripts, self.open, self.text = [], [], [], [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag == "script":
            self.scripts.append("")
        if tag not in ("meta", "input", "wbr", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text
            return
        self.text += text
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += text

    @property
    def figures(self):
        """Of each figure its rows, the title and the range of its axis."""
        data = json.loads(self.scripts[0])
        return [Drawn(data["datasets"][name], figure) for name, figure in data["figures"].items()]


class Drawn:
    """A figure of differences, read from the page's data."""

    def __init__(self, columns, figure):
        coded = {name: values for name, values in columns.items() if isinstance(values, dict)}
        columns = columns | {name: [of["levels"][code] for code in of["codes"]] for name, of in coded.items()}
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        across = figure["layer"][0]["encoding"]["x"]
        self.title, self.range = across["title"], across["scale"]["domain"]


def page_of(folder):
    return Page((folder / "index.html").read_text())


def test_compare_prints_three_lines_and_the_path(folders, capsys, tmp_path):
    lines = compare(capsys, *folders(**tied_and_not()), f"--to={tmp_path / 'out'}")
    assert lines[0] == (
        "tied against untied: 6 pairs of configurations, equal in optimizer.weight_decay; left out of tied: 2 unpaired"
    )
    assert lines[1] == "What differs: model.tied (False in untied, True in tied)"
    assert re.fullmatch(
        r"Largest difference in a loss: lm_loss/in_domain \+0\.563 nats per token "
        r"\(95 % interval \+0\.483 to \+0\.643, 6 pairs\), \+7\.97 standard deviations over seeds",
        lines[2],
    )
    assert lines[3:] == [f"Comparison: {tmp_path / 'out' / 'index.html'}"]


def test_the_csv_has_every_digit_of_every_row(folders, capsys, tmp_path):
    compare(capsys, *folders(**tied_and_not()), f"--to={tmp_path / 'out'}")
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table["first_sweep"] + table["second_sweep"]) == ["untiedtied"] * 2
    assert list(table["column"]) == [LOSS, RANK]
    assert list(table["unit"]) == ["nats per token", "% of the columns"]
    assert table["difference"].to_numpy() == pytest.approx(0.5 * (1 + 0.1 * np.mean(DECAYS)), rel=1e-12)
    assert table["seed_sds"].to_numpy() == pytest.approx(table["difference"] / np.std([0, 0.1], ddof=1))


def test_the_page_is_complete_and_shows_each_row_in_table_and_figure(folders, capsys, tmp_path):
    compare(capsys, *folders(**tied_and_not()), f"--to={tmp_path / 'out'}")
    page = page_of(tmp_path / "out")
    assert page.open == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["comparison.csv", "index.html"]
    assert [row[0] for row in page.cells] == ["column", LOSS, RANK]
    assert page.cells[1][3:7] == ["6", "3.85", "4.413", "+0.563"]
    (figure,) = page.figures
    assert [row["column"] for row in figure.rows] == [LOSS, RANK]
    assert figure.title == "difference in standard deviations over seeds"
    loss = figure.rows[0]
    assert loss["value"] == pytest.approx(0.5 * (1 + 0.1 * np.mean(DECAYS)) / np.std([0, 0.1], ddof=1))
    assert 0 < loss["low"] < loss["value"] < loss["high"]
    assert figure.range[0] < 0 < loss["high"] < figure.range[1]
    assert loss["sure"] is True
    assert "model.tied (False in untied, True in tied)" in page.text
    assert f"olmo-jax compare {tmp_path}" in page.text
    assert page.text.count("sha256 ") == 2


def test_the_page_loads_nothing_and_every_header_sorts(folders, capsys, tmp_path):
    compare(capsys, *folders(**tied_and_not()), f"--to={tmp_path / 'out'}")
    page = page_of(tmp_path / "out")
    loads = ("src", "href", "srcset", "action", "poster")
    assert [tag for tag, attributes in page.elements if any(name in attributes for name in loads)] == []
    heads = [attributes for tag, attributes in page.elements if tag == "th"]
    assert all(a["aria-sort"] == "none" and a["scope"] == "col" for a in heads)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_third_sweep_is_compared_with_the_first(folders, capsys, tmp_path):
    far = sweep(DECAYS[:3], 30.0, columns=(LOSS, "gptq_3/in_domain"), **{"config.model.tied": False})
    lines = compare(capsys, *folders(**tied_and_not(far=far)), f"--to={tmp_path / 'out'}")
    assert [line.split(":")[0] for line in lines] == [
        *("tied against untied", "What differs", "Largest difference in a loss"),
        *("far against untied", "What differs", "Largest difference in a loss", "Comparison"),
    ]
    assert "3 pairs" in lines[3] and "3 are the same configuration in both" in lines[3]
    assert lines[4] == "What differs: no setting"
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table.groupby("second_sweep")["pairs"].max()) == [3, 6]
    assert set(table["note"].dropna()) >= {f"only the {which} sweep has this column" for which in ("first", "second")}
    page = page_of(tmp_path / "out")
    assert [len(figure.rows) for figure in page.figures] == [2, 1]
    assert "Only in the table: 2." in page.text


def test_pair_by_is_a_command_line_option(folders, capsys, tmp_path):
    batch = "config.data.batch_size"
    one, other = (
        pd.concat(sweep([d + b, 2 * d + b], shift, **{batch: b}) for b in (8, 16, 32))
        for d, shift in ((0.1, 0.0), (0.2, 1.0))
    )
    to = f"--to={tmp_path / 'out'}"
    lines = compare(capsys, *folders(one=one, other=other), to, f"--pair_by=data.batch_size,{batch}")
    assert lines[0] == (
        "other against one: 3 pairs of configurations, equal in data.batch_size; "
        "3 compare means of several configurations"
    )
    lefts = folders(left=sweep([0.1, 0.5]), right=sweep([0.1, 5.0]))
    assert compare(capsys, *lefts, to)[0].endswith(
        "some unpaired runs differ only in optimizer.weight_decay: see --pair_by"
    )
    assert lines[1].startswith("What differs: optimizer.weight_decay (8.1, 8.2, 16.1, 16.2, 32.1, 32.2 in one, 8.2, ")


def test_without_replicates_differences_use_the_spread_of_the_first_sweep(folders, capsys, tmp_path):
    one, other = sweep(DECAYS, seeds=(0,)), sweep(DECAYS, 0.5, seeds=(0,))
    lines = compare(capsys, *folders(one=one, other=other), f"--to={tmp_path / 'out'}")
    assert lines[2].endswith("6 pairs)")
    (figure,) = page_of(tmp_path / "out").figures
    assert figure.title == "difference in standard deviations over the paired configurations of one"
    mean = 0.5 * (1 + 0.1 * np.mean(DECAYS))
    assert figure.rows[0]["value"] == pytest.approx(
        mean / np.std(3 * np.array(DECAYS), ddof=1), rel=1e-5
    )  # six digits are drawn


def test_an_outlying_difference_does_not_hide_the_others(folders, capsys, tmp_path):
    columns = [LOSS, *(f"layer_{i}/m" for i in range(5))]
    one, other = (sweep(DECAYS, shift, columns=columns) for shift in (0.0, 0.5))
    other["layer_4/m"] += 1e4
    compare(capsys, *folders(one=one, other=other), f"--to={tmp_path / 'out'}")
    page = page_of(tmp_path / "out")
    (figure,) = page.figures
    assert len(figure.rows) == 6
    assert figure.range[1] < 20
    assert "Beyond the axis: 1." in page.text


def test_single_runs_are_compared_without_an_interval(folders, capsys, tmp_path):
    one, other = sweep([0.1], seeds=(0,)), sweep([0.2], 0.5, seeds=(0,))
    lines = compare(capsys, *folders(one=one, other=other), f"--to={tmp_path / 'out'}")
    assert lines[0] == "other against one: 1 pair of configurations"
    assert lines[2] == "Largest difference in a loss: lm_loss/in_domain +0.81 nats per token (1 pair gives no interval)"
    page = page_of(tmp_path / "out")
    assert "No figure: " in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)


def test_tables_without_a_loss_say_so(folders, capsys, tmp_path):
    one = sweep(DECAYS).drop(columns=[LOSS, RANK])
    lines = compare(capsys, *folders(one=one, other=one), f"--to={tmp_path / 'out'}")
    assert lines[2] == "Largest difference in a loss: no pair has a loss in both sweeps"
    assert page_of(tmp_path / "out").open == []


def test_names_are_escaped_in_html(folders, capsys, tmp_path):
    columns = (LOSS, f"unembedding/{EVIL}")
    tables = {EVIL.replace("/", ""): sweep(DECAYS, columns=columns, **{"config.model.norm": EVIL}),
              "other": sweep(DECAYS, 1.0, columns=columns, **{"config.model.norm": "</script>"})}  # fmt: skip
    compare(capsys, *folders(**tables), f"--to={tmp_path / 'out'}")
    page = page_of(tmp_path / "out")
    assert page.open == []
    assert all("onclick" not in attributes for _, attributes in page.elements)
    assert "<" not in page.scripts[0]
    assert page.text.count(EVIL) >= 6
    assert [row[0] for row in page.cells[1:]] == list(columns)
    assert [row["column"] for row in page.figures[0].rows] == list(columns)
    assert f"model.norm ({EVIL} in {EVIL}, </script> in other)" in page.text


def test_folders_of_equal_name_are_shown_by_path(folders, capsys, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = folders(**{"a/sweep": sweep(DECAYS), "b/sweep": sweep(DECAYS, 1.0)})
    lines = compare(capsys, one, other, f"--to={tmp_path / 'out'}")
    assert lines[0].startswith(f"{other} against {one}: 6 pairs")


def refused(capsys, code, *arguments):
    assert cli.main(["compare", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def test_incomparable_sweeps_are_refused_in_one_line_and_nothing_is_written(folders, capsys, tmp_path):
    one, other, apart, begun = folders(
        one=sweep(DECAYS), other=sweep(DECAYS, 1.0), apart=sweep([7.0, 8.0]), begun=sweep(DECAYS).assign(final=False)
    )
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir()
    broken.mkdir()
    (broken / "results.parquet").write_text("no table")
    to = f"--to={tmp_path / 'out'}"
    assert f"{one} is the only folder" in refused(capsys, 2, one, to)
    assert "is named twice" in refused(capsys, 2, one, other, f"{one}/", to)
    assert "required: --to" in refused(capsys, 2, one, other)
    assert "required: WORKDIR" in refused(capsys, 2, to)
    assert "takes no --config" in refused(capsys, 2, one, other, to, "--config=x.py")
    for folder in (empty, tmp_path / "nowhere"):
        assert f"`olmo-jax report --workdir={folder}`" in refused(capsys, 1, one, str(folder), to)
    assert f"{broken / 'results.parquet'} can't be read" in refused(capsys, 1, one, str(broken), to)
    assert "begun against one: the second sweep has no finished run" in refused(capsys, 1, one, begun, to)
    line = refused(capsys, 1, one, other, apart, to)
    assert "apart against one: no configuration" in line
    assert "optimizer.weight_decay is 0, 0.1, 0.5, 1, 2, 4 in the first, 7, 8 in the second" in line
    line = refused(capsys, 2, one, other, to, "--pair_by=optimizer.weigth_decay")
    assert "--pair_by, other against one: " in line and "did you mean 'config.optimizer.weight_decay'?" in line
    assert not (tmp_path / "out").exists()
    file = tmp_path / "file"
    file.write_text("mine")
    assert str(file) in refused(capsys, 1, one, other, f"--to={file}")
    assert file.read_text() == "mine"
