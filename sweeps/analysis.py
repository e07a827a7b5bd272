"""Rank correlations between columns of the table, with intervals that respect its clusters. Pure functions.

The table has one row a (run, checkpoint). Seeds of a configuration and checkpoints of a run aren't independent, so
every function takes `groups`, the column that names the cluster. Definitions and traps: methods.md, sections 1 and 5.
"""

import difflib
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from geometry.probe import COUNTS
from sweeps.bootstrap import ROUNDING, interval_of_groups
from sweeps.ranks import fisher_interval, p_values, rank_between, ranks, unit

# Targets of the probe that come before all others.
FIRST_TARGETS = ("unembedding", "unembedding_gauge_fixed", "final_states")
# Ends the name of a target whose columns are the standard deviations of another's over the probe's sets.
SPREAD = "_spread"
LOSS_PREFIXES = ("lm_loss", "round_to_nearest", "gptq", "noise", "truncation", "finetune")
# Evaluations whose numbers are neither a loss nor geometry that was measured in the loop.
_OTHER_PREFIXES = ("unigram", "task", "cka", "saturation")
# What is looked at of a loss after something was done to the model; of the loss itself every domain is.
_SAID_AGAIN = ("standard_error/", "bits_per_byte/", "perplexity/")
_AFTERWARDS = ("in_domain", "out_of_domain", "macro", "forgetting", "target")
# The one pair declared before looking; every other number on a page is exploration.
PRIMARY_PAIR = ("unembedding/effective_rank_percent", "lm_loss/in_domain")

# A bootstrap of groups needs at least this many degrees of freedom between them; see `spearman`.
MIN_BOOTSTRAP_DOF = 12
MIN_ROWS = 4

# What says where a run lies or how often it is looked at, never what it is (as in olmo_jax.identity).
_NOT_SETTINGS = (
    "config.name",
    "config.tensorboard",
    "config.wandb",
    "config.mapping",
    "config.data.name",
    "config.data.root",
    "config.data.tfds_dir",
    "config.data.max_epochs",
)
_NOT_SETTINGS_SECTIONS = ("config.probe.", "config.checkpoint.", "config.mesh.", "config.compute.")

Form = Literal["rank", "factor"]


class Estimate(NamedTuple):
    """A correlation. A value that the rows can't give is NaN; `n` counts the rows that were usable."""

    estimate: float
    low: float
    high: float
    p_value: float
    n: int


class FinalRows(NamedTuple):
    """Last rows of the runs that finished, and how many runs were left out and why."""

    rows: pd.DataFrame
    diverged: int
    unfinished: int


class AnalysisError(ValueError):
    """A table that can't be analysed as asked; the message names the column and what is wrong with it."""


