"""The experiments on local dimension on the page and as figures: they show the measured values, escaped."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from sweeps.analysis.results import analyze
from sweeps.report import write_report
from sweeps.report.export import write_figures
from sweeps.report.item import Figure, Table, items, show
from sweeps.studies.paper_b.claim import CLAIMS
from sweeps.studies.paper_b.claims import claims_of
from sweeps.studies.paper_b.panels import panels, quantiles, sensitivity
from sweeps.studies.paper_b.study import STUDY
from tests.sweeps.report.made import EVIL

STEPS = np.arange(0, 2001, 50)
DOMAIN = "<script>alert(1)</script>"


def grokking():
    """Two training shares x two seeds; runs with the larger share grok, those with the smaller don't."""
    rows, curves = [], {}
    for i, (share, seed) in enumerate([(0.2, 0), (0.2, 1), (0.5, 0), (0.5, 1)]):
        run = EVIL if i == 3 else f"run{i}"
        late = (1000 + 100 * seed if share > 0.3 else 10**9) <= STEPS
        curves[run] = pd.DataFrame(
            {
                "step": STEPS,
                "tokens": STEPS * 8,
                "loss": 1.0,
                "texts.train/loss": np.exp(-STEPS / 100),
                "texts.train/accuracy": np.where(STEPS > 200, 1.0, 0.5),
                "texts.validation/accuracy": np.where(late, 1.0, 0.1 * seed),
                "texts.validation/loss": np.where(late, 0.1, 5.0),
                "layer_0.train/local_two_nn": np.where(late, 5.0, 9.0) + seed,
                "layer_0.train/effective_rank": 20.0,
            }
        )
        row = {"run_id": run, "configuration": f"c{share}", "step": 2000, "final": True, "diverged_at": None}
        row |= {"config.data.arithmetic.train_fraction": share, "config.data.corpus": "arithmetic"}
        rows.append(row | {f"local_dimension/layer_0.train/n{n}_l{k}/local_two_nn": n / k + seed
                           for n in (100, 200) for k in (16, 32)})  # fmt: skip
    return analyze(pd.DataFrame(rows), curves, studies={STUDY.name: STUDY.analyze})


def shift():
    """One domain's local dimension falls; the other, with a name that is HTML, stays."""
    courses, rows = [], []
    for i in range(3):
        of = {"run_id": f"run{i}", "step": 100, "evaluation": "finetune_code_lr0.001", "target": "code"}
        course = pd.DataFrame({"at": [0.0, 10.0, 20.0], "seed": 0.0}).assign(learning_rate=1e-3, **of)
        for text, moved in (("code", -2.0), (DOMAIN, 0.0)):
            level = np.array([8.0, 8 + moved / 2, 8 + moved]) + 0.1 * i
            name = f"final_states.{text}/local_two_nn"
            course[name], course[f"{name}_std"] = level, 2.0
            for end, away in (("q5", -3), ("q25", -1), ("median", 0), ("q75", 1), ("q95", 3)):
                course[f"{name}_{end}"] = level + away
        courses.append(course)
        rows.append({"run_id": f"run{i}", "configuration": f"c{i}", "step": 100, "final": True, "diverged_at": None})
    return analyze(pd.DataFrame(rows), {}, pd.concat(courses, ignore_index=True), {STUDY.name: STUDY.analyze})


def test_bands_show_mean_and_range_over_runs_of_a_configuration():
    answers = grokking()
    by_title = {panel.title: panel for panel in panels(answers, claims_of(answers)[0])}
    assert list(by_title) == ["validation accuracy", "training accuracy", "local dimension, train"]
    small, large = by_title["validation accuracy"].bands
    assert (small.name, large.name, small.runs) == ("train fraction 0.2", "train fraction 0.5", 2)
    np.testing.assert_allclose(small.mean, 0.05)
    np.testing.assert_allclose([small.low, small.high], [np.zeros(len(STEPS)), np.full(len(STEPS), 0.1)])
    assert large.mean[-1] == 1
    np.testing.assert_array_equal(large.steps, STEPS)


