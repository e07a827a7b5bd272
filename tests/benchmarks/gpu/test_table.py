"""The tables of docs/speed.md are generated from benchmarks/results and mark what was not measured."""

import pytest

from benchmarks.gpu import results, table
from benchmarks.gpu.part import all_parts
from benchmarks.gpu.parts import cohorts, models

MACHINE = {"device": "NVIDIA H100", "jax": "0.11.2", "jaxlib": "0.11.2", "python": "3.12.3", "commit": "abc"}
MACHINE |= {"driver": "580"}


def write(folder, part, case, outcome):
    key = results.key_of(part, part.cases("full")[case], MACHINE)
    entry = results.entry_of(part, key, MACHINE, "full") | outcome
    results.record(results.path_of(folder, part.NAME, MACHINE["device"]), part, case, entry)


def rows(text, heading):
    """Return the cells of the table under the heading that starts with `heading`, keyed by the first column."""
    block = next(block for block in text.split("### ") if block.startswith(heading))
    lines = [line.strip("|").split("|") for line in block.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}


def updated_document(folder):
    return table.updated(f"before {table.BEGIN} old {table.END} after", folder)


def test_the_committed_document_matches_the_stored_results():
    text = table.DOCUMENT.read_text()
    assert table.updated(text, results.FOLDER) == text


def test_without_results_every_row_says_not_measured(tmp_path):
    text = updated_document(tmp_path)
    assert text.startswith(f"before {table.BEGIN}\n")
    assert text.endswith(f"{table.END} after")
    assert " old " not in text
    for part in all_parts().values():
        results_by_case = rows(text, f"{part.NAME}: not measured")
        assert list(results_by_case) == list(part.cases("full"))
        assert all(cells[0] == "not measured" for cells in results_by_case.values())


def test_results_are_shown_with_their_device(tmp_path):
    write(tmp_path, cohorts, "d64_M1", {"measured": {"tokens_per_s": 1000.0, "of_nominal": 0.1234, "step_ms": 2.0}})
    write(tmp_path, cohorts, "d768_M128", {"does_not_fit": "needs 90 GB"})
    text = updated_document(tmp_path)
    results_by_case = rows(text, "cohorts: NVIDIA H100, jax 0.11.2, Python 3.12.3, driver 580, commit abc, ")
    assert results_by_case["d64_M1"][:2] == ["1,000", "12.3%"]
    assert results_by_case["d768_M128"][0] == "doesn't fit"
    assert results_by_case["d64_M8"][0] == "not measured"


def test_cohort_speedup_is_the_ratio_of_token_rates(tmp_path):
    write(tmp_path, cohorts, "d64_M1", {"measured": {"tokens_per_s": 1000.0}})
    write(tmp_path, cohorts, "d64_M32", {"measured": {"tokens_per_s": 9500.0}})
    text = updated_document(tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("| 64 | 32 |")]
    assert lines == ["| 64 | 32 | 9,500 | not measured | not measured | 9.50 | | |"]
    goal = next(line for line in text.splitlines() if line.startswith("| 32 at d 64"))
    assert goal.endswith("| 9.5 (reached, NVIDIA H100) |")


@pytest.mark.parametrize(("share", "outcome"), [(0.39, "39.0% (reached"), (0.38, "38.0% (missed")])
def test_a_goal_is_marked_reached_or_missed(tmp_path, share, outcome):
    write(tmp_path, models, "75m_M1", {"measured": {"of_nominal": share}})
    goal = next(line for line in updated_document(tmp_path).splitlines() if line.startswith("| 75M alone"))
    assert outcome in goal


def test_every_goal_names_an_existing_case():
    parts = all_parts()
    for goal in table.GOALS:
        assert goal.case in parts[goal.part].cases("full")
        assert goal.over in (*parts[goal.part].cases("full"), "")


def test_results_of_another_version_of_a_part_are_not_shown(tmp_path, monkeypatch):
    write(tmp_path, cohorts, "d64_M1", {"measured": {"tokens_per_s": 1000.0}})
    monkeypatch.setattr(cohorts, "VERSION", cohorts.VERSION + 1)
    assert rows(updated_document(tmp_path), "cohorts: not measured")["d64_M1"][0] == "not measured"


def test_a_document_without_markers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks the lines"):
        table.updated("nothing", tmp_path)
