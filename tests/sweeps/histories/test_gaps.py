"""Steps missing from the spacings that suites use, and none where the spacing changes for good."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.histories.gaps import missing

PYTHIA = [0, *(2**i for i in range(10)), *range(1000, 143001, 1000)]
DATADECIDE = [*range(0, 68751, 1250), 69369]
BABYLM = [*range(1, 10), *range(10, 101, 10)]


@pytest.mark.parametrize("steps", [PYTHIA, DATADECIDE, BABYLM, [5], [], [0, 7], [1, 3, 9, 100], [0, 1, 10, 100, 1000]])
def test_nothing_is_missing_from_a_whole_history(steps):
    assert missing(steps) == []


@pytest.mark.parametrize(
    ("whole", "lost"),
    [
        (PYTHIA, {50000}), (PYTHIA, {50000, 51000, 52000}), (PYTHIA, {50000, 70000}), (PYTHIA, {16}),
        (PYTHIA, {3000}), (DATADECIDE, {1250}), (DATADECIDE, {20000, 22500}), (BABYLM, {5}), (BABYLM, {50}),
        (list(range(0, 60, 10)), {10}), (list(range(0, 60, 10)), {40}),
    ],
)  # fmt: skip
def test_lost_steps_are_named(whole, lost):
    assert missing([step for step in whole if step not in lost]) == sorted(lost)


@given(st.integers(1, 1000), st.integers(9, 40), st.data())
def test_a_step_lost_from_equal_spacing_is_named(spacing, count, data):
    lost = data.draw(st.integers(1, count - 2))
    steps = [i * spacing for i in range(count) if i != lost]
    assert missing(steps) == [lost * spacing]
