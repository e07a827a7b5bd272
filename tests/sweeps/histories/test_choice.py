"""The revisions that a user names, and those that are chosen for them."""

import pytest

from olmo_jax.config import ConfigError
from sweeps.histories.choice import Revisions, with_braces

PYTHIA = [f"step{n}" for n in [0, *(2**i for i in range(10)), *range(1000, 143001, 1000)]]


def test_by_default_twenty_are_spread_over_the_logarithm_of_the_step():
    chosen = Revisions().choose(PYTHIA)
    assert len(chosen) == 20
    assert chosen[0] == "step0"
    assert chosen[-1] == "step143000"
    assert {"step1", "step2", "step1000"} < {*chosen}
    assert chosen == sorted(chosen, key=PYTHIA.index)
    assert Revisions("3").choose(PYTHIA) == ["step0", "step512", "step143000"]
    assert Revisions("1").choose(PYTHIA) == ["step143000"]
    assert Revisions("200").choose(PYTHIA) == PYTHIA


def test_each_seed_gets_its_own():
    names = [f"step{n}-seed-{seed}" for seed in ("a", "b") for n in (0, 10, 100, 1000)]
    assert Revisions("2").choose(names) == ["step0-seed-a", "step1000-seed-a", "step0-seed-b", "step1000-seed-b"]


def test_lists_and_patterns_keep_the_order_of_the_steps():
    assert Revisions("step143000,step1,step?").choose(PYTHIA) == [
        "step0", "step1", "step2", "step4", "step8", "step143000",
    ]  # fmt: skip
    assert Revisions("*").choose(PYTHIA) == PYTHIA


def test_a_number_of_those_that_a_pattern_names():
    names = [f"stage{stage}-step{n}" for stage in (1, 2) for n in (10, 100, 1000)]
    assert Revisions("2 of stage1-*").choose(names) == ["stage1-step10", "stage1-step1000"]
    assert Revisions("1 of stage1-step10,stage2-*").choose(names) == ["stage1-step10", "stage2-step1000"]


def test_an_expression_says_what_names_mean():
    which = Revisions(r"v(?P<step>\d+)_(?P<tokens>\d+B)_(?P<seed>\w+)")
    said = which.parse("v30_12B_x")
    assert (said.step, said.tokens, said.seed) == (30, 12 * 10**9, "x")
    assert which.parse("step30") is None
    assert which.choose(["v30_12B_x"]) == ["v30_12B_x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(?P<step>", "isn't a regular expression"),
        (r"(?P<epoch>\d+)", "has the group epoch; groups are step, tokens"),
        ("0", "needs 1 or more"),
        ("0 of step*", "needs 1 or more"),
        ("2 of ", "no revision is called 2 of"),
        (",", "names no revision"),
        ("step5", "no revision is called step5; there are step0, step1, step2, ..., step143000"),
    ],
)
def test_what_cannot_be_chosen_is_refused(text, words):
    with pytest.raises(ConfigError, match="revisions") as error:
        Revisions(text).choose(PYTHIA)
    assert words in str(error.value)


def test_a_group_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="isn't a number"):
        Revisions(r"(?P<step>\w+)").parse("first")


def test_braces_are_expanded_as_a_shell_does():
    assert with_braces("hub:a/b-seed{1..3}") == ["hub:a/b-seed1", "hub:a/b-seed2", "hub:a/b-seed3"]
    assert with_braces("hub:a/b-{x,y}-z") == ["hub:a/b-x-z", "hub:a/b-y-z"]
    assert with_braces("hub:a/b") == ["hub:a/b"]
    with pytest.raises(ConfigError, match=r"\{9..1\} is empty"):
        with_braces("hub:a/b{9..1}")
