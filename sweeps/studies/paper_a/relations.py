"""Claims about geometry and performance across configurations: correlations, and gains in R2."""

import math

import numpy as np
import pandas as pd
import scipy.stats

from sweeps import analysis
from sweeps.analysis.r2 import baseline_columns
from sweeps.studies.paper_a.contrasts import default_configuration
from sweeps.studies.paper_a.effect import LOSS, RANK, Effect, in_seeds, untestable, verdict
from sweeps.table.catalog import catalog_of

_OUT = "lm_loss/out_of_domain"
STATES = "final_states/effective_rank_percent"
_CLUSTER = "configuration"
_OF = "configurations"
# A gain of R2 within this of 0 counts as none [ours]; the paper reports -.003 and -.004 as none, .03 and .07 as some.
NO_GAIN = 0.02


def effects(rows: pd.DataFrame) -> list[Effect]:
    """Return the test of each claim on the final rows of the suite's sizes."""
    quantised, tuned = losses_after_gptq(rows), losses_after_tuning(rows)
    losses = [c for c in (LOSS, _OUT) if c in rows]
    settings = analysis.controls_of(rows)
    return [
        *(_correlation("R(W) goes with a lower loss", rows, target) for target in losses),
        *(_correlation("the same given the settings", rows, target, settings) for target in [*losses, *quantised]),
        *(_gain("R(W) adds nothing to a prediction from size, tokens and compute", rows, RANK, 0, c) for c in losses),
        *(_gain("the same for the loss after fine-tuning", rows, RANK, 0, c) for c in tuned),
        *(_gain("R(H) adds to a prediction of the loss after fine-tuning", rows, STATES, +1, c) for c in tuned),
        low_rank_without_harm(rows),
        *gptq_and_rank(rows),
    ]


def _correlation(claim: str, rows: pd.DataFrame, target: str, settings: list[str] | None = None) -> Effect:
    """Return Spearman's correlation of R(W) with a loss, negative in the paper, given the settings' ranks if any."""
    claim = f"{claim}, {_short(target)}"
    estimate = analysis.partial_spearman(rows, RANK, target, settings or [], "rank", _CLUSTER)
    return _of_estimate(claim, f"rho of {RANK}", -1, estimate, rows)


def _gain(claim: str, rows: pd.DataFrame, metric: str, sign: int, target: str) -> Effect:
    """Return the gain of R2 by a metric; `sign` 0 for a claim that there is none."""
    claim, name = f"{claim}, {_short(target)}", f"delta R2 of {metric}"
    if metric not in rows:
        return untestable(claim, name, of=_OF)
    estimate = analysis.incremental_r2(rows, metric, target, baseline_columns(rows), _CLUSTER)
    effect = _of_estimate(claim, name, sign, estimate, rows)
    if sign == 0 and effect.verdict != "untestable":
        effect = effect._replace(verdict=no_gain(effect.low, effect.high))
    return effect


def no_gain(low: float, high: float) -> str:
    """Return the verdict of an interval of a gain of R2 on the claim that there is none that matters.

    An uninformative metric makes an out-of-fold prediction slightly worse, so a gain below 0 is none.
    """
    return "agrees" if high < NO_GAIN else "disagrees" if low > 0 else "unclear"


def _of_estimate(claim: str, metric: str, sign: int, estimate: analysis.Estimate, rows: pd.DataFrame) -> Effect:
    n = rows[_CLUSTER].nunique()
    if math.isnan(estimate.estimate) or math.isnan(estimate.low):
        return untestable(claim, metric, n, _OF)
    given = verdict(sign, estimate.estimate, estimate.low, estimate.high)
    return Effect(claim, metric, estimate.estimate, estimate.low, estimate.high, n, math.nan, given, _OF)


