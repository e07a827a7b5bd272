"""The list of the report's items in docs/reading.md, which `python -m sweeps.report.reference` writes."""

from pathlib import Path

from sweeps.report.item import Figure, Table, items, sections

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"
BEGIN, END = "<!-- items: made by python -m sweeps.report.reference -->\n", "<!-- end of items -->\n"
_KINDS = {Figure: "figure", Table: "table"}


def listed() -> str:
    """Return the figures and tables as a Markdown table, in the page's order."""
    headings = {name: section.heading for name, section in sections().items()}
    rows = [
        f"| `{item.name}` | {_KINDS[item.kind]} | {headings[item.section]} | {item.meaning} |"
        for item in items()
        if item.kind in _KINDS and not item.is_own
    ]
    return "\n".join(["| name | kind | section | what it shows |", "| --- | --- | --- | --- |", *rows, ""])


def page() -> str:
    """Return the text of docs/reading.md with the current list."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + listed() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
