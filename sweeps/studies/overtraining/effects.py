"""What more tokens of pre-training do to fine-tuning, by its learning rate; seeds are the replicates."""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from sweeps.analysis.contrast import LEAST_SEEDS, contrast
from sweeps.analysis.estimate import Estimate
from sweeps.report.numbers import change
from sweeps.studies.anneal.effects import DECAY, OTHER, SEED, TOKENS, ends, has_branches
from sweeps.table.catalog import catalog_of

LOSS = "lm_loss/in_domain"
# What is looked at, by the name of a fine-tuning's result; "after" is the loss on the text of pre-training.
MEASURES = {"target": "loss on the new text", "forgetting": "forgetting", "after": "loss on the old text"}
# With fewer budgets there is no curve.
_LEAST_BUDGETS = 2


class ByRate(NamedTuple):
    """The change of a measure of fine-tuning from the fewest to the most tokens, at one rate.

    Attributes:
      target: what was fine-tuned on. rate: the fine-tuning learning rate. measure: a key of MEASURES. tokens: the
        budgets. means: the mean of the measure at each. estimate: at the most tokens minus at the fewest; and at the
        most minus at the best budget, in `past_best`, whose best budget is chosen on the same runs.
    """

    target: str
    rate: float
    measure: str
    tokens: tuple[float, ...]
    means: tuple[float, ...]
    estimate: Estimate
    past_best: Estimate


def tuned(table: pd.DataFrame) -> pd.DataFrame:
    """Return the measures of fine-tuning of branches whose rate decayed, one row per run, target, rate and measure.

    Columns: run_id, trunk, tokens, config.init_seed, OTHER, target, rate, measure, value.
    """
    if not has_branches(table):
        return pd.DataFrame()
    rows = ends(table)
    rows = rows[rows["kind"] == DECAY]
    catalog = catalog_of(table)
    kept = rows[["run_id", "trunk", TOKENS, SEED, OTHER]]
    parts = []
    for column in table.columns:
        of = catalog[str(column)].of
        rate, part = of.get("rate"), str(column).partition("/")[2]
        if of.get("after") != "finetune" or rate in (None, "best") or part not in ("target", "forgetting"):
            continue
        values = {part: rows[column]}
        if part == "forgetting" and LOSS in rows:
            values["after"] = rows[LOSS] + rows[column]
        for name, value in values.items():
            parts.append(kept.assign(target=of.get("target"), rate=float(rate), measure=name, value=value))
    return pd.concat(parts, ignore_index=True).dropna(subset=["value"]) if parts else pd.DataFrame()


def by_rate(
    table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None
) -> tuple[ByRate, ...]:
    """Return the changes for every target, rate and measure; none without branches of several budgets."""
    rows = tuned(table)
    if rows.empty or rows[TOKENS].nunique() < _LEAST_BUDGETS:
        return ()
    found = []
    for (target, rate, measure), part in rows.groupby(["target", "rate", "measure"], dropna=False, sort=True):
        means = part.groupby(TOKENS)["value"].mean()
        tokens = tuple(means.index)
        best = means.idxmin()
        changes = [contrast(part, "value", TOKENS, (first, tokens[-1]), [OTHER], SEED) for first in (tokens[0], best)]
        found.append(ByRate(str(target), float(rate), str(measure), tokens, tuple(means), *changes))
    return tuple(found)


def sentences(found: tuple[ByRate, ...]) -> list[str]:
    """Return at how many rates more tokens made fine-tuned models worse, in words."""
    lines = []
    for measure, name in MEASURES.items():
        of = [one for one in found if one.measure == measure]
        if not of or any(one.estimate.n < LEAST_SEEDS for one in of):
            continue
        worse = [one for one in of if one.estimate.low > 0]
        text = f"From {of[0].tokens[0]:,.0f} to {of[0].tokens[-1]:,.0f} tokens of pre-training, the {name} after "
        text += f"fine-tuning rises surely at {len(worse)} of {len(of)} rates"
        largest = max(of, key=lambda one: one.estimate.estimate)
        lines.append(f"{text}; at {largest.rate:g} it changes by {change(largest.estimate.estimate)}.")
    return lines
