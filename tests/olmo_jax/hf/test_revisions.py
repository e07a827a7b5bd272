"""The spellings of published revisions, as the suites use them."""

import pytest

from olmo_jax.hf.revisions import Name, parse

BILLION = 10**9


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step3000", Name(step=3000)),  # Pythia
        ("step0", Name(step=0)),
        ("step-000100", Name(step=100)),
        ("step1000-tokens4B", Name(step=1000, tokens=4 * BILLION)),  # OLMo
        ("step556000-tokens2.5T", Name(step=556_000, tokens=2_500 * BILLION)),
        ("step1000-unsharded", Name(step=1000)),
        ("step1000-unsharded-hf", Name(step=1000)),
        ("step1000-hf", Name(step=1000)),
        ("stage1-step150-tokens1B", Name(step=150, tokens=BILLION, stage="stage1")),  # OLMo-2
        (
            "stage2-ingredient3-step11931-tokens50B",
            Name(step=11_931, tokens=50 * BILLION, stage="stage2-ingredient3"),
        ),
        ("step5725-seed-default", Name(step=5725, seed="default")),  # DataDecide
        ("step1250-seed-small-aux-2", Name(step=1250, seed="small-aux-2")),
        ("seed3-step1000", Name(step=1000, seed="3")),
        ("2BT", Name(tokens=2 * BILLION)),
        ("84B", Name(tokens=84 * BILLION)),
        ("240b_tokens", Name(tokens=240 * BILLION)),
        ("1_5B", Name(tokens=1_500_000_000)),
        ("chck_10M", Name(words=10 * 10**6)),  # BabyLM
        ("ckpt_010", Name(step=10)),  # Amber
        ("iter_0010000", Name(step=10_000)),  # Megatron
        ("global_step19500", Name(step=19_500)),  # NeoX, BLOOM
        ("checkpoint-1000", Name(step=1000)),  # transformers
        ("main", Name()),
    ],
)
def test_a_name_is_read_as_its_suite_means_it(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize(
    "name", ["", "step", "v1.0", "step3000-", "fp16", "gptq-4bit", "step3000 copy", "refs/pr/1", "4M"]
)
def test_other_names_are_none_of_them(name):
    assert parse(name) is None


def test_revisions_without_a_step_are_ordered_by_what_they_have_seen():
    names = ["84B", "2BT", "240b_tokens"]
    assert sorted(names, key=lambda name: parse(name).place) == ["2BT", "84B", "240b_tokens"]
    assert parse("chck_100M").place > parse("chck_10M").place
    assert parse("step7-tokens9B").place == 7
    assert parse("main").place is None
