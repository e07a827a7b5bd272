import html.parser
import json
import re
import time

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.results import analyze
from sweeps.report import page as pages
from sweeps.report import statistics, write_report
from sweeps.report.curves import MAX_POINTS
from sweeps.report.sections import CONTENTS
from sweeps.studies.paper_b.study import STUDY

EVIL = "evil</script><script>alert(1)</script><b onclick='x()'>&\"<!--"
FACTS = {"command": "olmo-jax report --workdir=<dir>", "versions": "jax 0.10.2"}
GEOMETRY = ["unembedding/effective_rank_percent", "unembedding/mean_cosine", "final_states/effective_rank"]
LOSSES = ["lm_loss/in_domain", "round_to_nearest_3/in_domain"]


def sweep(runs=12, checkpoints=3, steps=40, losses=LOSSES, geometry=GEOMETRY):
    """A table and its curves; the last run's name is HTML."""
    rng = np.random.default_rng(0)
    names = [f"run{i}" for i in range(runs - 1)] + [EVIL]
    rows, curves = [], {}
    for i, name in enumerate(names):
        at = np.arange(1, steps + 1)
        curve = pd.DataFrame({"step": at, "loss": 8 - at / steps, "tokens": at * 1024, "learning_rate": 1e-3})
        probed = pd.DataFrame({metric: np.where(at % 10 == 0, rng.random(steps), np.nan) for metric in geometry})
        curves[name] = pd.concat([curve, probed], axis=1)
        for checkpoint in range(1, checkpoints + 1):
            row = {
                "run_id": name,
                "configuration": f"c{i // 2}",
                "step": checkpoint * 10,
                "final": checkpoint == checkpoints,
                "diverged_at": None,
                "config.init_seed": i % 2,
                "config.optimizer.weight_decay": [0.1, 1.0, 10.0][i // 2 % 3],
                "config.model.d_model": 64,
                "config.data.files": ("<a>", "b"),
            }
            rows.append(row | {c: rng.random() for c in [*geometry, *losses]} | {"unigram/in_domain": 6.5})
    return pd.DataFrame(rows), curves


class Page(html.parser.HTMLParser):
    """A parsed page: elements with attributes, and text by enclosing element."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.scripts, self.cells = [], [], {}, []
        self.open = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in ("meta", "input", "wbr", "link", "br"):
            self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        tag, attributes = self.open[-1] if self.open else ("", {})
        if tag == "script":
            key = attributes.get("id", f"script{len(self.scripts)}")
            self.scripts[key] = self.scripts.get(key, "") + text
            return
        self.texts.append(text)
        if any(t in ("td", "th") for t, _ in self.open):
            self.cells[-1][-1] += text

    def all(self, tag):
        return [attributes for t, attributes in self.elements if t == tag]

    @property
    def text(self):
        return "".join(self.texts)

    @property
    def data(self):
        return json.loads(self.scripts["data"])


def at(page, curve, what):
    """Return the coordinates of a curve's points."""
    return page.data["at"][curve["at"]][what]


def options(page, name):
    """Return the option values of a select element of the page."""
    select = re.search(rf'<select id="{name}">(.*?)</select>', page.source, re.DOTALL)[1]
    return [value or text for value, text in re.findall(r'<option(?: value="([^"]*)")?[^>]*>([^<]*)</option>', select)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write_report(tmp_path_factory.mktemp("report") / "report", analyze(*sweep()), FACTS))


def test_the_page_loads_no_external_resources(page):
    loads = ("src", "srcset", "data", "action", "poster")
    assert [(t, a) for t, a in page.elements if any(name in a for name in loads)] == []
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert page.all("link") == page.all("iframe") == []
    markup = page.source.replace(page.scripts["plotly"], "")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", markup)
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none';")
    assert "http" not in policy[0]


def test_plotly_is_embedded_once_without_upload_features(page):
    assert len(re.findall(r"plotly\.js v\d", page.source)) == 1
    assert 'plotlyServerURL: ""' in page.source
    assert "modeBarButtons: [[" in page.source


def test_every_run_is_in_the_table_the_curves_and_the_figure(page):
    names = set(sweep()[0].run_id)
    assert names <= {row[0] for row in page.cells if row}
    assert set(page.data["curves"]) == set(page.data["runs"]) == set(page.data["final"]["run"]) == names


def test_run_names_are_escaped(page):
    assert EVIL in page.text
    assert len(page.all("script")) == 3 + len(pages.SCRIPTS) + len(STUDY.scripts)
    assert page.all("b") and all("onclick" not in attributes for _, attributes in page.elements)
    assert "<" not in page.scripts["data"]
    assert page.open == []


def test_facts_and_settings_are_shown_and_escaped(page):
    for text in ("olmo-jax report --workdir=<dir>", "jax 0.10.2", "<a>, b", "model.d_model"):
        assert text in page.text


def test_sections_come_in_reading_order(page):
    heads = [page.source.index(f'<h2 id="{name}">') for name in CONTENTS]
    assert heads == sorted(heads)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {a["href"].removeprefix("#") for a in page.all("a")} == set(CONTENTS) <= ids
    assert (
        page.source.index("demonstration of the laboratory") < heads[0] < page.source.index("unigram model") < heads[1]
    )


def test_every_table_header_is_a_button_with_its_sort_state(page):
    tables = page.all("table")
    assert [a["id"] for a in tables][:2] == ["correlations-0", "correlations-1"] and tables[-1]["id"] == "table"
    assert all("sortable" in a["class"] for a in tables)
    assert all(a["aria-sort"] == "none" and a["scope"] == "col" for a in page.all("th"))
    assert len([a for a in page.all("button") if "data-table" in a]) == len(tables)
    assert len(re.findall(r"<th [^>]*><button ", page.source)) == len(page.all("th")) > 15
    assert re.search(r'<td class="number" data-value="10">10</td>', page.source)


def test_settings_precede_results_and_constant_ones_are_separate(page):
    head = next(row for row in page.cells if row and row[0] == "run_id")
    assert head[:3] == ["run_id", "weight decay", "init seed"]
    assert "d model" not in head
    assert [s["key"] for s in page.data["settings"]] == ["config.optimizer.weight_decay"]


def test_the_declared_pair_leads_the_correlations_and_the_figure(page):
    first = page.cells[1]
    assert first[:3] == ["Effective rank, % of D", "lm_loss/in_domain", "12"]
    assert re.search(r" p [.<]", first[3]) and re.search(r" q [.<]", page.cells[2][3])
    chosen = re.findall(r"<option selected>([^<]+)</option>", page.source)
    assert set(chosen) == {"unembedding/effective_rank_percent", "lm_loss/in_domain"}


def test_curves_separate_probes_and_keep_gaps(tmp_path):
    table, curves = sweep(runs=2, steps=1000)
    curves["run0"].loc[900:, "loss"] = np.nan
    page = Page(write_report(tmp_path, analyze(table, curves), {}))
    curve = page.data["curves"]["run0"]
    assert at(page, curve["unembedding/mean_cosine"], "step") == list(range(10, 1001, 10))
    assert at(page, curve["unembedding/mean_cosine"], "tokens") == list(range(10240, 1024001, 10240))
    loss = curve["loss"]
    assert at(page, loss, "step")[:2] == [2, 5]
    assert len(loss["value"]) == MAX_POINTS
    assert loss["value"][0] == pytest.approx(np.mean(8 - np.arange(1, 4) / 1000), rel=1e-5)
    assert loss["value"][-1] is None and loss["value"][260] is not None


def test_a_new_column_appears_everywhere(tmp_path):
    column = "blocks_0.mlp.up_centred/my_metric"
    page = Page(write_report(tmp_path, analyze(*sweep(geometry=[column, "unembedding/my_metric", *GEOMETRY])), {}))
    assert options(page, "target") == ["unembedding", "final_states", "blocks_0.mlp.up_centred"]
    targets = page.data["targets"]
    assert [t["name"] for t in targets] == ["Unembedding W", "Final states H", "Parameter blocks_0.mlp.up, centred"]
    assert targets[0]["panels"][:2] == [
        {"key": "unembedding/my_metric", "name": "my metric"},
        {"key": "unembedding/effective_rank_percent", "name": "Effective rank, % of D"},
    ]
    assert page.data["training_loss"]["key"] == "loss"
    for name in (column, "unembedding/my_metric"):
        assert all(len(curve[name]["value"]) == 4 for curve in page.data["curves"].values())
        assert name in options(page, "x") and len(page.data["final"]["values"][name]) == 12
        assert page.data["matrix"]["metrics"].count(name) == 1
        assert any(name in row for row in page.cells if row and row[0] == "run_id")
    assert [row[1] for row in page.cells if row and row[0] == "My metric"] == []
    assert [row[1] for row in page.cells if row and row[0] == "my metric"] == LOSSES * 2


@pytest.fixture(scope="module")
def probe_sets(tmp_path_factory):
    """A page of a sweep with spreads and counts, some of them missing."""
    counts = {"final_states/points": 128, "final_states/rank_cap": 64, "final_states_spread/effective_rank": 0.25}
    table, curves = sweep()
    for frame in (table, *curves.values()):
        frame[list(counts)] = [list(counts.values())] * len(frame)
    curves["run0"].loc[curves["run0"].step == 20, "final_states_spread/effective_rank"] = np.nan
    curves["run1"] = curves["run1"].drop(columns="final_states_spread/effective_rank")
    curves["run2"]["final_states/duplicates"] = np.arange(40) // 20
    return Page(write_report(tmp_path_factory.mktemp("report"), analyze(table, curves), {}))


def test_spreads_are_shown_as_bands_only(probe_sets):
    curves = probe_sets.data["curves"]
    assert curves["run0"]["final_states/effective_rank"]["spread"] == [0.25, None, 0.25, 0.25]
    assert "spread" not in curves["run1"]["final_states/effective_rank"]
    assert "spread" not in curves["run0"]["unembedding/mean_cosine"]
    assert options(probe_sets, "target") == ["unembedding", "final_states"]
    assert options(probe_sets, "x") == GEOMETRY
    assert probe_sets.data["matrix"]["metrics"] == GEOMETRY


def test_counts_are_shown_in_a_note(probe_sets):
    notes = [target["note"] for target in probe_sets.data["targets"]]
    assert notes == ["", "Final states H: 128 points, rank at most 64, 0 to 1 duplicated"]
    assert not any("points" in panel["key"] for target in probe_sets.data["targets"] for panel in target["panels"])


def test_target_names_are_escaped(tmp_path):
    target = f'blocks_0/{EVIL}"'
    page = Page(write_report(tmp_path, analyze(*sweep(geometry=[*GEOMETRY, f"{target}/my_metric"])), {}))
    names = {attributes.get("value") for attributes in page.all("option")}
    assert target in names
    assert page.data["targets"][-1]["key"] == target
    assert f"Parameter {target}" in {attributes["label"] for attributes in page.all("optgroup")}
    assert page.text.count(f"Parameter {target}") == 2  # the choice of a target and the correlations
    assert len(page.all("script")) == 3 + len(pages.SCRIPTS) + len(STUDY.scripts)
    assert all("onclick" not in attributes for _, attributes in page.elements)
    assert "<" not in page.scripts["data"]
    assert page.open == []


@pytest.mark.slow
def test_a_page_of_many_targets_is_fast_folded_and_bounded_in_size(tmp_path):
    layers = [f"layer_{i}/metric_{j}" for i in range(24) for j in range(6)]
    table, curves = sweep(runs=36, steps=400, geometry=[*GEOMETRY, *layers], losses=[f"lm_loss/{i}" for i in range(12)])
    start = time.process_time()
    page = Page(write_report(tmp_path, analyze(table, curves), {}))
    assert time.process_time() - start < 15
    folds = [a for a in page.all("details") if "class" not in a][: 2 + 24]
    assert ["open" in a for a in folds] == [True] * statistics.OPEN_TARGETS + [False] * (26 - statistics.OPEN_TARGETS)
    assert len(page.source) - len(page.scripts["plotly"]) < 6e6


def test_a_large_sweep_shows_final_rows_and_is_fast(tmp_path):
    table, curves = sweep(runs=108, checkpoints=6, steps=400, losses=[f"lm_loss/{i}" for i in range(12)])
    start = time.process_time()
    page = Page(write_report(tmp_path, analyze(table, curves), FACTS))
    assert time.process_time() - start < 15
    assert len([row for row in page.cells if row and row[0].startswith("run")]) == 108
    assert "all 648 are in results.csv beside the page" in page.text


@pytest.mark.parametrize(
    "change",
    [
        lambda table, curves: (table.head(0), {}),
        lambda table, curves: (table.head(1), {}),
        lambda table, curves: (table[~table.final], curves),
        lambda table, curves: (table.assign(diverged_at=5), curves),
        lambda table, curves: (table.drop(columns=GEOMETRY), curves),
        lambda table, curves: (table.drop(columns=LOSSES), {name: pd.DataFrame() for name in curves}),
        lambda table, curves: (table.assign(**dict.fromkeys(GEOMETRY + LOSSES, np.nan)), curves),
    ],
    ids=["empty", "one row", "unfinished", "all diverged", "no geometry", "no losses", "all missing"],
)
def test_a_page_is_written_with_any_data_missing(tmp_path, change):
    page = Page(write_report(tmp_path, analyze(*change(*sweep(4))), {}))
    assert page.open == []
    assert len(re.findall(r"<section", page.source)) == len(CONTENTS)
    assert not re.search(r"\bnan\b|\bNaN\b|>None<", page.source.replace(page.scripts["plotly"], "").split("<style>")[0])
    assert "Not recorded." in page.text


def test_the_page_is_written_atomically(tmp_path, monkeypatch):
    path = write_report(tmp_path, analyze(*sweep(3)), {"command": "first"})
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]

    def fail(self, target):
        raise OSError("no space")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, analyze(*sweep(3)), {"command": "second"})
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    assert "<dd>first</dd>" in path.read_text()
