"""Write docs/reference/columns.md from the declarations of columns: `python -m sweeps.table.reference`."""

import re
from collections.abc import Iterator
from pathlib import Path

from eval import evaluator
from geometry.probe import COUNTS, METRICS
from olmo_jax.probes.columns import metric_meaning
from sweeps.table.catalog import FIXED

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "columns.md"
_INTRODUCTION = """# Columns

`results.parquet` (and `results.csv`) has one row per run and checkpoint. `results.schema.json` beside it has the kind,
the unit and the meaning of each column, and what the column was measured on. From Python:

```python
from sweeps.table import catalog_of, read_table

table = read_table("demo")
catalog_of(table).select(kind="loss", after="quantize", bits=3)
```

This page lists all columns that a table can have. In names, `<...>` stands for the part that varies.

Settings are columns too: `config.optimizer.weight_decay` is the setting of that name ([Settings](../configuration.md)).
"""
_GEOMETRY = """## Geometry

`<target>/<metric>`, from the probe in the training loop. Targets: `unembedding`, `unembedding_gauge_fixed` (without
the directions that don't affect the logits), `embedding`, `final_states`, `layer_<k>` (states after a block), and a
parameter by its path. `<target>_centred` is the target without its mean row, `<target>_spread/<metric>` the standard
deviation over the probe's sets of documents, and `<target>_spectrum/<k>` a singular value.
"""


def page() -> str:
    """Return the text of the page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield from _table("Runs and training", ([f"`{c.name}`", c.unit, c.meaning] for c in FIXED), "column")
    yield ""
    yield _GEOMETRY
    built_in = [name for name, metric in METRICS.items() if metric.__module__.startswith("geometry.")]
    metrics = ([f"`{name}`", "count" if name in COUNTS else "", metric_meaning(name)] for name in sorted(built_in))
    yield from _table("", metrics, "metric")
    yield ""
    yield "## Evaluations"
    yield ""
    yield "`<evaluation>/<result>`; [Evaluations](../evaluation.md) describes each of them."
    for kind, cls in evaluator.BUILT_IN.items():
        yield ""
        yield f"### {kind}"
        yield ""
        yield f"`{_readable(cls.names or kind)}/...`: {' '.join((cls.__doc__ or '').split(chr(10) * 2)[0].split())}"
        yield ""
        yield from _table("", ([f"`{_readable(r.pattern)}`", r.unit, _plain(r.meaning)] for r in cls.results), "result")


def _table(heading: str, rows: Iterator[list[str]], name: str) -> Iterator[str]:
    if heading:
        yield from (f"## {heading}", "")
    yield from (f"| {name} | unit | meaning |", "| --- | --- | --- |")
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


def _readable(pattern: str) -> str:
    """Return a regular expression of names with its groups as <name>."""
    named = re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)", r"<\1>", pattern)
    named = re.sub(r"(<\w+>)\?", r"[\1]", named)
    return re.sub(r"\\(.)", r"\1", named.replace("(?:", "(").replace(r"\d+", "<k>"))


def _plain(meaning: str) -> str:
    return re.sub(r"\{(\w+)\}", r"<\1>", meaning).replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
