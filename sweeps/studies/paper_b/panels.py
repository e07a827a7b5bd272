"""Compute what the report draws of the experiments on local dimension: bands over seeds, quantiles, sensitivity.

A panel is one quantity over steps, with one band per configuration: the mean over its runs, and their range.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report.numbers import format_value
from sweeps.report.words import setting_name
from sweeps.studies.paper_b.claim import Claim
from sweeps.studies.paper_b.claims import ANSWER_LOSS
from sweeps.studies.paper_b.events import ACCURACY, TRAIN_ACCURACY, TRAIN_LOSS, probe_rows
from sweeps.studies.paper_b.shift import DIMENSION, course_ends, dimension_columns, text_of
from sweeps.table.catalog import catalog_of
from sweeps.table.columns import HELD_OUT_LOSS, as_levels, final_rows

TITLES = {
    "shift": "Fine-tuning",
    "exhaustion": "Exhaustion",
    "overfitting": "Overfitting",
    "grokking": "Grokking",
}
# The quantiles over points that are stored, by the suffixes of their columns.
_QUANTILES = ("q5", "q25", "median", "q75", "q95")


class Band(NamedTuple):
    """Mean, least and greatest value at each step over the runs of one configuration."""

    name: str
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


class Panel(NamedTuple):
    """One quantity of a claim over steps."""

    title: str
    across: str
    bands: list[Band]


def panels(results: AnalysisResults, claim: Claim) -> list[Panel]:
    """Return the panels of a claim."""
    if claim.evaluation:
        course = _course(results, claim)
        curves = {name: rows.assign(step=rows["at"]) for name, rows in course.groupby(["run_id", "seed"])}
        labels = dict.fromkeys(curves, "all runs")
        across = "steps of fine-tuning"
    else:
        curves = {run: probe_rows(curve) for run, curve in results.curves.items() if run in {*claim.rows["run_id"]}}
        labels, across = _labels(results, curves), "steps"
    shared = set.intersection(*({str(c) for c in curve.columns} for curve in curves.values()))
    drawn = []
    for column, title in _columns(claim, shared).items():
        by_label: dict[str, list[pd.DataFrame]] = {}
        for name, curve in curves.items():
            by_label.setdefault(labels[name], []).append(curve[["step", column]].astype(float).dropna())
        bands = [_band(label, group, column) for label, group in by_label.items()]
        drawn.append(Panel(title, across, sorted(bands, key=lambda band: band.name)))
    return drawn


def _course(results: AnalysisResults, claim: Claim) -> pd.DataFrame:
    """Return the curves of the claim's fine-tuning from each run's last checkpoint."""
    course = results.courses[results.courses["evaluation"] == claim.evaluation]
    return course[course["step"] == course.groupby("run_id")["step"].transform("max")]


def _columns(claim: Claim, shared: set[str]) -> dict[str, str]:
    """Return the columns to draw for a claim with their titles; local dimensions are those of the claim's states."""
    states = claim.column.partition(".")[0]
    of_states = sorted(c for c in dimension_columns(shared) if c.startswith(f"{states}."))
    dimensions = {c: f"local dimension, {text_of(c)}" for c in of_states}
    if claim.name == "grokking":
        chosen = {ACCURACY: "validation accuracy", TRAIN_ACCURACY: "training accuracy"} | dimensions
    elif claim.name == "exhaustion":
        chosen = {HELD_OUT_LOSS: "validation loss", TRAIN_LOSS: "training loss"} | dimensions
    elif claim.name == "overfitting":
        chosen = {ANSWER_LOSS: "validation loss of the answers", "train_loss": "training loss"} | dimensions
    else:
        chosen = dimensions
    return {column: title for column, title in chosen.items() if column in shared}


def _labels(results: AnalysisResults, runs: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return for each run the settings in which it differs from others, in words."""
    first = results.table.drop_duplicates("run_id").set_index("run_id")
    varying = [c for c in results.settings if as_levels(first.loc[list(runs), c]).nunique() > 1]
    return {
        run: ", ".join(f"{setting_name(c)} {format_value(first.at[run, c])}" for c in varying) or "all runs"
        for run in runs
    }


def _band(name: str, curves: Sequence[pd.DataFrame], column: str) -> Band:
    joined = pd.concat(curves).groupby("step")[column]
    mean = joined.mean()
    return Band(
        name, mean.index.to_numpy(), mean.to_numpy(), joined.min().to_numpy(), joined.max().to_numpy(), len(curves)
    )


def quantiles(results: AnalysisResults, claim: Claim) -> pd.DataFrame:
    """Return quantiles over points before and after a fine-tuning, averaged over models: text, when, q5, ..., q95."""
    rows = []
    if claim.name == "shift":
        first, last, _ = course_ends(_course(results, claim))
        for row in claim.rows.itertuples():
            columns = [f"{row.column}_{name}" for name in _QUANTILES]
            if {*columns} <= {*first.columns}:
                rows += [(row.text, "before", *first[columns].astype(float).mean())]
                rows += [(row.text, "after", *last[columns].astype(float).mean())]
    return pd.DataFrame(rows, columns=["text", "when", *_QUANTILES])


def sensitivity(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean local dimension at the last checkpoints by states and text, points and neighbours, with ranges."""
    final = final_rows(table).rows
    rows = []
    catalog = catalog_of(final)
    for column in catalog.select(kind="evaluation", metric=DIMENSION):
        of, values = catalog[column].of, pd.to_numeric(final[column]).dropna()
        if len(values) and "points" in of:
            key = f"{of['states']}.{of['text']}", of["points"], of["neighbors"]
            rows.append((*key, values.mean(), values.min(), values.max(), len(values)))
    heads = ["of", "points", "neighbors", "mean", "low", "high", "runs"]
    return pd.DataFrame(rows, columns=heads).sort_values(["of", "points", "neighbors"], ignore_index=True)