class UnknownColumnError(AnalysisError, KeyError):
    """A column that the table doesn't have; the message names the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


def spearman(table: pd.DataFrame, metric: str, target: str, groups: str | None = None) -> Estimate:
    """Spearman's rank correlation of two columns.

    Rows with a missing or infinite value in a used column are dropped. Ties take their average rank.

    Without groups: p by Student's t with n - 2 degrees of freedom, as scipy.stats.spearmanr; a 95 % interval by
    Fisher's z with the variance (1 + r^2/2) / (n - 3) (Bonett & Wright 2000).

    With groups, whose rows may repeat each other [ours]: the rows count for no more than
    g = (sum of sizes)^2 / (sum of squared sizes) independent ones, the number of groups where they are of one size
    (Kish 1965). p is by t with g - 2 degrees of freedom, exact in the worst case, where rows of a group are copies, and
    conservative in every other. The 95 % interval is the percentile interval of 2,000 draws of whole groups, always the
    same draws. With few groups that is too narrow (6 groups of 2: it covered 0 in 89 to 93 % of 150 null tables, and in
    74 to 80 % given two controls), so with fewer than 14 the interval is Fisher's z with g for n.

    Args:
      table: rows to use, all of them.
      metric, target: numeric columns; the result is the same with the two swapped.
      groups: column that names the cluster of a row, or None for independent rows.

    Returns:
      An Estimate. All but n are NaN with fewer than 4 usable rows or a constant column; p_value and the interval are
      NaN where no degree of freedom is left for them (as with fewer than 3, or 4, groups).

    Raises:
      UnknownColumnError: no such column. AnalysisError: a column that holds something other than numbers.
    """
    return _one(table, metric, target, (), "rank", groups)[0]


def partial_spearman(
    table: pd.DataFrame,
    metric: str,
    target: str,
    controls: list[str] | tuple[str, ...],
    form: Form = "rank",
    groups: str | None = None,
) -> Estimate:
    """Spearman's correlation of metric and target given the controls.

    Metric and target are ranked, regressed on the controls by least squares, and their residuals correlated. As
    `spearman` with k degrees of freedom fewer, k the rank of the controls beyond the intercept, so that settings that
    move together are counted once. With groups, k counts only what the controls explain between groups, and the
    bootstrap needs at least 14 + k groups and 2 (k + 2) of them.

    Form "rank" enters each control as its ranks (pingouin.partial_corr, method "spearman"), and so takes away only what
    rises or falls with it: a loss that is U-shaped in a control makes it find effects that aren't there. Form "factor"
    enters each control as a category, one level a value, which takes away any shape and costs a degree of freedom a
    level. A column that isn't numeric is a category in both.

    Args:
      table, metric, target, groups: as in `spearman`.
      controls: columns held fixed; none gives `spearman`.
      form: "rank" or "factor".

    Returns:
      An Estimate, NaN as in `spearman`, and also where the controls take up every degree of freedom or explain the
      metric or the target completely.

    Raises:
      UnknownColumnError: no such column. AnalysisError: a metric or target that holds something other than numbers,
        or an unknown form.
    """
    if form not in ("rank", "factor"):
        raise AnalysisError(f"form = {form!r}: needs 'rank' or 'factor'")
    return _one(table, metric, target, tuple(controls), form, groups)[0]


def correlations(table: pd.DataFrame, groups: str | None = "configuration") -> pd.DataFrame:
    """Every geometry metric against every loss: raw, and given the settings that vary, as ranks and as factors.

    Final rows of runs that didn't diverge; `left_out` says in each row how many runs that excludes. p-values are not
    corrected for the number of pairs: only PRIMARY_PAIR, which comes first, was declared beforehand.

    Returns:
      One row a (metric, target, form): metric, target, form ("raw", "partial rank" or "partial factor"), estimate, low,
      high, p_value, n, left_out, note; the note says why a value is missing.
    """
    final = final_rows(table)
    controls = tuple(controls_of(final.rows))
    by_form: dict[str, tuple[tuple[str, ...], Form]] = {
        "raw": ((), "rank"),
        "partial rank": (controls, "rank"),
        "partial factor": (controls, "factor"),
    }
    metrics, targets = geometry_columns(table), loss_columns(table)
    order = {pair: i for i, pair in enumerate(sorted(_pairs(metrics, targets), key=lambda pair: pair != PRIMARY_PAIR))}
    rows = []
    for position, (name, (used, form)) in enumerate(by_form.items()):
        for (metric, target), (estimate, note) in _many(final.rows, metrics, targets, used, form, groups).items():
            if name != "raw" and not controls:
                estimate = Estimate(np.nan, np.nan, np.nan, np.nan, estimate.n)
                note = "no setting varies, so there is nothing to control for"
            left_out = final.diverged + final.unfinished
            row = {"metric": metric, "target": target, "form": name, **estimate._asdict()}
            row |= {"left_out": left_out, "note": note}
            rows.append((order[metric, target], position, row))
    columns = ["metric", "target", "form", *Estimate._fields, "left_out", "note"]
    return pd.DataFrame([row for _, _, row in sorted(rows, key=lambda r: r[:2])], columns=columns)


def final_rows(table: pd.DataFrame) -> FinalRows:
    """The last row of each run that reached its end with finite parameters, and what was left out."""
    diverged_runs = table.loc[table["diverged_at"].notna(), "run_id"].unique()
    last = table[table["final"].fillna(False).astype(bool)]
    unfinished = set(table["run_id"]) - set(last["run_id"]) - set(diverged_runs)
    kept = last[~last["run_id"].isin(diverged_runs)].reset_index(drop=True)
    return FinalRows(kept, len(diverged_runs), len(unfinished))


def controls_of(table: pd.DataFrame) -> list[str]:
    """The settings that differ between rows: `config.` columns but seeds, names, places and what is only looked at."""
    return [c for c in table.columns if _is_setting(c) and as_levels(table[c]).nunique() > 1]


def geometry_columns(table: pd.DataFrame) -> list[str]:
    """Columns `<target>/<metric>` of the probe, whatever their names, those of FIRST_TARGETS first.

    Spreads and counts tell about the measurement and are left out.
    """
    order = {target: i for i, target in enumerate(FIRST_TARGETS)}
    return sorted(filter(_is_geometry, table.columns), key=lambda c: order.get(target_of(c), len(order)))


def loss_columns(table: pd.DataFrame) -> list[str]:
    """Columns of a loss: by domain and on average; on average after quantisation, damage or fine-tuning.

    Their errors, bits per byte and perplexities say the same again and are left out.
    """
    return [c for c in table.columns if "/" in c and _is_of(c, LOSS_PREFIXES) and _is_looked_at(c)]


def target_of(column: str) -> str:
    """What a column `<target>/<metric>` measures."""
    return column.rpartition("/")[0]


def spread_column(column: str) -> str:
    """The column that holds the standard deviation of `column` over disjoint probe sets, if the probe took any."""
    target, _, name = column.rpartition("/")
    return f"{target}{SPREAD}/{name}"


def as_levels(column: pd.Series) -> pd.Series:
    """The column as hashable values: what isn't a number (a list of files) as its text; missing stays missing."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(str, na_action="ignore")