def test_quantiles_are_averaged_over_models():
    answers = shift()
    selected = quantiles(answers, claims_of(answers)[0]).set_index(["text", "when"])
    assert set(selected.index) == {(text, when) for text in ("code", DOMAIN) for when in ("before", "after")}
    for (text, when), values in selected.iterrows():
        middle = 8.1 - 2 * (text == "code" and when == "after")
        np.testing.assert_allclose(values, [middle - 3, middle - 1, middle, middle + 1, middle + 3], atol=1e-9)


def test_sensitivity_lists_points_and_neighbours_with_their_range():
    selected = sensitivity(grokking().table)
    assert list(selected["of"].unique()) == ["layer_0.train"] and len(selected) == 4
    row = selected[(selected["points"] == 200) & (selected["neighbors"] == 16)].iloc[0]
    assert (row["mean"], row["low"], row["high"], row["runs"]) == (13.0, 12.5, 13.5, 4)


@pytest.mark.parametrize("make, name", [(grokking, "Grokking"), (shift, "Fine-tuning")])
def test_the_page_shows_claim_and_verdict_and_escapes_names(tmp_path, make, name):
    answers = make()
    source = write_report(tmp_path, answers, {}).read_text()
    assert f"<h3>{name}" in source and 'href="#local-dimension"' in source
    assert f"Verdict: {claims_of(answers)[0].verdict}." in source
    assert "<script>alert" not in source and "\"&'%#~<b>" not in source
    json_text = source.split('id="data">')[1].split("</script>")[0]
    data = json.loads(json_text)
    assert "claim_curves" in data["figures"] and data["datasets"]["bands"]["mean"]
    assert "nan" not in json_text.lower().replace("nan-", "")
    for word in CLAIMS[claims_of(answers)[0].name].split():
        assert word in source


def test_curves_leads_and_signals_are_those_of_the_claim():
    answers = grokking()
    shown = {item.name: show(item, answers).content for item in items() if item.section == "local-dimension"}
    (claim,) = claims_of(answers)
    bands = shown["claim_curves"].data["bands"]
    of = bands[(bands["panel"] == "Grokking: validation accuracy") & (bands["configuration"] == "train fraction 0.2")]
    np.testing.assert_allclose(of["mean"], 0.05)
    points = shown["claim_change_points"].data["change_points"]
    grokked = claim.rows.dropna(subset=["metric_step", "outcome_step"])
    assert list(points["run"]) == list(grokked["run_id"]) == ["run2", EVIL]
    np.testing.assert_array_equal(points[["metric_step", "outcome_step"]], grokked[["metric_step", "outcome_step"]])
    np.testing.assert_allclose(points["outcome_step"], [1000, 1100], atol=50)
    known = claim.signals[claim.signals["lead"].notna()]
    assert list(shown["claim_leads"].data["leads"]["lead"]) == list(known["lead"])
    signals = shown["claim_signals"]
    assert isinstance(signals, Table) and [row[0].text for row in signals.rows] == list(claim.signals["signal"])
    assert signals.groups == ["Grokking"] * len(signals.rows)


def test_without_an_experiment_the_section_is_absent(tmp_path):
    answers = shift()._replace(studies={}, courses=pd.DataFrame())
    source = write_report(tmp_path, answers, {}).read_text()
    assert "local-dimension" not in source.split("<main>")[1].split("<script")[0]


@pytest.mark.parametrize("make", [grokking, shift])
def test_claim_figures_are_drawn_or_state_what_is_missing(tmp_path, make):
    answers = make()
    shown = [show(item, answers) for item in items(Figure) if item.section == "local-dimension"]
    assert len(shown) == 5
    for path in write_figures(tmp_path, shown):
        content = path.read_bytes()
        assert len(content) > 1000
        if path.suffix == ".svg":
            assert b"<script>" not in content
    drawn = {one.item.name: (tmp_path / f"{one.item.name}.svg").exists() for one in shown}
    expected = dict.fromkeys(drawn, make is grokking) | {"claim_curves": True, "claim_shift": make is shift}
    assert drawn == expected
    assert all(one.why for one in shown if not one.content)
    assert not math.isnan(claims_of(answers)[0].estimate.n)
