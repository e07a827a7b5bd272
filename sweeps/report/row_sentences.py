"""What final rows say, in sentences: the pair declared beforehand, the strongest setting, what came after training.

Where the rows can't say it, the sentence gives the reason.
"""

import math

import numpy as np
import pandas as pd

from sweeps import analysis
from sweeps.analysis import PRIMARY_PAIR, Estimate, FinalRows
from sweeps.report.numbers import number, percent
from sweeps.report.words import as_level, below, change, counted, describe, listed, moved, setting_name, spanned
from sweeps.table.catalog import catalog_of

# Below this many configurations a sweep shows that the laboratory works, and nothing about language models.
FEW_CONFIGURATIONS = 30

_METRIC, _LOSS = PRIMARY_PAIR
_UNIGRAM = "unigram/in_domain"
_CLUSTER = "configuration"


def caveat(final: FinalRows) -> str:
    """Return how many runs and configurations the findings are based on, what was left out, and what that is worth."""
    runs, configurations = final.rows["run_id"].nunique(), final.rows["configuration"].nunique()
    text = f"{counted(runs, 'run')} of {counted(configurations, 'configuration')}; "
    text += f"{final.diverged or 'none'} diverged" + (" (left out)" if final.diverged else "")
    text += f", {final.unfinished} unfinished (left out). " if final.unfinished else ". "
    trunks = final.rows["trunk"].nunique() if "trunk" in final.rows else runs
    if trunks < runs:
        text += (
            f"They branch off {counted(trunks, 'trunk')}, so they aren't independent: intervals that don't pair them "
            "are too narrow. "
        )
    if configurations == 0:
        return text + "No run has a final row yet, so nothing can be said."
    if configurations < FEW_CONFIGURATIONS:
        return text + (
            f"With so few configurations (fewer than {FEW_CONFIGURATIONS}) this is a demonstration of the laboratory, "
            "not evidence about language models."
        )
    return text + (
        f"One pair was declared beforehand, {_METRIC} and {_LOSS}; everything else is exploratory, with p-values "
        "corrected for the number of comparisons (q)."
    )


def against_unigram(table: pd.DataFrame) -> str:
    """Return the final losses compared with a unigram model of the same tokens, also at the lowest weight decay."""
    rows = analysis.final_rows(table).rows
    losses, unigram = _values(rows, _LOSS), _values(rows, _UNIGRAM)
    if not np.isfinite(losses).any():
        return f"There is no in-domain validation loss: {lacking(rows, _LOSS)}."
    text = f"In-domain validation loss ended at {spanned(losses)} nats per token"
    if not np.isfinite(unigram).any():
        return f"{text}; there is no unigram loss to compare it with: {lacking(rows, _UNIGRAM)}."
    text += f"; a unigram model of the same tokens has {number(np.nanmean(unigram))}, so {below(unigram - losses)}"
    decay = _values(rows, "config.optimizer.weight_decay")
    least = decay == np.nanmin(decay) if np.isfinite(decay).any() else np.zeros(len(rows), dtype=bool)
    if least.any() and not least.all() and np.isfinite((unigram - losses)[least]).any():
        text += f" (at the lowest weight decay, {number(np.nanmin(decay))}, {below((unigram - losses)[least])})"
    return text + "."


def primary(rows: pd.DataFrame) -> str:
    """Return the rank correlation of the pair declared beforehand, raw and given the settings."""
    pair = "Effective rank of the unembedding against in-domain loss, the pair declared beforehand"
    why = lacking(rows, _METRIC) or lacking(rows, _LOSS)
    if why:
        return f"{pair}: {why}."
    raw = analysis.spearman(rows, _METRIC, _LOSS, _CLUSTER)
    if math.isnan(raw.estimate):
        return f"{pair}: no rank correlation can be computed, because {_why(rows, raw)}."
    text = f"{pair}: Spearman's rho is {describe(raw)}, n = {raw.n} runs"
    controls = analysis.controls_of(rows)
    if not controls:
        return f"{text}; no setting varies, so there is nothing to control for."
    rows = analysis.missing_as_level(rows, controls)
    given = [analysis.partial_spearman(rows, _METRIC, _LOSS, controls, form, _CLUSTER) for form in ("rank", "factor")]
    names = listed(setting_name(c) for c in controls)
    return f"{text}; given {names} it is {describe(given[0])} with these as ranks, {describe(given[1])} as factors."


