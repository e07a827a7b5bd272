"""Analyse saturation: whose loss rose after its minimum, whose rank is low, and which of the two came first."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from sweeps.analysis.bootstrap import DRAWS
from sweeps.analysis.correlation import many
from sweeps.analysis.estimate import Estimate, Noted, NotEstimableError, estimated, join_notes, nothing
from sweeps.table.columns import PRIMARY_PAIR, final_rows, numbers

# A loss has risen if it did so by more than this many standard errors (methods.md, section 5).
ERRORS = 2
# The fewest values whose order statistics give a 95 % interval of the median.
MIN_FOR_MEDIAN = 6
EXAMPLES = 3

_RANK, _LOSS = PRIMARY_PAIR
_ERROR = "lm_loss/standard_error/in_domain"
_KNOWN = {
    "best_step": "saturation/best_step",
    "rise": "saturation/rise",
    "standard_error": "saturation/rise_standard_error",
    "collapse_step": "saturation/collapse_step",
}
# The columns of Saturation.runs and their types.
_COLUMNS = {
    **dict.fromkeys(("run_id", "configuration"), str),
    **dict.fromkeys(("best_step", "rise", "standard_error"), float),
    "degraded": "boolean",
    **dict.fromkeys(("collapse_step", "rank_percent"), float),
    "low_rank": "boolean",
    "lead": float,
}


class Saturation(NamedTuple):
    """The result of `saturation_of`.

    Attributes:
      runs: one row per finished run: run_id, configuration, best_step, rise (last loss minus the best, nats per token),
        standard_error, degraded (NA where unknown), collapse_step, rank_percent, low_rank (NA without a rank), lead (a
        share of the run's steps).
      quadrants: the four combinations of rank ("low" or "high") and degraded (True or False): runs, configurations (one
        whose seeds differ counts in several), examples (run ids, the clearest first).
      median_rank: ranks below it are low.
      lead: median over configurations; positive means that the rank collapsed before the loss turned.
      note: what is missing, and why.
      association: phi coefficient of low rank and degrading: 1 if the same runs do both, -1 if each does exactly one.
    """

    runs: pd.DataFrame
    quadrants: pd.DataFrame
    median_rank: float
    lead: Estimate
    note: str
    association: Estimate


def saturation_of(table: pd.DataFrame) -> Saturation:
    """Return the rise of the loss after its minimum, the rank, and which came first, for every run that finished.

    The columns `saturation/...` hold best step, rise and its paired standard error. Where they are missing, these are
    computed from the in-domain loss of the run's checkpoints, with the root of the sum of the two losses' squared
    errors as the error: that is too large, as both are of the same documents, so fewer runs count as degraded. A run is
    degraded if its rise is more than two standard errors.

    The rank is the effective rank of the unembedding in percent of its width, low if below the median of all finished
    runs of any size, since the paper's low-rank small models are low relative to the large ones [ours].

    The lead is (best step - collapse step) / steps, for degraded runs whose rank collapsed. In other runs the loss
    never turned, so that the best step is the last and any collapse would seem to lead [ours]. The loss turned
    between the best checkpoint and the next, so a lead is too small by up to the time between the two. The estimate is
    the median of the configurations' medians; the interval is from 1,000 draws of configurations and needs 6, as fewer
    values have no 95 % interval of their median; p is that of the exact sign test of the configurations' medians.

    The association is Spearman's correlation of the two flags, clustered as in `spearman`; p is approximate where one
    of the flags is rare. It isn't controlled for size, which can cause both.

    Raises AnalysisError for one of these columns that holds something other than numbers.
    """
    final = pd.DataFrame() if table.empty else final_rows(table).rows
    if final.empty:
        return _summary(pd.DataFrame(columns=[*_COLUMNS]).astype(_COLUMNS), "no run finished")
    runs = final[["run_id", "configuration"]].copy()
    for name, column in _KNOWN.items():
        runs[name] = _numbers(final, column)
    note = _fill_in(runs, table)
    runs["rank_percent"] = _numbers(final, _RANK)
    known = runs["rise"].notna() & runs["standard_error"].notna()
    runs["degraded"] = (runs["rise"] > ERRORS * runs["standard_error"]).astype("boolean").where(known)
    low = runs["rank_percent"] < runs["rank_percent"].median()
    runs["low_rank"] = low.astype("boolean").where(runs["rank_percent"].notna())
    lead = (runs["best_step"] - runs["collapse_step"]) / final["step"]
    runs["lead"] = lead.where(runs["degraded"].fillna(False).astype(bool))
    return _summary(runs[[*_COLUMNS]], note)


def _summary(runs: pd.DataFrame, note: str) -> Saturation:
    missing = {
        "degraded": "no losses with standard errors at two checkpoints (degradation unknown)",
        "rank_percent": "no rank of the unembedding",
    }
    notes = [note] + [
        f"{what} in {int(runs[name].isna().sum())} of {len(runs)} runs"
        for name, what in missing.items()
        if runs[name].isna().any()
    ]
    lead, lead_note = estimated(lambda why: Noted(nothing(0), why), _lead, runs)
    flags = runs[["configuration", "low_rank", "degraded"]].astype({"low_rank": float, "degraded": float})
    association, why = many(flags, ["low_rank"], ["degraded"], (), "rank", "configuration")["low_rank", "degraded"]
    why = why.replace("the metric", "a low rank").replace("the target", "degrading")
    if not runs.empty:
        notes += [lead_note, f"association of low rank and degrading: {why}" if why else ""]
    median = float(runs["rank_percent"].median()) if len(runs) else np.nan
    return Saturation(runs, _quadrants(runs), median, lead, join_notes(*notes), association)


def _fill_in(runs: pd.DataFrame, table: pd.DataFrame) -> str:
    """Set best step and rise from the checkpoints' losses for runs that lack them; return a note on their number."""
    lacking = runs.index[runs["rise"].isna()]
    if _LOSS not in table.columns or lacking.empty:
        return ""
    checkpoints = table[["run_id", "step"]].assign(loss=_numbers(table, _LOSS), error=_numbers(table, _ERROR))
    by_run = {
        run: rows.to_numpy(dtype=float)
        for run, rows in checkpoints.sort_values("step").groupby("run_id")[["step", "loss", "error"]]
    }
    computed = {}
    for i in lacking:
        rows_C3 = by_run[runs.at[i, "run_id"]]
        last_step, last_loss, last_error = rows_C3[-1]
        rows_C3 = rows_C3[np.isfinite(rows_C3[:, 1])]
        if len(rows_C3) < 2 or not np.isfinite(last_loss):
            continue
        step, loss, error = rows_C3[rows_C3[:, 1].argmin()]
        computed[i] = step, last_loss - loss, np.hypot(error, last_error) if step < last_step else 0.0
    runs.loc[[*computed], ["best_step", "rise", "standard_error"]] = np.reshape([*computed.values()], (-1, 3))
    filled = int(runs.loc[lacking, "rise"].notna().sum())
    return (
        f"the rise is from the table's losses, with unpaired errors, in {filled} of {len(runs)} runs" if filled else ""
    )


def _lead(runs: pd.DataFrame) -> Noted:
    """Return the median of the configurations' median leads, and a note on what is missing."""
    with_lead = runs.dropna(subset="lead")
    medians_G = with_lead.astype({"lead": float}).groupby("configuration")["lead"].median().to_numpy()
    n_groups = len(medians_G)
    if n_groups == 0:
        fell, degraded = int(runs["collapse_step"].notna().sum()), int(runs["degraded"].fillna(False).sum())
        raise NotEstimableError(
            f"no lead: of {len(runs)} runs, the rank collapsed in {fell} and {degraded} degraded, but none did both"
        )
    before, after = int((medians_G > 0).sum()), int((medians_G < 0).sum())
    p_value = float(stats.binomtest(before, before + after).pvalue) if before + after else 1.0
    lead = Estimate(float(np.median(medians_G)), np.nan, np.nan, p_value, len(with_lead))
    if n_groups < MIN_FOR_MEDIAN:
        return Noted(lead, f"{n_groups} configurations are too few for an interval of the lead")
    options = {"n_resamples": DRAWS, "method": "percentile", "random_state": np.random.default_rng(0)}
    low, high = stats.bootstrap((medians_G,), np.median, **options).confidence_interval
    return Noted(lead._replace(low=float(low), high=float(high)), "")


def _quadrants(runs: pd.DataFrame) -> pd.DataFrame:
    """Count runs and configurations by low or high rank and degraded or not, with the clearest examples."""
    rows = []
    for rank, low in (("low", True), ("high", False)):
        for degraded in (True, False):
            selected = runs[(runs["low_rank"] == low).fillna(False) & (runs["degraded"] == degraded).fillna(False)]
            key = -selected["rise"] if degraded else selected["rise"].abs()
            examples = list(selected.assign(by=key).sort_values(["by", "run_id"])["run_id"][:EXAMPLES])
            rows.append((rank, degraded, len(selected), selected["configuration"].nunique(), examples))
    return pd.DataFrame(rows, columns=["rank", "degraded", "runs", "configurations", "examples"])


def _numbers(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as floats, all NaN if it doesn't exist."""
    return numbers(rows, column) if column in rows.columns else np.full(len(rows), np.nan)