def _is_setting(column: str) -> bool:
    if not column.startswith("config.") or column.endswith("seed"):
        return False
    return column not in _NOT_SETTINGS and not column.startswith(_NOT_SETTINGS_SECTIONS)


def _is_geometry(column: str) -> bool:
    target, _, name = column.rpartition("/")
    if target in ("", "train") or _is_of(column, (*LOSS_PREFIXES, *_OTHER_PREFIXES)):
        return False
    return not target.endswith(SPREAD) and name not in COUNTS


def _is_of(column: str, evaluations: tuple[str, ...]) -> bool:
    """Whether a column is of one of these evaluations, plain or with its settings in the name."""
    return column.startswith(tuple(f"{e}{end}" for e in evaluations for end in ("/", "_")))


def _is_looked_at(column: str) -> bool:
    evaluation, _, name = column.partition("/")
    return name in _AFTERWARDS if evaluation != "lm_loss" else not name.startswith(_SAID_AGAIN)


def _pairs(metrics: list[str], targets: list[str]) -> list[tuple[str, str]]:
    return [(m, t) for t in targets for m in metrics]


# From columns to arrays. Letters: N rows, C metrics, E targets, K control columns, G groups, B draws.


class _Design(NamedTuple):
    """Controls as columns [N, K]: `ranked` are numbers that enter as ranks, `levels` are 0 and 1 and stay so."""

    ranked: np.ndarray
    levels: np.ndarray


def _one(
    table: pd.DataFrame, metric: str, target: str, controls: tuple[str, ...], form: Form, groups: str | None
) -> tuple[Estimate, str]:
    return _many(table, [metric], [target], controls, form, groups)[metric, target]


def _many(
    table: pd.DataFrame,
    metrics: list[str],
    targets: list[str],
    controls: tuple[str, ...],
    form: Form,
    groups: str | None,
) -> dict[tuple[str, str], tuple[Estimate, str]]:
    """Estimate and note of every (metric, target); pairs that are missing in the same rows are done together."""
    for name in (*metrics, *targets, *controls, *([groups] if groups else [])):
        _require_column(table, name)
    controlled = table[[*controls, *([groups] if groups else [])]]
    with_controls_N = controlled.replace([np.inf, -np.inf], np.nan).notna().all(axis=1).to_numpy(dtype=bool)
    results = {}
    for metric_names, metrics_NC, metric_there_N in _by_missing(table, metrics):
        for target_names, targets_NE, target_there_N in _by_missing(table, targets):
            there_N = metric_there_N & target_there_N & with_controls_N
            rows = table[there_N]
            groups_N = pd.factorize(as_levels(rows[groups]))[0] if groups else None
            design = _design(rows, controls, form)
            block = _block(metrics_NC[there_N], targets_NE[there_N], design, groups_N)
            for i, metric in enumerate(metric_names):
                for j, target in enumerate(target_names):
                    results[metric, target] = block[i][j]
    return results