def strongest_setting(rows: pd.DataFrame) -> str:
    """Return which setting explains most of the variance of effective rank and loss, and how these change with it."""
    controls = analysis.controls_of(rows)
    if not controls and len(rows):
        return f"No setting differs in {counted(len(rows), 'finished run')}, so no effect of a setting can be seen."
    why = lacking(rows, _METRIC) or lacking(rows, _LOSS)
    if why:
        return f"Which setting has the largest effect is unknown: {why}."
    shares = {c: (_explained(rows, c, _METRIC), _explained(rows, c, _LOSS)) for c in controls}
    shares = {c: s for c, s in shares.items() if not math.isnan(sum(s))}
    if not shares:
        return (
            "Which setting has the largest effect is unknown: that takes two runs at one value of it, and a rank and a "
            "loss that vary."
        )
    column = max(shares, key=lambda c: sum(shares[c]))
    of_rank, of_loss = shares[column]
    together = [c for c in controls if c != column and _same_division(rows, c, column)]
    name = setting_name(column) + (f" (varied together with {listed(map(setting_name, together))})" if together else "")

    means = (
        rows.assign(level=analysis.as_levels(rows[column]))
        .groupby("level")[[_METRIC, _LOSS, *_cumulative(rows)]]
        .mean()
    )
    first, last = means.index[0], means.index[-1]
    cumulative = (
        f" (cumulative {moved(means['weight_decay_dose'])})" if "weight_decay" in column and _cumulative(rows) else ""
    )
    return (
        f"The setting with the largest effect is {name}, which explains {percent(of_rank)} of the variance of "
        f"effective rank and {percent(of_loss)} of that of loss: from {as_level(first)} to {as_level(last)}"
        f"{cumulative}, mean effective rank went from {moved(means[_METRIC], ' %')} and mean in-domain loss from "
        f"{moved(means[_LOSS])}{_turn(means[_LOSS])}."
    )


def after_training(rows: pd.DataFrame) -> str:
    """Return what quantisation to the fewest bits and the worst fine-tuning did to the in-domain loss."""
    parts = [part for part in (_quantisation(rows), _finetuning(rows)) if part]
    if not parts:
        return "The effect of quantisation and fine-tuning is unknown: no finished run has such an evaluation."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _quantisation(rows: pd.DataFrame) -> str:
    """Return the effect of the fewest bits, or ""."""
    catalog = catalog_of(rows)
    quantised = catalog.select(kind="loss", after="quantize", scope="blocks", domain="in_domain")
    rises = {c: rise for c in quantised if np.isfinite(rise := _values(rows, c) - _values(rows, _LOSS)).any()}
    if not rises:
        return ""
    bits = min(catalog[c].of["bits"] for c in rises)
    words = {"round_to_nearest": "rounding weights", "gptq": "GPTQ"}
    of_fewest = sorted(
        (c for c in rises if catalog[c].of["bits"] == bits),
        key=lambda c: (catalog[c].of.get("group", 0), list(words).index(catalog[c].of["method"])),
    )
    changes = [
        f"{words[catalog[c].of['method']]} to {counted(bits, 'bit')}{_in_groups(rows, c)} changed in-domain loss by "
        f"{change(rises[c])}"
        for c in of_fewest
    ]
    in_columns = [c for c in of_fewest if "group" not in catalog[c].of] or of_fewest
    name = "that change" if len(of_fewest) == len(in_columns) else "the change without groups"
    return "; ".join(changes) + _against_rank(rows, rises[in_columns[-1]], name)


def _in_groups(rows: pd.DataFrame, column: str) -> str:
    """Say in which groups of inputs weights were quantised, and that these are smaller where a model is narrow."""
    size = catalog_of(rows)[column].of.get("group")
    if size is None:
        return ""
    smallest = _values(rows, f"{column.split('/')[0]}/smallest_group")
    adapted = np.isfinite(smallest).any() and np.nanmin(smallest) < size
    note = f" (adapted to each matrix's width; the smallest has {np.nanmin(smallest):g})" if adapted else ""
    return f" in groups of {size} inputs{note}"


