import re

import numpy as np
import pandas as pd
import pytest

from benchmarks.report import made_up
from sweeps.analysis import PRIMARY_PAIR
from sweeps.analysis.results import analyze
from sweeps.report.item import sections
from sweeps.report.items.findings import findings

PLAIN = {"\N{MINUS SIGN}": "-"}


@pytest.fixture(scope="module")
def answers():
    return analyze(*made_up(36, 2, 60))


def sentences(answers):
    return [paragraph.text.replace(*next(iter(PLAIN.items()))) for paragraph in findings(answers).paragraphs]


def test_every_sentence_has_a_number_and_refers_to_a_figure_of_the_page(answers):
    paragraphs = findings(answers).paragraphs
    assert {paragraph.link for paragraph in paragraphs} <= set(sections())
    assert all(re.search(r"\d", paragraph.text) and paragraph.text.endswith(".") for paragraph in paragraphs)
    assert [bool(re.search(r"interval -?[\d.]+ to", s)) for s in sentences(answers)][3:7:3] == [True, True]


def test_association_sentences_match_the_table(answers):
    table = answers.associations
    tested = table[table.q_value.notna()]
    text = sentences(answers)[4]
    assert text.startswith(f"Of {len(tested)} other associations")
    assert f"{(tested.q_value < 0.05).sum() or 'none'} have q < 0.05" in text
    declared = table[(table.metric == PRIMARY_PAIR[0]) & (table.target == PRIMARY_PAIR[1])]
    row = declared[declared.method == "incremental R2"].iloc[0]
    assert f"is {row.estimate:.3f}" in sentences(answers)[3] or f"is {row.estimate:.2f}" in sentences(answers)[3]


def test_prediction_sentences_give_r2_with_and_without_geometry_and_the_gain(answers):
    text = sentences(answers)[5]
    best = answers.prediction[answers.prediction.features == "settings and geometry"]
    best = best.loc[best.r2.idxmax()]
    assert f"If {best.target} is predicted from settings by {best.model}" in text
    assert "with geometry" in text and "a gain of" in text


def test_variance_sentences_name_the_settings(answers):
    assert re.search(r"\d+ % is explained by weight decay", sentences(answers)[7])


@pytest.mark.slow
def test_missing_data_are_described_without_nan():
    table, curves = made_up(36, 2, 60)
    geometry = [c for c in table if c.startswith(("unembedding", "final_states"))]
    for poor in (
        (table.head(0), {}),
        (pd.DataFrame(), {}),
        (table.head(2), {}),
        (table[table["config.model.d_model"] == 256], curves),
        (table.assign(final=False), curves),
        (table.assign(**dict.fromkeys(geometry, np.nan)), curves),
        (table.assign(**{"lm_loss/in_domain": np.nan}), curves),
    ):
        lines = sentences(analyze(*poor))
        assert len(lines) == 9
        assert not re.search(r"\b(nan|inf|None)\b", " ".join(lines))
