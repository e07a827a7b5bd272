"""What a sweep found, in plain sentences, each with its number and the figure that shows it.

What the table can't say, the sentence says so.
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
    """What effective rank adds to a prediction from size, compute and tokens."""
    what = "What effective rank adds to a linear prediction of in-domain loss from size, compute and tokens"
    found = results.associations
    of = found[(found["metric"] == _METRIC) & (found["target"] == _LOSS) & (found["method"] == "incremental R2")]
    if of.empty:
        return f"{what} can't be said: {lacking(results.final.rows, _METRIC) or lacking(results.final.rows, _LOSS)}."
    row = of.iloc[0]
    if math.isnan(row["estimate"]):
        return f"{what} can't be said: {row['note']}."
    text = f"{what}, on configurations that the fit hasn't seen, is {_with_interval(row, 'estimate')} of R2"
    return f"{text}, p = {row['p_value']:.2g} for its coefficient." if math.isfinite(row["p_value"]) else f"{text}."


def others(results: AnalysisResults) -> str:
    """How many of the other associations stand after correction, and the largest that settings don't explain."""
    tested = results.associations[results.associations["q_value"].notna()]
    if tested.empty:
        why = "there is no other pair" if results.associations.empty else "too few configurations or values"
        return f"No other association of geometry with a loss can be tested: {why}."
    found = tested[tested["q_value"] < SIGNIFICANT]
    text = f"Of {len(tested)} other associations of geometry with a loss, {len(found) or 'none'} "
    text += f"{'has' if len(found) == 1 else 'have'} q < {SIGNIFICANT:g} (p-values corrected together)"
    given = found[found["method"] == "partial factor"]
    if given.empty:
        return f"{text}; given the settings as factors, none." if len(found) else f"{text}."
    row = given.loc[given["estimate"].abs().idxmax()]
    text += f"; given the settings as factors, {counted(len(given), 'pair')}, the strongest {row['metric']} with "
    text += f"{row['target']}, {_with_interval(row, 'estimate')}"
    if math.isfinite(row["seed_sds"]):
        text += f", or {signed(row['seed_sds'])} standard deviations over seeds"
    return f"{text}."


def prediction(results: AnalysisResults) -> str:
    """The model that predicts best with geometry in, with and without it."""
    what = "Whether final geometry helps to predict the loss beyond the settings"
    return _gain(what, results.prediction, "model", ("settings", "settings and geometry"), "from settings by {}")


def early(results: AnalysisResults) -> str:
    """What early geometry adds to a prediction from settings and the loss so far."""
    what = "Whether early geometry helps to predict the final loss beyond settings and loss curve"
    early = results.early.assign(model=[f"{100 * share:.0f} %" for share in results.early["share"]])
    return _gain(what, early, "model", ("settings and loss", "all"), "from settings and loss curve at {} of training")


def _gain(what: str, found: pd.DataFrame, by: str, features: tuple[str, str], how: str) -> str:
    """The gain in R2 of `features[1]` over `features[0]` for the loss declared beforehand, where the latter is best."""
    found = found[found["target"] == _LOSS]
    there = found[found["r2"].notna()]
    both = set(there.loc[there["features"] == features[1], by])
    of = there[(there["features"] == features[0]) & there[by].isin(both)]
    if of.empty:
        notes = [note for note in found.loc[found["r2"].isna(), "note"] if note] or ["no finished run has it"]
        return f"{what} can't be said: {notes[0]}."
    best = of.loc[of["r2"].idxmax(), by]
    alike = there[there[by] == best].set_index("features")
    text = f"Predicting {_LOSS} {how.format(best)}, R2 out of fold is {number(alike.loc[features[0], 'r2'])}"
    text += f"; with geometry {_with_interval(alike.loc[features[1]], 'r2')}"
    if GAIN in alike.index:
        text += f", a gain of {_with_interval(alike.loc[GAIN], 'r2')}"
    return f"{text}."


def what_sets_it(results: AnalysisResults) -> str:
    """How much of effective rank's variance each setting sets."""
    of = results.variance[(results.variance["column"] == _METRIC) & results.variance["share"].notna()]
    if of.empty:
        of = results.variance[results.variance["column"] == _METRIC]
        why = lacking(results.final.rows, _METRIC) or "no setting differs between finished runs"
        notes = [note for note in of["note"] if note] or [why]
        return f"How much of effective rank's variance each setting sets can't be said: {notes[0]}."
    shares = of.sort_values("share", ascending=False)
    named = [
        f"{percent(row.share)} {_share_name(row.setting)}"
        + (f" ({percent(row.low)} to {percent(row.high)})" if math.isfinite(row.low) else "")
        for row in shares.itertuples()
        if row.share >= LEAST_SHARE
    ]
    named = named or [f"no setting sets {percent(LEAST_SHARE)} or more"]
    return f"Of the variance of effective rank over this grid, {listed(named)}."


def saturation(results: AnalysisResults) -> str:
    """How many runs ended above their best loss, and whether rank collapsed first."""
    runs, lead = results.saturation.runs, results.saturation.lead
    known = runs["degraded"].notna() if len(runs) else pd.Series(dtype=bool)
    if not known.any():
        return f"Which runs saturated can't be said: {results.saturation.note.split(';')[0] or 'no finished run'}."
    degraded = runs["degraded"].fillna(False).astype(bool)
    low = runs["low_rank"].fillna(False).astype(bool)
    text = (
        f"Of {counted(int(known.sum()), 'run')}, {int(degraded.sum()) or 'none'} ended over two standard errors above "
    )
    text += "the best loss"
    if degraded.any():
        text += f", {int((degraded & low).sum()) or 'none'} of these with effective rank below the median"
    if lead.n and math.isfinite(lead.estimate):
        text += f"; rank collapsed {describe(lead)} of training before the loss turned, in {counted(lead.n, 'run')}"
    return f"{text}."


def _share_name(setting: str) -> str:
    own = {"seed": "differs between seeds", "rest": "is left over"}
    return own.get(setting, f"goes with {setting_name(setting)}")


def _with_interval(row: pd.Series, value: str) -> str:
    """Of a row with low and high."""
    text = fine(row[value])
    return f"{text} (95 % interval {fine(row['low'])} to {fine(row['high'])})" if math.isfinite(row["low"]) else text