def _smallest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the smallest size, one per configuration: means over seeds."""
    rows = rows[rows["parameters_non_embedding"] == rows["parameters_non_embedding"].min()]
    numeric = rows.select_dtypes("number").groupby(rows[_CLUSTER]).mean().reset_index()
    return numeric.assign(**{_COUNT: numeric[_CLUSTER].map(rows[_CLUSTER].value_counts())})


_COUNT = "replicates"


def low_rank_without_harm(rows: pd.DataFrame) -> Effect:
    """Return how far the rank can be below the default's at no worse a loss, in the smallest size.

    A loss counts as no worse up to two standard deviations over seeds, which are pooled over all sizes. The interval is
    that of the difference of two means, by Student's t, corrected (Bonferroni) for the choice of the lowest.
    """
    means = _smallest(rows)
    claim = "a small model can be low-rank without degrading (the lowest R(W) at no worse a loss)"
    rank_sd, loss_sd = (analysis.seed_deviation(rows, metric) for metric in (RANK, LOSS))
    size = rows.loc[rows["parameters_non_embedding"].idxmin(), "config.name"]
    at_default = means[means[_CLUSTER] == default_configuration(rows, size)].dropna(subset=[RANK, LOSS])
    if not (rank_sd > 0 and loss_sd > 0) or at_default.empty:
        return untestable(claim, RANK, of=_OF)
    default = at_default.iloc[0]
    harmless = means[means[LOSS] <= default[LOSS] + 2 * loss_sd]
    lowest = harmless.loc[harmless[RANK].idxmin()]
    effect = float(lowest[RANK] - default[RANK])
    freedom = len(rows) - rows[_CLUSTER].nunique()
    t = float(scipy.stats.t.isf(0.025 / len(harmless), freedom))
    half_width = t * rank_sd * math.sqrt(1 / default[_COUNT] + 1 / lowest[_COUNT])
    low, high = effect - half_width, effect + half_width
    given = verdict(-1, effect, low, high)
    return Effect(claim, RANK, effect, low, high, len(harmless), in_seeds(effect, rank_sd), given, _OF)


def low_rank_models(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what tells each other configuration of the smallest size from its default: rank and loss.

    One row per configuration: the difference of ranks and its upper limit, and of losses with both limits. They are
    differences of two means with deviations over seeds that are pooled over all sizes, by Student's t; limits are those
    of simultaneous intervals (Bonferroni, over configurations and the two columns). Empty without replicates or the
    default.
    """
    means = _smallest(rows)
    freedom = len(rows) - rows[_CLUSTER].nunique()
    size = rows.loc[rows["parameters_non_embedding"].idxmin(), "config.name"]
    is_default = means[_CLUSTER] == default_configuration(rows, size)
    others = means[~is_default].dropna(subset=[RANK, LOSS])
    if freedom < 1 or others.empty or not is_default.any():
        return pd.DataFrame()
    default = means[is_default].iloc[0]
    t = float(scipy.stats.t.isf(0.025 / (2 * len(others)), freedom))
    half = t * np.sqrt(1 / default[_COUNT] + 1 / others[_COUNT])
    result = pd.DataFrame({_CLUSTER: others[_CLUSTER]})
    for name, column in (("rank", RANK), ("loss", LOSS)):
        spread = analysis.seed_deviation(rows, column)
        result[name] = others[column] - default[column]
        result[f"{name}_low"], result[f"{name}_high"] = result[name] - half * spread, result[name] + half * spread
    return result


def gptq_and_rank(rows: pd.DataFrame) -> list[Effect]:
    """Return the correlation of R(W) with the relative rise of loss by GPTQ over the smallest size's settings."""
    means = _smallest(rows)
    claim = "GPTQ hurts small models of very low rank"
    columns = _after_gptq(means, "change")
    if not columns:
        return [untestable(claim, RANK, of=_OF)]
    results = []
    for column in columns:
        estimate = analysis.spearman(means, RANK, column)
        results.append(_of_estimate(f"{claim}, {_short(column)}", f"rho of {RANK}", -1, estimate, means))
    return results


def _after_gptq(rows: pd.DataFrame, kind: str) -> list[str]:
    """Return the columns of in-domain loss, or its relative rise, after GPTQ to the fewest bits, by kind of scale."""
    catalog = catalog_of(rows)
    measure = {} if kind == "loss" else {"measure": "relative_rise"}
    found = catalog.select(kind=kind, after="quantize", method="gptq", scope="blocks", domain="in_domain", **measure)
    by_group: dict[int, list[str]] = {}
    for column in sorted(found, key=lambda c: catalog[c].of["bits"]):
        if np.isfinite(rows[column].astype(float)).sum() >= analysis.MIN_ROWS:
            by_group.setdefault(catalog[column].of.get("group", 0), []).append(column)
    return [columns[0] for columns in by_group.values()]


def losses_after_gptq(rows: pd.DataFrame) -> list[str]:
    """Return the columns of in-domain loss after GPTQ to the fewest bits, by kind of scale."""
    return _after_gptq(rows, "loss")


def losses_after_tuning(rows: pd.DataFrame) -> list[str]:
    """Return the columns of the loss on the target after fine-tuning at one rate; those at the best rate left out."""
    catalog = catalog_of(rows)
    columns = catalog.select(kind="loss", after="finetune", domain="target")
    return [c for c in columns if catalog[c].of.get("rate") != "best" and rows[c].notna().any()]


def _short(column: str) -> str:
    return column.replace("lm_loss/", "").replace("/relative_rise/in_domain", "").replace("/target", "")
