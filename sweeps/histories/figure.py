"""A figure of an audit: norm, rank and distance of each checkpoint's sample by step, with what is wrong marked."""

from pathlib import Path

import altair as alt
import pandas as pd

from olmo_jax.config import require
from sweeps.histories.audit import OK, Audit
from sweeps.report.charts import COLOURS

SUFFIXES = (".svg", ".png", ".pdf", ".html")
_PANELS = {
    "to_previous": "distance from the one before",
    "norm": "norm",
    "effective_rank": "effective rank",
}


def check_figure(path: Path) -> None:
    """Raise ConfigError for a file name of no format, or in no folder."""
    require(path.suffix in SUFFIXES, "--figure", str(path), f"needs a name that ends in {', '.join(SUFFIXES)}")
    require(path.parent.is_dir(), "--figure", str(path), "its folder doesn't exist; create it")


def write_figure(audit: Audit, path: Path) -> None:
    """Write the figure of an audit to a file, in the format of its suffix."""
    rows = pd.DataFrame([vars(finding) for finding in audit.findings])
    rows["training"] = [" ".join(filter(None, (f.stage, f.seed))) for f in audit.findings]
    lacking = pd.DataFrame({"step": sorted({step for steps in audit.missing.values() for step in steps})}, dtype=float)
    verdicts = [OK, *sorted({*rows["verdict"]} - {OK})]
    step = alt.X("step:Q", title="step", scale=alt.Scale(type="symlog", constant=1))
    colour = alt.Color(
        "verdict:N", scale=alt.Scale(domain=verdicts, range=COLOURS[: len(verdicts)]), legend=alt.Legend(title=None)
    )
    panels = []
    for column, title in _PANELS.items():
        y = alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False))
        base = alt.Chart(rows).encode(x=step, y=y)
        line = base.mark_line(color="#bbbbbb").encode(detail="training:N")
        points = base.mark_point(filled=True, size=40).encode(
            color=colour, tooltip=["revision:N", "step:Q", "verdict:N", "detail:N"]
        )
        gaps = alt.Chart(lacking).mark_rule(strokeDash=[3, 3], color="#888888").encode(x=step)
        panels.append((line + gaps + points).properties(width=640, height=150))
    heading = alt.Title(audit.source, subtitle=f"{audit.sampled}; dashed: missing steps")
    alt.vconcat(*panels).properties(title=heading).save(str(path))
