"""How geometry relates to published performance: paper A's analysis, over public models.

Each metric is related to each target as it is, given what the models differ in by design, and beyond that in
prediction; its variance is split over size, corpus and seed. So a metric that size alone sets correlates with
performance, but not given size; one that the corpus sets has its variance there; and one that follows performance keeps
its correlation and adds to the prediction.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.correlation import partial_spearman, spearman
from sweeps.analysis.r2 import incremental_r2
from sweeps.analysis.ranks import q_values
from sweeps.analysis.seed_noise import seed_deviations
from sweeps.analysis.variance import variance_split
from sweeps.studies.atlas.measure import MATRICES

# What models differ in by design. Size enters as a category: a metric needn't be monotonic in it.
DESIGN = ("size", "corpus", "stage", "log_step")


class Relations(NamedTuple):
    """The results, in long tables.

    Attributes:
      correlations: one row per (metric, target): n, Spearman's correlation, the partial one given the design, and the
        gain of R2 beyond the design, each with its interval and p-value; q_value over the partial ones.
      variance: one row per (metric, part): the share of variance due to size, corpus and seed, at the last step that
        all seeds of a configuration have.
      noise: by metric, the standard deviation over seeds, and its share of that over all models, at these steps.
    """

    correlations: pd.DataFrame
    variance: pd.DataFrame
    noise: pd.DataFrame


def relate(table: pd.DataFrame, targets: list[str]) -> Relations:
    """Return the relations of a joined table's metrics to its targets, over the rows that have one.

    Rows of one model (repository and seed) at several steps are a cluster in every interval and test.
    """
    if targets:
        table = table[table[targets].notna().any(axis=1)]
    table = table.assign(log_step=np.log1p(table["step"].astype(float)))
    for key in ("size", "corpus", "stage", "seed"):
        table[key] = table[key].fillna("") if key in table else ""
    table["model"] = table["repository"].str.cat(table["seed"].astype(str), sep=" ")
    table["configuration"] = table["size"].astype(str).str.cat(table[["corpus", "stage"]].astype(str), sep=" ")
    metrics = [c for c in table.columns if c.split("/")[0].removesuffix("_rate") in MATRICES]
    design = [name for name in DESIGN if table[name].nunique() > 1]
    groups = "model" if table["model"].nunique() < len(table) else None
    rows = []
    for metric in metrics:
        for target in targets:
            values = [
                spearman(table, metric, target, groups),
                partial_spearman(table, metric, target, design, "factor" if _few(table, design) else "rank", groups),
                incremental_r2(table, metric, target, design, groups),
            ]
            row = {"metric": metric, "target": target, "n": values[0].n}
            for name, value in zip(("spearman", "partial", "gain"), values, strict=True):
                row |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
                row[f"{name}_p"] = value.p_value
            rows.append(row)
    correlations = pd.DataFrame(rows)
    if rows:
        correlations["q_value"] = q_values(correlations["partial_p"].to_numpy())
    last = _last_common(table)
    settings = [key for key in ("size", "corpus", "stage") if last[key].nunique() > 1]
    static = [metric for metric in metrics if "_rate/" not in metric]
    variance = variance_split(last, static, settings) if settings else pd.DataFrame()
    deviations = seed_deviations(last, static)
    spread = last[static].astype(float).std()
    noise = pd.DataFrame(
        {"metric": static, "seed_sd": deviations.to_numpy(), "share": (deviations / spread).to_numpy()}
    )
    return Relations(correlations, variance, noise)


def _last_common(table: pd.DataFrame) -> pd.DataFrame:
    """Return each model's row at the last step that all seeds of its configuration have, so that seeds compare."""
    seeds = table.groupby("configuration")["model"].transform("nunique")
    shared = table[table.groupby(["configuration", "step"])["model"].transform("nunique") == seeds]
    return shared[shared["step"] == shared.groupby("configuration")["step"].transform("max")]


def _few(table: pd.DataFrame, design: list[str]) -> bool:
    """Return whether each setting of the design has several rows per value, so that it can enter as a category."""
    return all(table[name].nunique() <= len(table) / 4 for name in design)


def lines(relations: Relations) -> list[str]:
    """Return the strongest partial correlation with each target in words, and the share of each metric's variance."""
    text = []
    for target, rows in relations.correlations.groupby("target", sort=False):
        ranked = rows.reindex(rows["partial"].abs().sort_values(ascending=False).index)
        text.append(f"{str(target).removeprefix('published/')}: Spearman, given the design, gain of R2 beyond it")
        for _, row in ranked.head(8).iterrows():
            if np.isnan(row["partial_low"]):
                text.append(f"    {row['metric']:44} {row['spearman']:+.2f}  too few models for an interval")
                continue
            text.append(
                f"    {row['metric']:44} {row['spearman']:+.2f}  {row['partial']:+.2f} [{row['partial_low']:+.2f}, "
                f"{row['partial_high']:+.2f}] q {row['q_value']:.2g}  {row['gain']:+.3f}  n {row['n']}"
            )
    return text
