"""What a sweep found, in plain sentences, each with its number.

Where the table can't say it, the sentence gives the reason.
"""

import math

import pandas as pd

from sweeps.analysis import PRIMARY_PAIR
from sweeps.analysis.prediction import GAIN
from sweeps.analysis.results import AnalysisResults
from sweeps.report.numbers import fine, number, percent, signed
from sweeps.report.row_sentences import lacking
from sweeps.report.words import counted, describe, listed, setting_name

SIGNIFICANT = 0.05
# Shares of variance below this are not mentioned.
LEAST_SHARE = 0.02

_METRIC, _LOSS = PRIMARY_PAIR


def increment(results: AnalysisResults) -> str:
    """Return what effective rank adds to a prediction from size, compute and tokens."""
    what = "What effective rank adds to a linear prediction of in-domain loss from size, compute and tokens"
    found = results.associations
    of = found[(found["metric"] == _METRIC) & (found["target"] == _LOSS) & (found["method"] == "incremental R2")]
    if of.empty:
        return f"{what} is unknown: {lacking(results.final.rows, _METRIC) or lacking(results.final.rows, _LOSS)}."
    row = of.iloc[0]
    if math.isnan(row["estimate"]):
        return f"{what} is unknown: {row['note']}."
    text = f"{what}, on configurations that the fit hasn't seen, is {_with_interval(row, 'estimate')} in R2"
    return f"{text}; p = {row['p_value']:.2g} for its coefficient." if math.isfinite(row["p_value"]) else f"{text}."


def others(results: AnalysisResults) -> str:
    """Return how many other associations are significant after correction, and the largest given the settings."""
    tested = results.associations[results.associations["q_value"].notna()]
    if tested.empty:
        why = "there is no other pair" if results.associations.empty else "too few configurations or values"
        return f"No other association of geometry with a loss can be tested: {why}."
    found = tested[tested["q_value"] < SIGNIFICANT]
    text = f"Of {len(tested)} other associations of geometry with a loss, {len(found) or 'none'} "
    text += f"{'has' if len(found) == 1 else 'have'} q < {SIGNIFICANT:g} (p-values corrected together)"
    given = found[found["method"] == "partial factor"]
    if given.empty:
        return f"{text}; given the settings as factors, none of them remains." if len(found) else f"{text}."
    row = given.loc[given["estimate"].abs().idxmax()]
    remain = f"{counted(len(given), 'pair')} {'remains' if len(given) == 1 else 'remain'}"
    text += f"; given the settings as factors, {remain}, the strongest {row['metric']} with {row['target']}, "
    text += _with_interval(row, "estimate")
    if math.isfinite(row["seed_sds"]):
        text += f", or {signed(row['seed_sds'])} standard deviations over seeds"
    return f"{text}."


def prediction(results: AnalysisResults) -> str:
    """Return the R2 of the best model with and without final geometry."""
    what = "Whether final geometry helps to predict the loss beyond the settings"
    return _gain(what, results.prediction, "model", ("settings", "settings and geometry"), "from settings by {}")


def early(results: AnalysisResults) -> str:
    """Return what early geometry adds to a prediction from settings and the loss so far."""
    what = "Whether early geometry helps to predict the final loss beyond settings and loss curve"
    early = results.early.assign(model=[f"{100 * share:.0f} %" for share in results.early["share"]])
    return _gain(what, early, "model", ("settings and loss", "all"), "from settings and loss curve at {} of training")


def _gain(what: str, found: pd.DataFrame, by: str, features: tuple[str, str], how: str) -> str:
    """Return the gain in R2 of `features[1]` over `features[0]` for the declared loss, where the latter is best."""
    found = found[found["target"] == _LOSS]
    known = found[found["r2"].notna()]
    both = set(known.loc[known["features"] == features[1], by])
    of = known[(known["features"] == features[0]) & known[by].isin(both)]
    if of.empty:
        notes = [note for note in found.loc[found["r2"].isna(), "note"] if note] or ["no finished run has it"]
        return f"{what} is unknown: {notes[0]}."
    best = of.loc[of["r2"].idxmax(), by]
    of_best = known[known[by] == best].set_index("features")
    text = f"If {_LOSS} is predicted {how.format(best)}, the out-of-fold R2 is {number(of_best.loc[features[0], 'r2'])}"
    text += f"; with geometry it is {_with_interval(of_best.loc[features[1]], 'r2')}"
    if GAIN in of_best.index:
        text += f", a gain of {_with_interval(of_best.loc[GAIN], 'r2')}"
    return f"{text}."


def what_sets_it(results: AnalysisResults) -> str:
    """Return how much of the variance of effective rank each setting explains."""
    of = results.variance[(results.variance["column"] == _METRIC) & results.variance["share"].notna()]
    if of.empty:
        of = results.variance[results.variance["column"] == _METRIC]
        why = lacking(results.final.rows, _METRIC) or "no setting differs between finished runs"
        notes = [note for note in of["note"] if note] or [why]
        return f"How much of the variance of effective rank each setting explains is unknown: {notes[0]}."
    shares = of.sort_values("share", ascending=False)
    named = [
        f"{percent(row.share)} {_share_name(row.setting)}"
        + (f" ({percent(row.low)} to {percent(row.high)})" if math.isfinite(row.low) else "")
        for row in shares.itertuples()
        if row.share >= LEAST_SHARE
    ]
    named = named or [f"no setting explains {percent(LEAST_SHARE)} or more"]
    return f"Of the variance of effective rank over this grid, {listed(named)}."


def saturation(results: AnalysisResults) -> str:
    """Return how many runs ended above their lowest loss, and whether the rank collapsed first."""
    runs, lead = results.saturation.runs, results.saturation.lead
    known = runs["degraded"].notna() if len(runs) else pd.Series(dtype=bool)
    if not known.any():
        return f"Which runs saturated is unknown: {results.saturation.note.split(';')[0] or 'no finished run'}."
    degraded = runs["degraded"].fillna(False).astype(bool)
    low = runs["low_rank"].fillna(False).astype(bool)
    text = f"Of {counted(int(known.sum()), 'run')}, {int(degraded.sum()) or 'none'} ended more than two standard "
    text += "errors above their lowest loss"
    if degraded.any():
        text += f", {int((degraded & low).sum()) or 'none'} of these with effective rank below the median"
    if lead.n and math.isfinite(lead.estimate):
        text += f"; in {counted(lead.n, 'degraded run')} the rank collapsed, {describe(lead)} of training before "
        text += "the loss began to rise"
    return f"{text}."


def _share_name(setting: str) -> str:
    parts = {"seed": "is between seeds", "rest": "is left unexplained"}
    return parts.get(setting, f"is explained by {setting_name(setting)}")


def _with_interval(row: pd.Series, value: str) -> str:
    """Return a value with its interval, from a row with low and high."""
    text = fine(row[value])
    return f"{text} (95 % interval {fine(row['low'])} to {fine(row['high'])})" if math.isfinite(row["low"]) else text
