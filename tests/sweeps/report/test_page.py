import html.parser
import json
import re
import time

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.results import analyze
from sweeps.report import write_report
from sweeps.report.item import sections

EVIL = "evil</script><script>alert(1)</script><b onclick='x()'>&\"<!--"
FACTS = {"command": "olmo-jax report --workdir=<dir>", "versions": "jax 0.10.2"}
GEOMETRY = ["unembedding/effective_rank_percent", "unembedding/mean_cosine", "final_states/effective_rank"]
LOSSES = ["lm_loss/in_domain", "round_to_nearest_3/in_domain"]
SCRIPTS = 4  # the data, vega, and two of the page's own
# The sections of studies and of imported models are there only where a sweep has something for them.
CONTENTS = [name for name, section in sections().items() if not section.optional]


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
        """The page's data, each of its columns as a list of values."""
        data = json.loads(self.scripts["data"])
        for columns in data["datasets"].values():
            coded = {name: values for name, values in columns.items() if isinstance(values, dict)}
            columns |= {name: [of["levels"][code] for code in of["codes"]] for name, of in coded.items()}
        return data


def params(page, name):
    """Return the parameters of a figure by name."""
    return {param["name"]: param for param in page.data["figures"][name]["params"]}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write_report(tmp_path_factory.mktemp("report") / "report", analyze(*sweep()), FACTS))


def test_the_page_loads_no_external_resources(page):
    loads = ("src", "srcset", "data", "action", "poster")
    assert [(t, a) for t, a in page.elements if any(name in a for name in loads)] == []
    assert all(a["href"].startswith("#") for a in page.all("a"))
    assert page.all("link") == page.all("iframe") == []
    markup = page.source.replace(page.scripts["vega"], "")
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", markup)
    policy = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none';")
    assert "http" not in policy[0]


def test_the_scripts_are_embedded_once_and_offer_no_upload(page):
    assert len(re.findall(r"window\.vegaEmbed ?=", page.source)) == 1
    assert "editor: false" in page.source and "</script" not in page.scripts["vega"]


def test_every_run_is_in_the_table_the_curves_and_the_figures(page):
    names = set(sweep()[0].run_id)
    assert names <= {row[0] for row in page.cells if row}
    assert all(set(page.data["datasets"][of]["run"]) == names for of in ("losses", "geometry", "final", "runs"))


def test_run_names_are_escaped(page):
    assert EVIL in page.text
    assert len(page.all("script")) == SCRIPTS
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


def test_each_figure_of_the_specifications_has_its_place(page):
    places = [a["data-figure"] for a in page.all("div") if "data-figure" in a]
    assert len(places) == len(set(places)) >= 10 and set(places) == set(page.data["figures"])


def test_every_table_header_is_a_button_with_its_sort_state(page):
    tables = page.all("table")
    assert [a["id"] for a in tables][:2] == ["associations-0", "associations-1"]
    assert [a["id"] for a in tables][-2:] == ["results_table", "constant_settings"]
    assert all("sortable" in a["class"] for a in tables)
    assert all(a["aria-sort"] == "none" and a["scope"] == "col" for a in page.all("th"))
    assert len([a for a in page.all("button") if "data-table" in a]) == len(tables)
    assert len(re.findall(r"<th [^>]*><button ", page.source)) == len(page.all("th")) > 15
    assert re.search(r'<td class="number" data-value="10">10</td>', page.source)
    assert re.search(r'<td class="estimate (posi|nega)tive" style="--strength: 0.\d\d" data-value="', page.source)


def test_settings_precede_results_and_constant_ones_are_separate(page):
    head = next(row for row in page.cells if row and row[0] == "run_id")
    assert head[:3] == ["run_id", "config.optimizer.weight_decay", "config.init_seed"]
    assert "config.model.d_model" not in head and ["model.d_model", "64"] in page.cells
    assert page.data["settings"] == ["weight decay"]


def test_the_declared_pair_leads_the_correlations_and_the_figure(page):
    first = page.cells[1]
    assert first[:3] == ["Effective rank, % of D", "loss, in domain", "12"]
    assert re.search(r" p [.<]", first[3]) and re.search(r" q [.<]", page.cells[2][3])
    of = params(page, "loss_against_geometry")
    assert of["metric"]["value"] == "Unembedding W: effective rank, % of D" and of["loss"]["value"] == "loss, in domain"


def test_a_new_column_appears_everywhere(tmp_path):
    column = "blocks_0.mlp.up_centred/my_metric"
    page = Page(write_report(tmp_path, analyze(*sweep(geometry=[column, "unembedding/my_metric", *GEOMETRY])), {}))
    targets = ["Unembedding W", "Final states H", "Parameter blocks_0.mlp.up, centred"]
    assert params(page, "geometry_over_training")["target"]["bind"]["options"] == targets
    geometry = page.data["datasets"]["geometry"]
    for name in ("Parameter blocks_0.mlp.up, centred: my metric", "Unembedding W: my metric"):
        assert len(geometry[name]) == 12 * 4 and None not in geometry[name]
        assert name in params(page, "loss_against_geometry")["metric"]["bind"]["options"]
        assert len(page.data["datasets"]["final"][name]) == 12
        assert name in page.data["datasets"]["correlations"]["metric"]
    assert [row[1] for row in page.cells if row and row[0] == "my metric"] == [
        "loss, in domain",
        "round to nearest 3, in domain",
    ] * 2
    for name in (column, "unembedding/my_metric"):
        assert any(name in row for row in page.cells if row and row[0] == "run_id")


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
    geometry = pd.DataFrame(probe_sets.data["datasets"]["geometry"])
    states = geometry.set_index("run")["Final states H: Effective rank spread"]
    assert [None if np.isnan(x) else x for x in states["run0"]] == [0.25, None, 0.25, 0.25]
    assert states["run1"].isna().all()
    assert "Unembedding W: Mean cosine of rows spread" not in geometry
    assert params(probe_sets, "geometry_over_training")["target"]["bind"]["options"] == [
        "Unembedding W",
        "Final states H",
    ]
    assert len(params(probe_sets, "loss_against_geometry")["metric"]["bind"]["options"]) == len(GEOMETRY)
    assert len(set(probe_sets.data["datasets"]["correlations"]["metric"])) == len(GEOMETRY)


def test_counts_are_shown_in_a_note(probe_sets):
    assert "Final states H: 128 points, rank at most 64, 0 to 1 duplicated." in probe_sets.text
    assert not [name for name in probe_sets.data["datasets"]["geometry"] if name.endswith("points")]


def test_target_names_are_escaped(tmp_path):
    target = f'blocks_0/{EVIL}"'
    page = Page(write_report(tmp_path, analyze(*sweep(geometry=[*GEOMETRY, f"{target}/my_metric"])), {}))
    assert params(page, "geometry_over_training")["target"]["bind"]["options"][-1] == f"Parameter {target}"
    assert page.text.count(f"Parameter {target}") == 1  # the fold of its correlations
    assert len(page.all("script")) == SCRIPTS
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
    assert ["open" in a for a in folds] == [True] + [False] * 25
    assert len(page.source) - len(page.scripts["vega"]) < 6e6


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
    assert "nothing to show" in page.text
    assert not re.search(r"\bnan\b|\bNaN\b|>None<", page.source.split("<main>")[1].split("<script")[0])
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
