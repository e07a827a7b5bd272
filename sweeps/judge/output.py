"""Show cards: as lines of text, a ranked table, and files in the working directory."""

import json
import math
from collections.abc import Sequence

import pandas as pd
from etils import epath

from olmo_jax.files import write_whole
from sweeps.judge.card import Card
from sweeps.judge.finding import FAIL, PASS, Finding
from sweeps.report.names import column_name
from sweeps.report.page import write_page

FOLDER = "judge"
_MARKS = {PASS: "pass", FAIL: "FAIL"}


def lines(cards: Sequence[Card]) -> list[str]:
    """Return each card as a heading and one line per test."""
    text = []
    for card in cards:
        text.append(f"{card.metric}: {card.runs} runs of {card.configurations} configurations")
        for finding in card.findings:
            text.append(f"  {finding.test:6} {_MARKS.get(finding.verdict, '?'):5} {_number(finding):24} {finding.text}")
            if finding.remedy:
                text.append(f"  {'':37} {finding.remedy}")
    return text


def ranked(cards: Sequence[Card]) -> list[Card]:
    """Return the cards, those that pass most tests first; among equals by the lower bound of the gain."""

    def key(card: Card) -> tuple[int, int, float]:
        low = next(f.low for f in card.findings if f.test == "gain")
        failures = sum(f.verdict == FAIL for f in card.findings)
        return (-card.passes, failures, -low if math.isfinite(low) else math.inf)

    return sorted(cards, key=key)


def table(cards: Sequence[Card]) -> pd.DataFrame:
    """Return one row per metric, with the verdict, number and interval of each test."""
    rows = []
    for card in cards:
        row = {"metric": card.metric, "passes": card.passes, "runs": card.runs, "configurations": card.configurations}
        for finding in card.findings:
            of_test = {"": finding.verdict, "_number": finding.number, "_low": finding.low, "_high": finding.high}
            row |= {f"{finding.test}{suffix}": value for suffix, value in of_test.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def table_lines(cards: Sequence[Card]) -> list[str]:
    """Return the ranked table with one line per metric."""
    width = max((len(card.metric) for card in cards), default=0)
    tests = [finding.test for finding in cards[0].findings] if cards else []
    text = [f"{'metric':{width}}  " + "  ".join(f"{name:6}" for name in tests)]
    for card in cards:
        marks = "  ".join(f"{_MARKS.get(finding.verdict, '?'):6}" for finding in card.findings)
        text.append(f"{card.metric:{width}}  {marks}".rstrip())
    return text


def write(workdir: epath.Path, cards: Sequence[Card], command: str) -> epath.Path:
    """Write judge/cards.json, judge/cards.csv and judge/index.html, and return the page's path."""
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "cards.json", (json.dumps([card.as_json() for card in cards], indent=2) + "\n").encode())
    write_whole(folder / "cards.csv", table(cards).to_csv(index=False).encode())
    shown = [
        {
            "name": column_name(card.metric),
            "card": card,
            "findings": [(finding, _number(finding)) for finding in card.findings],
        }
        for card in cards
    ]
    return write_page(folder / "index.html", "judge.html", {}, title="Metrics, judged", cards=shown, command=command)


def _number(finding: Finding) -> str:
    if not math.isfinite(finding.number):
        return "-"
    return f"{finding.number:.3g} [{finding.low:.3g}, {finding.high:.3g}]"