def _finetuning(rows: pd.DataFrame) -> str:
    """Return the effect of the fine-tuning that forgets most, or ""."""
    catalog = catalog_of(rows)
    changes = catalog.select(kind="change", after="finetune", measure="forgetting")
    columns = [c for c in changes if catalog[c].of["rate"] != "best"]
    forgetting = {c: v for c in columns if np.isfinite(v := _values(rows, c)).any()}
    if not forgetting:
        return ""
    column = max(forgetting, key=lambda c: float(np.nanmean(forgetting[c])))
    of = catalog[column].of
    name = f"{str(of['target']).replace('_', ' ')} at learning rate {of['rate']:g}"
    text = f"fine-tuning on {name} changed in-domain loss by {change(forgetting[column])}"
    return text + _against_rank(rows, forgetting[column], "that change")


def _against_rank(rows: pd.DataFrame, effect: np.ndarray, name: str) -> str:
    if _METRIC not in rows.columns:
        return ""
    estimate = analysis.spearman(rows.assign(effect=effect), _METRIC, "effect", _CLUSTER)
    if math.isnan(estimate.estimate):
        return ""
    return f"; the rank correlation of {name} with effective rank is {describe(estimate)}, n = {estimate.n}"


def _explained(rows: pd.DataFrame, setting: str, column: str) -> float:
    """Return the share of the variance that is between a setting's levels, minus what as many random levels would have.

    That is epsilon squared, 1 - (1 - eta^2)(n - 1)/(n - levels), over configurations, or over runs where each level has
    one configuration; NaN where each has one run or nothing varies.
    """
    used = pd.DataFrame(
        {"level": analysis.as_levels(rows[setting]), "value": _values(rows, column), "of": rows[_CLUSTER]}
    ).dropna()
    means = used.groupby(["of", "level"], as_index=False)["value"].mean()  # seeds are no new evidence
    used = means if len(means) > means["level"].nunique() else used
    levels, total = used["level"].nunique(), float(((used["value"] - used["value"].mean()) ** 2).sum())
    if len(used) <= levels or total <= 0:
        return math.nan
    within = float(((used["value"] - used.groupby("level")["value"].transform("mean")) ** 2).sum())
    return max(0.0, 1 - within / total * (len(used) - 1) / (len(used) - levels))


def _same_division(rows: pd.DataFrame, one: str, other: str) -> bool:
    codes = [pd.factorize(analysis.as_levels(rows[c]))[0] for c in (one, other)]
    return bool((codes[0] == codes[1]).all())


def _cumulative(rows: pd.DataFrame) -> list[str]:
    return ["weight_decay_dose"] if "weight_decay_dose" in rows.columns else []


def _turn(means: pd.Series) -> str:
    """Return at which level the lowest or highest mean lies, if not at an end."""
    for word, at in (("lowest", means.idxmin()), ("highest", means.idxmax())):
        if at not in (means.index[0], means.index[-1]):
            return f", {word} at {as_level(at)} ({number(means[at])})"
    return ""


def lacking(rows: pd.DataFrame, column: str) -> str:
    """Return why a column can't be used, or "" if it can."""
    if rows.empty:
        return "no finished run"
    if column not in rows.columns:
        return f"the table has no {column}"
    if not np.isfinite(_values(rows, column)).any():
        return f"{column} is missing in every finished run"
    return ""


def _why(rows: pd.DataFrame, estimate: Estimate) -> str:
    if estimate.n < analysis.MIN_ROWS:
        verb = "has" if estimate.n == 1 else "have"
        return f"{counted(estimate.n, 'finished run')} {verb} both numbers, and at least {analysis.MIN_ROWS} are needed"
    metric_N, loss_N = _values(rows, _METRIC), _values(rows, _LOSS)
    metric_N = metric_N[np.isfinite(loss_N) & np.isfinite(metric_N)]
    return f"{_METRIC if np.ptp(metric_N) == 0 else _LOSS} is the same in every run that has both"


def _values(rows: pd.DataFrame, column: str) -> np.ndarray:
    if column not in rows.columns:
        return np.full(len(rows), np.nan)
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)
