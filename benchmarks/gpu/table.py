"""Make the tables of docs/speed.md that come from benchmarks/results, between two markers.

`python -m benchmarks.gpu.table` rewrites them; `make gpu` does so at its end.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import results
from benchmarks.gpu.part import Part, all_parts
from benchmarks.gpu.parts import cohorts, loop, models, processes
from olmo_jax.files import write_whole

DOCUMENT = Path(__file__).parents[2] / "docs" / "speed.md"
BEGIN, END = "<!-- from benchmarks/results: begin -->", "<!-- from benchmarks/results: end -->"
NOT_MEASURED = "not measured"

# Entries by case, of one part on one device.
Entries = dict[str, dict[str, Any]]


class Goal(NamedTuple):
    """A number to reach: what it is, the least value that counts, and the case from whose results it comes."""

    text: str
    least: float
    form: str
    part: str
    case: str
    key: str
    over: str = ""  # another case of the part, relative to which it is measured


GOALS = (
    Goal("75M alone, share of nominal: our earlier 39 %", 0.39, ".1%", models.NAME, "75m_M1", "of_nominal"),
    Goal("the same: llm.c 38 % (124M)", 0.38, ".1%", models.NAME, "75m_M1", "of_nominal"),
    Goal("the same: modded-nanogpt 36.5 % (124M)", 0.365, ".1%", models.NAME, "75m_M1", "of_nominal"),
    Goal("17M in matmuls alone: our earlier 17.7 %", 0.177, ".1%", models.NAME, "4m_M1", "of_nominal"),
    Goal("the same: parameter-golf 19.9 %", 0.199, ".1%", models.NAME, "4m_M1", "of_nominal"),
    Goal("the same: parameter-golf 29.4 %", 0.294, ".1%", models.NAME, "4m_M1", "of_nominal"),
    Goal(
        "32 at d 64, tokens/s over those of one alone: 8", 8, ".1f", cohorts.NAME, "d64_M32", "tokens_per_s", "d64_M1"
    ),
)


def rewrite(document: Path = DOCUMENT, folder: Path = results.FOLDER) -> None:
    """Write the tables of a folder's results between the markers of a document; see `updated`."""
    write_whole(document, updated(document.read_text(), folder))


def updated(text: str, folder: Path) -> str:
    """Return a document with new tables between its markers. Raises ValueError if it lacks one of them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT.name}: lacks the lines {BEGIN!r} and {END!r}")
    parts = all_parts()
    tables = "\n\n".join((_goals(parts, folder), _side_by_side(parts, folder), of_parts(parts, folder, "full")))
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def of_parts(parts: dict[str, Part], folder: Path, scale: str) -> str:
    """Return a table of every part and device; one of "not measured" for a part without results."""
    blocks = []
    for part in parts.values():
        headings = ["case", *(column.heading for column in part.COLUMNS)]
        for entries in _devices(folder, part, scale) or [{}]:
            rows = [[name, *_cells(part, entries.get(name))] for name in part.cases(scale)]
            blocks += [f"### {part.NAME}: {_where(entries)}\n\n{part.TITLE}\n\n{_markdown(headings, rows)}"]
    return "\n\n".join(blocks)


def _cells(part: Part, entry: dict[str, Any] | None) -> list[str]:
    width = len(part.COLUMNS)
    if entry is None:
        return [NOT_MEASURED, *[""] * (width - 1)]
    if "does_not_fit" in entry:
        return ["doesn't fit", *[""] * (width - 1)]
    return [column.shown(entry["measured"]) for column in part.COLUMNS]


def _goals(parts: dict[str, Part], folder: Path) -> str:
    rows = []
    for goal in GOALS:
        reached = []
        for entries in _devices(folder, parts[goal.part], "full"):
            value, base = _value(entries, goal.case, goal.key), _value(entries, goal.over, goal.key)
            if value is not None and (base or not goal.over):
                value = value / base if base else value
                verdict = "reached" if value >= goal.least else "missed"
                reached.append(f"{value:{goal.form}} ({verdict}, {_device(entries)})")
        rows.append([goal.text, f"`{goal.part} {goal.case}`", ", ".join(reached) or NOT_MEASURED])
    return "### Goals\n\n" + _markdown(["goal", "case", "measured"], rows)


def _side_by_side(parts: dict[str, Part], folder: Path) -> str:
    """Return the tokens per second of the same models by how they share a device, one table per kind of device."""
    names = (cohorts.NAME, loop.NAME, processes.NAME)
    by_device: dict[str, dict[str, Entries]] = {}
    for name in names:
        for entries in _devices(folder, parts[name], "full"):
            by_device.setdefault(_device(entries), {})[name] = entries
    headings = ["width", "members", "cohort", "loop, 1 step per call", "loop, several", "cohort over one alone"]
    headings += ["2 processes", "8 processes"]
    blocks = []
    for device, by_part in (by_device or {NOT_MEASURED: {}}).items():
        together, alone, apart = (by_part.get(name, {}) for name in names)
        rows = []
        for width, (_, steps) in cohorts.WIDTHS.items():
            for m in cohorts.MEMBERS:
                rate = _value(together, f"d{width}_M{m}", "tokens_per_s")
                one = _value(together, f"d{width}_M1", "tokens_per_s")
                loops = [_rate(alone, f"d{width}_M{m}_K{k}") for k in (1, steps)]
                ratio = f"{rate / one:.2f}" if rate and one else NOT_MEASURED
                side = [_rate(apart, f"d{width}_P{p}") if m == cohorts.MEMBERS[0] else "" for p in (2, 8)]
                rows.append([str(width), str(m), _rate(together, f"d{width}_M{m}"), *loops, ratio, *side])
        blocks.append(f"### Side by side, tokens per second: {device}\n\n{_markdown(headings, rows)}")
    return "\n\n".join(blocks)


def _devices(folder: Path, part: Part, scale: str) -> list[Entries]:
    """Return the entries of a part for each device, without those of earlier versions of the part or its cases."""
    cases = part.cases(scale)

    def current(name: str, key: dict[str, Any]) -> bool:
        return key["case"] == cases.get(name) and key["part_version"] == part.VERSION

    files = (results.read(path) for path in sorted(folder.glob(f"{part.NAME}-*.json")))
    kept = ({name: entry for name, entry in entries.items() if current(name, entry["key"])} for entries in files)
    return [entries for entries in kept if entries]


def _value(entries: Entries, case: str, key: str) -> float | None:
    return entries.get(case, {}).get("measured", {}).get(key)


def _rate(entries: Entries, case: str) -> str:
    if "does_not_fit" in entries.get(case, {}):
        return "doesn't fit"
    value = _value(entries, case, "tokens_per_s")
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def _device(entries: Entries) -> str:
    return next(iter(entries.values()))["key"]["device"]


def _where(entries: Entries) -> str:
    """Return device, versions, commits and dates of some entries."""
    if not entries:
        return NOT_MEASURED
    machines = [entry["machine"] for entry in entries.values()]

    def each(values: Iterable[Any]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    versions = {name: each(machine.get(name) for machine in machines) for name in ("jax", "python", "driver", "commit")}
    dates = each(entry["date"] for entry in entries.values())
    driver = "" if versions["driver"] == "None" else f", driver {versions['driver']}"
    software = f"jax {versions['jax']}, Python {versions['python']}{driver}"
    return f"{_device(entries)}, {software}, commit {versions['commit']}, {dates}"


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(re.sub(" +", " ", f"| {' | '.join(cells)} |") for cells in lines)


if __name__ == "__main__":
    rewrite()
