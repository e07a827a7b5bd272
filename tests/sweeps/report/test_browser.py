"""The page as Chromium shows it, opened from disk: needs chromium and chromedriver, which .ci/run installs."""

import csv
import functools
import http.server
import io
import json
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest

from benchmarks.report import made_up
from sweeps.analysis.results import analyze
from sweeps.report import write_report
from sweeps.report.page import live_page
from sweeps.report.serve import _Handler

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]
EVIL = "evil</script><script>document.title = 'taken'</script><b onclick='x()'>&\"<!--"
# Vega-Lite warns so of any faceted chart whose panels have scales of their own.
EXPECTED = "Detected faceted independent scales that union domain of the same fields from different source"
# Without these options Chromium makes requests of its own, or doesn't run as root.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--window-size=1280,900",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="module")
def sweep():
    """108 runs x 100 checkpoints; one run's name is HTML, and one setting is in words."""
    table, curves = made_up(108, 100)
    named = {"made-up-007": EVIL}
    table = table.assign(
        run_id=table["run_id"].replace(named),
        **{"config.schedule": np.where(table["config.optimizer.weight_decay"] > 0.05, "cosine <i>", "linear & co")},
    )
    return table, {named.get(run, run): curve for run, curve in curves.items()}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(browser, sweep, tmp_path_factory):
    """The browser with the page open, the logs and requests of the last of three loads, and the time of the fastest."""
    path = write_report(tmp_path_factory.mktemp("report"), analyze(*sweep), {"command": "olmo-jax report <dir>"})
    took = []
    for _ in range(3):  # other processes may use the machine
        browser.get("about:blank")
        time.sleep(1)
        logs(browser)
        browser.get(f"file://{path}")
        took.append(browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd"))
    return browser, logs(browser), min(took) / 1000


def logs(browser):
    """Return (console messages but the expected warning, requested URLs) since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    messages = [entry["message"] for entry in browser.get_log("browser")]
    return [message for message in messages if EXPECTED not in message], requests


def draw_all(browser):
    """Draw every figure and return the names of those without a drawing."""
    return browser.execute_async_script("""
      const done = arguments[0];
      const isEmpty = ({ node }) => !node.querySelector('svg .mark-group');
      drawAll().then(() => done(figures.filter(isEmpty).map(({ name }) => name)));
    """)


def drawn(browser, figure, field):
    """Return a field of the data that a figure's marks are drawn from, after filters."""
    return browser.execute_async_script("""
      const [name, field, done] = arguments;
      const { view } = figures.find((figure) => figure.name === name);
      view.runAsync().then(() => {
        const marks = view.scenegraph().root.items[0].items.filter(({ name }) => name && name.endsWith("marks"));
        done(marks.flatMap((mark) => mark.items.map((item) => item.datum[field])));
      });
    """, figure, field)  # fmt: skip


def shown_rows(browser):
    return browser.execute_script("""
      return [...document.querySelectorAll('#results_table tbody tr')]
        .filter((row) => getComputedStyle(row).display !== 'none').map((row) => row.cells[0].textContent);
    """)


def choose(browser, figure, param, value):
    """Choose an option of a figure's own select, as its reader does, and wait until it is drawn."""
    browser.execute_async_script("""
      const [name, param, value, done] = arguments;
      const { node, view } = figures.find((figure) => figure.name === name);
      const select = node.querySelector(`select[name="${param}"]`);
      select.value = value;
      select.dispatchEvent(new Event("input"));
      select.dispatchEvent(new Event("change"));
      view.runAsync().then(() => done());
    """, figure, param, value)  # fmt: skip


def text_of(browser, figure):
    return browser.execute_script(
        'return [...document.querySelectorAll(`[data-figure="${arguments[0]}"] svg text`)].map((e) => e.textContent)',
        figure,
    )


def test_the_page_opens_offline_quickly_and_without_errors(page):
    _, (messages, requests), seconds = page
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    assert seconds < 2


def test_every_figure_is_drawn_and_names_are_escaped(page):
    browser = page[0]
    assert browser.title != "taken"
    assert draw_all(browser) == []
    assert browser.execute_script("return figures.length") >= 15
    choose(browser, "by_setting", "setting", "schedule")
    assert {"cosine <i>", "linear & co"} <= set(text_of(browser, "by_setting"))
    texts = browser.execute_script(
        "return [...document.querySelectorAll('#filters label')].map((e) => e.textContent.trim())"
    )
    assert {"cosine <i>", "linear & co"} <= set(texts)
    assert EVIL in shown_rows(browser)
    assert (
        browser.execute_script("return document.querySelectorAll('svg script, td b[onclick], #filters i').length") == 0
    )
    assert logs(browser)[0] == []


def test_every_control_works_from_the_keyboard(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = page[0]
    assert draw_all(browser) == []
    selects = browser.find_elements(By.CSS_SELECTOR, "select")
    assert len(selects) >= 15
    for select in selects:
        before = select.get_property("selectedIndex")
        select.send_keys(Keys.ARROW_DOWN)
        changed = select.get_property("selectedIndex")
        assert changed == before + 1 or len(select.find_elements(By.CSS_SELECTOR, "option")) == before + 1
    assert logs(browser)[0] == []
    reached = browser.execute_script("""
      const kinds = 'a[href], button, select, input, summary, [tabindex]';
      return [...document.querySelectorAll(kinds)].every((node) => node.tabIndex >= 0 || node.closest('.vega-embed'));
    """)
    assert reached


def test_the_colour_is_that_of_the_chosen_setting(page):
    browser = page[0]
    draw_all(browser)
    for setting in ("weight decay", "batch size"):
        browser.execute_script(f"""
          element("colour").value = "{setting}";
          element("colour").dispatchEvent(new Event("change"));
        """)
        assert len(drawn(browser, "loss_against_geometry", "level")) == 108
        assert setting in text_of(browser, "loss_against_geometry")


def test_filters_select_runs_in_figures_and_table(page, sweep):
    from selenium.webdriver.common.by import By

    browser, table = page[0], sweep[0]
    draw_all(browser)
    all_rows = shown_rows(browser)
    browser.find_element(By.CSS_SELECTOR, ".filters summary").click()
    box = browser.find_element(By.CSS_SELECTOR, '#filters input[data-setting="batch size"][data-level="32"]')
    box.click()
    left = set(table.loc[table["config.data.batch_size"] != 32, "run_id"])
    assert browser.find_element(By.ID, "shown").text == f"{len(left)} of 108 runs shown"
    assert set(shown_rows(browser)) == left
    assert set(drawn(browser, "loss_against_geometry", "run")) == left
    browser.find_element(By.ID, "show-all").click()
    assert shown_rows(browser) == all_rows
    assert len(drawn(browser, "loss_against_geometry", "run")) == 108
    assert box.is_selected()


def test_tables_sort_by_their_headers_with_missing_values_last(page, sweep):
    browser, table = page[0], sweep[0]
    final = table[table["final"]].set_index("run_id")["lm_loss/in_domain"]
    press = """[...document.querySelectorAll('#results_table th button')]
      .find((button) => button.textContent === "lm_loss/in_domain").click()"""
    browser.execute_script(press)
    assert shown_rows(browser) == list(final.sort_values().index)
    browser.execute_script(press)
    assert shown_rows(browser) == list(final.sort_values(ascending=False).index)


def test_the_download_contains_the_table(page, sweep, tmp_path):
    browser, table = page[0], sweep[0]
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.execute_script("document.querySelector('button[data-table=\"results_table\"]').click()")
    deadline = time.monotonic() + 20
    while not (tmp_path / "results_table.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    rows = list(csv.reader(io.StringIO((tmp_path / "results_table.csv").read_text(), newline="")))
    loaded = pd.DataFrame(rows[1:], columns=rows[0]).set_index("run_id")
    final = table[table["final"]].set_index("run_id")
    assert set(loaded.index) == set(final.index) and EVIL in loaded.index
    for column in ("lm_loss/in_domain", "unembedding/effective_rank_percent", "config.data.batch_size"):
        assert loaded[column].astype(float).loc[final.index].to_numpy() == pytest.approx(
            final[column].to_numpy(float), rel=1e-8
        )
    assert list(loaded["config.schedule"].loc[final.index]) == list(final["config.schedule"])


def test_the_page_is_legible_in_dark_mode(page):
    browser = page[0]

    def brightness():
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        return np.mean([int(x) for x in colour.removeprefix("rgb(").removesuffix(")").split(",")])

    light = brightness()
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    assert brightness() < 60 < 200 < light
    assert draw_all(browser) == []
    label = "document.querySelector('[data-figure=\"loss_against_geometry\"] .role-axis-label text')"
    text = browser.execute_script(f"return getComputedStyle({label}).fill")
    assert np.mean([int(x) for x in text.removeprefix("rgb(").removesuffix(")").split(",")]) > 128
    assert logs(browser)[0] == []


class TwoRuns:
    """A sweep that trains, then is finished; one run's name is HTML."""

    asked = 0

    def snapshot(self, metric):
        self.asked += 1
        done = self.asked > 1
        state, step = ("done", 9) if done else ("training", 4)
        common = {"state": state, "step": step, "total": 9, "loss": 2.5, "left": "", "checkpoints": "x.", "reason": ""}
        curves = [
            {"run": run, "metric": name, "step": i, "value": 3.0 - i / 9}
            for run in (EVIL, "b")
            for name in ("loss", metric)
            for i in range(1, step + 1)
        ]
        return {
            "runs": [common | {"run_id": EVIL}, common | {"run_id": "b", "loss": None}],
            "lines": ["nothing is trained yet", EVIL],
            "metrics": ["unembedding/effective_rank_percent", "unembedding/mean_cosine"],
            "settings": {
                EVIL: {"init_seed": 0, "optimizer.weight_decay": 0.1},
                "b": {"init_seed": 0, "optimizer.weight_decay": 1.0},
            },
            "curves": curves,
            "finished": done,
            "has_report": done,
        }


def test_the_live_page_follows_a_sweep_until_it_is_finished(browser, tmp_path):
    sweep = TwoRuns()
    handler = functools.partial(_Handler, sweep, live_page(EVIL), directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        logs(browser)
        address = f"http://127.0.0.1:{listening.server_address[1]}/"
        browser.get(address)
        deadline = time.monotonic() + 30
        while "is finished" not in (summary := browser.execute_script("return element('summary').textContent")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert summary == "2 runs: 2 done. The report is finished."
        browser.execute_async_script("""
          const done = arguments[0];
          element("metric").value = "unembedding/mean_cosine";
          ask().then(done);
        """)
        assert (
            browser.execute_script(
                "return document.querySelectorAll('#loss path[aria-roledescription], #loss .mark-line path').length"
            )
            >= 2
        )
        assert "unembedding/mean_cosine" in browser.execute_script("return element('geometry').textContent")
        assert browser.execute_script("return element('colour').value") == "optimizer.weight_decay"
        rows = browser.execute_script(
            "return [...document.querySelectorAll('#runs tr')].map((row) => row.firstChild.textContent)"
        )
        assert rows == [EVIL, "b"]
        assert browser.title == EVIL
        messages, requests = logs(browser)
        listening.shutdown()
    assert messages == []
    assert {request for request in requests if not request.startswith((address, "data:", "about:"))} == set()
