"""Test what paper A reports (methods.md, section 1) on the table of its suite, in full or reduced.

    python -m sweeps.studies.paper_a.effects WORKDIR        (prints the table of docs/results.md)

Each claim is a difference, a correlation or a gain of prediction, with a 95 % interval. The samples differ:

- A factor is changed from one value to another with everything else equal; the differences are averaged within each
  size, and the sizes are the sample (contrasts.py).
- Two models that differ in one option are paired by seed, and the pairs are the sample (pairs.py).
- Correlations and gains are over configurations, of all sizes or of the smallest (relations.py).

Differences are also given in standard deviations over seeds, pooled over the configurations that have replicates.
"""

import math
import sys
from collections.abc import Sequence

import pandas as pd

from sweeps import analysis
from sweeps.studies.paper_a import contrasts, pairs, relations
from sweeps.studies.paper_a.effect import FIXED_RANK, LOSS, RANK, Effect
from sweeps.studies.paper_a.sizes import SIZES
from sweeps.table.table import TABLE

__all__ = ["FIXED_RANK", "LOSS", "RANK", "Effect", "as_markdown", "effects", "suite_rows"]

# Every label of either reading, from the smallest.
_LABELS = sorted({label for sizes in SIZES.values() for label in sizes}, key=lambda label: float(label[:-1]))


def effects(table: pd.DataFrame) -> list[Effect]:
    """Return the test of each effect that methods.md, section 1, expects of a re-run; "untestable" without its runs.

    Args:
      table: that of a sweep of sweeps/studies/paper_a/paper.py; runs that diverged and other text are left out.

    Raises AnalysisError if the table has none of the suite's sizes.
    """
    rows = suite_rows(table)
    return [*contrasts.effects(rows), *relations.effects(rows), *pairs.effects(_main_text(table))]


def suite_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the final rows of the suite's sizes, without runs on another text.

    Raises AnalysisError if the table has none.
    """
    final = _main_text(table)
    rows = final[final["config.name"].isin(_LABELS)] if "config.name" in final else final.iloc[:0]
    if rows.empty:
        raise analysis.AnalysisError(
            f"no finished run of {', '.join(_LABELS)} in the table; run sweeps/studies/paper_a/paper.py"
        )
    return rows


def _main_text(table: pd.DataFrame) -> pd.DataFrame:
    final = analysis.final_rows(table).rows
    return final[final["config.data.name"] == "main"] if "config.data.name" in final else final.iloc[:0]


def as_markdown(tested: Sequence[Effect]) -> str:
    """Return the effects as a Markdown table."""
    lines = [
        "| paper A says | measured | effect | 95 % interval | in SD over seeds | n | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for e in tested:
        known = math.isfinite(e.effect)
        interval = f"{e.low:+.3g} to {e.high:+.3g}" if math.isfinite(e.low) else ""
        seeds = f"{e.effect_in_seed_sd:+.1f}" if math.isfinite(e.effect_in_seed_sd) else ""
        effect = f"{e.effect:+.3g}" if known else ""
        n = f"{e.n} {e.of}" if e.n else ""
        lines.append(f"| {e.claim} | {e.metric} | {effect} | {interval} | {seeds} | {n} | {e.verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(effects(pd.read_parquet(f"{sys.argv[1]}/{TABLE}"))))