def _by_missing(table: pd.DataFrame, names: list[str]) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Columns in classes that are there in the same rows: (names, values [N, C], there [N])."""
    classes: dict[bytes, list[str]] = {}
    values = {name: _numbers(table, name) for name in names}
    for name in names:
        classes.setdefault(np.isfinite(values[name]).tobytes(), []).append(name)
    return [
        (same, np.stack([values[n] for n in same], axis=1), np.isfinite(values[same[0]])) for same in classes.values()
    ]


def _require_column(table: pd.DataFrame, name: str) -> None:
    if name not in table.columns:
        near = difflib.get_close_matches(name, [str(c) for c in table.columns], n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else f"; it has {len(table.columns)} others, none of a like name"
        raise UnknownColumnError(f"the table has no column '{name}'{hint}")


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    try:
        return pd.to_numeric(table[name]).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"column '{name}' of the table holds something that isn't a number: {error}") from None


def _design(rows: pd.DataFrame, controls: tuple[str, ...], form: Form) -> _Design:
    ranked, levels = [np.empty((len(rows), 0))], [np.empty((len(rows), 0))]
    for name in controls:
        if form == "rank" and pd.api.types.is_numeric_dtype(rows[name]):
            ranked.append(_numbers(rows, name)[:, None])
        else:
            codes_N, values = pd.factorize(as_levels(rows[name]))
            levels.append((codes_N[:, None] == np.arange(1, len(values))).astype(float))
    return _Design(np.concatenate(ranked, axis=1), np.concatenate(levels, axis=1))


def _block(
    metrics_NC: np.ndarray, targets_NE: np.ndarray, design: _Design, groups_N: np.ndarray | None
) -> list[list[tuple[Estimate, str]]]:
    """Estimate and note of every pair of a metric and a target, all there in the same N rows."""
    n, n_metrics = metrics_NC.shape
    columns_NC = np.concatenate([metrics_NC, targets_NE], axis=1)
    if n < MIN_ROWS:
        empty = Estimate(np.nan, np.nan, np.nan, np.nan, n)
        return [[(empty, f"fewer than {MIN_ROWS} usable rows")] * targets_NE.shape[1] for _ in range(n_metrics)]

    controls_NK = unit(np.concatenate([ranks(design.ranked), design.levels], axis=1))
    ranks_NC = unit(ranks(columns_NC))
    coefficients_KC, _, k, _ = np.linalg.lstsq(controls_NK, ranks_NC, rcond=1e-10)
    residuals_NC = ranks_NC - controls_NK @ coefficients_KC
    norms_C = np.linalg.norm(residuals_NC, axis=0)
    left_C = norms_C > ROUNDING
    residuals_NC = residuals_NC / np.where(left_C, norms_C, np.inf)
    r_CE = np.clip(residuals_NC[:, :n_metrics].T @ residuals_NC[:, n_metrics:], -1, 1)

    effective_n, k_between = float(n), int(k)
    if groups_N is not None:
        sizes_G = np.bincount(groups_N)
        effective_n = n**2 / float(np.sum(sizes_G**2))
        k_between = rank_between(controls_NK, groups_N)
    dof = min(n - 2 - int(k), effective_n - 2 - k_between)
    low_CE, high_CE = fisher_interval(r_CE, effective_n, k_between)
    if groups_N is not None and dof >= MIN_BOOTSTRAP_DOF and effective_n >= 2 * (k_between + 2):
        low_CE, high_CE = interval_of_groups(columns_NC, n_metrics, design.ranked, design.levels, groups_N, k_between)
    p_CE = p_values(r_CE, dof)

    constant_C = np.linalg.norm(ranks_NC, axis=0) == 0
    none_left = n - 2 - int(k) <= 0
    result = []
    for i in range(n_metrics):
        row = []
        for j in range(targets_NE.shape[1]):
            note = _note_of_missing(
                constant_C[i], constant_C[n_metrics + j], left_C[i], left_C[n_metrics + j], none_left
            )
            if note:
                row.append((Estimate(np.nan, np.nan, np.nan, np.nan, n), note))
                continue
            estimate = Estimate(float(r_CE[i, j]), float(low_CE[i, j]), float(high_CE[i, j]), float(p_CE[i, j]), n)
            if np.isnan(estimate.p_value) or np.isnan(estimate.low):
                what = "an interval" if dof > 0 else "a p-value or an interval"
                independent = f"{groups_N.max() + 1} groups" if groups_N is not None else f"{n} rows"
                note = f"{independent} are too few for {what}" + (f" with {k_between} controls" if k_between else "")
            row.append((estimate, note))
        result.append(row)
    return result


def _note_of_missing(
    metric_constant: bool, target_constant: bool, metric_left: bool, target_left: bool, full: bool
) -> str:
    if metric_constant or target_constant:
        return f"the {'metric' if metric_constant else 'target'} is the same in all rows"
    if full:
        return "controls take up every degree of freedom"
    if not (metric_left and target_left):
        return f"the controls explain the {'target' if metric_left else 'metric'} completely"
    return ""
