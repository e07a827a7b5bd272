"""Show verdicts: as lines of text, as JSON, as a Markdown table and as a page."""

import json
import math
from collections.abc import Sequence

from etils import epath

from olmo_jax.files import write_whole
from sweeps.claims.claim import Tested
from sweeps.report.page import write_page


def lines(results: Sequence[Tested]) -> list[str]:
    """Return three lines per claim: id and verdict, the statement, and the numbers or why there are none."""
    text = []
    for one in results:
        text.append(f"{one.verdict:12} {one.claim.id} ({one.claim.source})")
        text.append(f"             {one.claim.statement}")
        text += [f"             {part}" for part in (numbers(one), one.note) if part]
    return text


def numbers(one: Tested) -> str:
    """Return the effect with its interval, "" for none."""
    e = one.estimate
    if not math.isfinite(e.estimate):
        return ""
    matters = f"; {one.claim.least:g} matters" if one.claim.least else ""
    return f"{_effect(one)}, n = {e.n}{matters}"


def _effect(one: Tested) -> str:
    e = one.estimate
    if not math.isfinite(e.estimate):
        return ""
    interval = f" [{e.low:+.3g}, {e.high:+.3g}]" if math.isfinite(e.low) else ""
    return f"{e.estimate:+.3g}{interval} {one.claim.unit}"


def as_json(results: Sequence[Tested]) -> str:
    return json.dumps({"claims": [one.as_json() for one in results]})


def as_markdown(results: Sequence[Tested]) -> str:
    """Return the verdicts as a Markdown table, with the directory of the sweep used, or the sweep that is needed."""
    rows = ["| claim | source | sweep | effect | n | verdict |", "| --- | --- | --- | --- | --- | --- |"]
    for one in results:
        n = str(one.estimate.n or "")
        sweep = epath.Path(one.workdir).name if one.workdir else one.claim.config
        cells = one.claim.statement, one.claim.source, f"`{sweep}`", _effect(one), n, one.verdict
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def write(folder: epath.Path, results: Sequence[Tested], command: str) -> epath.Path:
    """Write claims.json, claims.md and index.html into a folder, and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "claims.json", (as_json(results) + "\n").encode())
    write_whole(folder / "claims.md", (as_markdown(results) + "\n").encode())
    shown = [(one, numbers(one)) for one in results]
    return write_page(
        folder / "index.html", "claims.html", {}, title="Published claims, tested", claims=shown, command=command
    )
