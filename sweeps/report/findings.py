"""What a sweep found, in plain sentences computed from its table. What the table can't say, the sentence says so."""

import math
import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from sweeps import analysis
from sweeps.analysis import PRIMARY_PAIR, Estimate

# Below this many configurations a sweep shows that the laboratory works, and nothing about language models.
FEW_CONFIGURATIONS = 30

_METRIC, _LOSS = PRIMARY_PAIR
_UNIGRAM = "unigram/in_domain"
_CLUSTER = "configuration"


def findings(table: pd.DataFrame) -> list[str]:
    """Three sentences from the final rows of the runs that didn't diverge.

    (1) the pair declared beforehand, effective rank of the unembedding against in-domain loss, raw and given the
    settings; (2) the setting that acted most on the two; (3) what quantisation and fine-tuning did to the loss.
    """
    rows = analysis.final_rows(table).rows
    return [_primary(rows), _strongest_setting(rows), _after_training(rows)]


def caveat(table: pd.DataFrame) -> str:
    """How many runs and configurations the findings rest on, what was left out, and what that is worth."""
    final = analysis.final_rows(table)
    runs, configurations = final.rows["run_id"].nunique(), final.rows["configuration"].nunique()
    text = f"{_count(runs, 'run')} of {_count(configurations, 'configuration')}; "
    text += f"{final.diverged or 'none'} diverged" + (" and left out" if final.diverged else "")
    text += f", {final.unfinished} not finished and left out. " if final.unfinished else ". "
    if configurations == 0:
        return text + "No run has a final row yet, so nothing can be said."
    if configurations < FEW_CONFIGURATIONS:
        return text + (
            f"With so few configurations (fewer than {FEW_CONFIGURATIONS}) this is a demonstration of the laboratory, "
            "not evidence about language models."
        )
    return text + (
        f"One pair was declared beforehand, {_METRIC} and {_LOSS}; everything else is exploration, its p-values not "
        "corrected for the number of comparisons."
    )


def against_unigram(table: pd.DataFrame) -> str:
    """Where the runs ended beside a unigram model of the same tokens, also at the least weight decay."""
    rows = analysis.final_rows(table).rows
    losses, unigram = _values(rows, _LOSS), _values(rows, _UNIGRAM)
    if not np.isfinite(losses).any():
        return f"In-domain validation loss isn't there: {_lacking(rows, _LOSS)}."
    text = f"In-domain validation loss ended at {_range(losses)} nats a token"
    if not np.isfinite(unigram).any():
        return f"{text}; the loss of a unigram model to compare it with isn't there: {_lacking(rows, _UNIGRAM)}."
    text += f"; a unigram model of the same tokens has {_number(np.nanmean(unigram))}, so {_below(unigram - losses)}"
    decay = _values(rows, "config.optimizer.weight_decay")
    least = decay == np.nanmin(decay) if np.isfinite(decay).any() else np.zeros(len(rows), dtype=bool)
    if least.any() and not least.all() and np.isfinite((unigram - losses)[least]).any():
        text += f" (at the least weight decay, {_number(np.nanmin(decay))}, {_below((unigram - losses)[least])})"
    return text + "."


def describe(estimate: Estimate) -> str:
    """The number with its interval, as it stands in a sentence."""
    if math.isnan(estimate.estimate):
        return "can't be given"
    if math.isnan(estimate.low):
        return f"{_signed(estimate.estimate)} (no interval: too few configurations)"
    return f"{_signed(estimate.estimate)} (95 % interval {_signed(estimate.low)} to {_signed(estimate.high)})"


def setting_name(column: str) -> str:
    """`config.optimizer.weight_decay` in words."""
    return column.rsplit(".", 1)[-1].replace("_", " ")


def _primary(rows: pd.DataFrame) -> str:
    pair = "Effective rank of the unembedding against in-domain loss, the pair declared beforehand"
    lacking = _lacking(rows, _METRIC) or _lacking(rows, _LOSS)
    if lacking:
        return f"{pair}: {lacking}."
    raw = analysis.spearman(rows, _METRIC, _LOSS, _CLUSTER)
    if math.isnan(raw.estimate):
        return f"{pair}: no rank correlation can be given, {_why(rows, raw)}."
    text = f"{pair}: Spearman's rho is {describe(raw)}, n = {raw.n} runs"
    controls = analysis.controls_of(rows)
    if not controls:
        return f"{text}; no setting varies, so there is nothing to control for."
    given = [analysis.partial_spearman(rows, _METRIC, _LOSS, controls, form, _CLUSTER) for form in ("rank", "factor")]
    names = _list(setting_name(c) for c in controls)
    return f"{text}; given {names} it is {describe(given[0])} with these as ranks, {describe(given[1])} as factors."


def _strongest_setting(rows: pd.DataFrame) -> str:
    """The setting whose levels explain most of the variance of effective rank and loss, and how they moved."""
    controls = analysis.controls_of(rows)
    if not controls and len(rows):
        return f"No setting differs in {_count(len(rows), 'finished run')}, so none can be said to act."
    lacking = _lacking(rows, _METRIC) or _lacking(rows, _LOSS)
    if lacking:
        return f"Which setting acted most can't be said: {lacking}."
    shares = {c: (_explained(rows, c, _METRIC), _explained(rows, c, _LOSS)) for c in controls}
    shares = {c: s for c, s in shares.items() if not math.isnan(sum(s))}
    if not shares:
        return "Which setting acted most can't be said: it takes two runs at one value of it, and a number that varies."
    column = max(shares, key=lambda c: sum(shares[c]))
    of_rank, of_loss = shares[column]
    together = [c for c in controls if c != column and _same_division(rows, c, column)]
    name = setting_name(column) + (f" (with {_list(map(setting_name, together))}, set together)" if together else "")

    means = rows.assign(level=analysis.as_levels(rows[column])).groupby("level")[[_METRIC, _LOSS, *_dose(rows)]].mean()
    first, last = means.index[0], means.index[-1]
    dose = f" (dose {_moved(means['weight_decay_dose'])})" if "weight_decay" in column and _dose(rows) else ""
    return (
        f"The setting that acted most is {name}, with {_percent(of_rank)} of the variance of effective rank and "
        f"{_percent(of_loss)} of that of loss: from {_level(first)} to {_level(last)}{dose}, mean effective rank went "
        f"from {_moved(means[_METRIC], ' %')} and mean in-domain loss from {_moved(means[_LOSS])}{_turn(means[_LOSS])}."
    )


def _after_training(rows: pd.DataFrame) -> str:
    parts = [part for part in (_quantisation(rows), _finetuning(rows)) if part]
    if not parts:
        return "What quantisation and fine-tuning do can't be said: no such evaluation is there for any finished run."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _quantisation(rows: pd.DataFrame) -> str:
    """Of the fewest bits."""
    found = [m for c in rows.columns if (m := re.fullmatch(r"(round_to_nearest|gptq)_(\d+)/in_domain", c))]
    rises = {(int(m[2]), m[1]): _values(rows, m[0]) - _values(rows, _LOSS) for m in found}
    rises = {key: rise for key, rise in rises.items() if np.isfinite(rise).any()}
    if not rises:
        return ""
    bits = min(b for b, _ in rises)
    words = {"round_to_nearest": "rounding weights", "gptq": "GPTQ"}
    of_fewest = {method: rises[bits, method] for method in words if (bits, method) in rises}
    changes = [
        f"{words[m]} to {_count(bits, 'bit')} changed in-domain loss by {_change(r)}" for m, r in of_fewest.items()
    ]
    return "; ".join(changes) + _against_rank(rows, list(of_fewest.values())[-1], "that change")


def _finetuning(rows: pd.DataFrame) -> str:
    """The fine-tuning that forgets most."""
    forgetting = {c: _values(rows, c) for c in rows.columns if re.fullmatch(r"finetune_[^/]+_lr[^/]+/forgetting", c)}
    forgetting = {c: v for c, v in forgetting.items() if np.isfinite(v).any()}
    if not forgetting:
        return ""
    column = max(forgetting, key=lambda c: float(np.nanmean(forgetting[c])))
    name = column.split("/")[0].removeprefix("finetune_").replace("_lr", " at learning rate ").replace("_", " ")
    text = f"fine-tuning on {name} changed in-domain loss by {_change(forgetting[column])}"
    return text + _against_rank(rows, forgetting[column], "that change")


def _against_rank(rows: pd.DataFrame, effect: np.ndarray, name: str) -> str:
    if _METRIC not in rows.columns:
        return ""
    estimate = analysis.spearman(rows.assign(effect=effect), _METRIC, "effect", _CLUSTER)
    if math.isnan(estimate.estimate):
        return ""
    return f", and {name} has rho {describe(estimate)} with effective rank, n = {estimate.n}"


def _explained(rows: pd.DataFrame, setting: str, column: str) -> float:
    """Share of a column's variance between the levels of a setting, less what as many random levels would take.

    That is epsilon squared, 1 - (1 - eta^2)(n - 1)/(n - levels); NaN where each level has one run or nothing varies.
    """
    used = pd.DataFrame({"level": analysis.as_levels(rows[setting]), "value": _values(rows, column)}).dropna()
    levels, total = used["level"].nunique(), float(((used["value"] - used["value"].mean()) ** 2).sum())
    if len(used) <= levels or total <= 0:
        return math.nan
    within = float(((used["value"] - used.groupby("level")["value"].transform("mean")) ** 2).sum())
    return max(0.0, 1 - within / total * (len(used) - 1) / (len(used) - levels))


def _same_division(rows: pd.DataFrame, one: str, other: str) -> bool:
    codes = [pd.factorize(analysis.as_levels(rows[c]))[0] for c in (one, other)]
    return bool((codes[0] == codes[1]).all())


def _dose(rows: pd.DataFrame) -> list[str]:
    return ["weight_decay_dose"] if "weight_decay_dose" in rows.columns else []


def _turn(means: pd.Series) -> str:
    """Says where the lowest or highest mean lies if not at an end."""
    for word, at in (("lowest", means.idxmin()), ("highest", means.idxmax())):
        if at not in (means.index[0], means.index[-1]):
            return f", {word} at {_level(at)} ({_number(means[at])})"
    return ""


def _lacking(rows: pd.DataFrame, column: str) -> str:
    """Why a column can't be used, or "" where it can."""
    if rows.empty:
        return "no finished run"
    if column not in rows.columns:
        return f"the table has no {column}"
    if not np.isfinite(_values(rows, column)).any():
        return f"{column} is missing in every finished run"
    return ""


def _why(rows: pd.DataFrame, estimate: Estimate) -> str:
    if estimate.n < analysis.MIN_ROWS:
        return f"{_count(estimate.n, 'finished run')} with both numbers, of at least {analysis.MIN_ROWS} needed"
    constant = _METRIC if np.nanmin(_values(rows, _METRIC)) == np.nanmax(_values(rows, _METRIC)) else _LOSS
    return f"{constant} is the same in every run"


def _values(rows: pd.DataFrame, column: str) -> np.ndarray:
    if column not in rows.columns:
        return np.full(len(rows), np.nan)
    values = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


# Words.


def _number(x: float) -> str:
    """Two decimals; three significant digits where that would show too little or too much."""
    text = f"{x:.2f}" if 0.1 <= abs(x) < 1000 or x == 0 else f"{x:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _gained(x: float) -> str:
    """The number with its sign, also where it is a plus."""
    return ("+" if x >= 0 else "") + _number(x)


def _signed(x: float) -> str:
    """Two decimals, with a minus sign that is typeset as one."""
    return f"{x:.2f}".replace("-", "\N{MINUS SIGN}")


def _level(x: object) -> str:
    return f"{x:g}" if isinstance(x, float) else str(x)


def _percent(x: float) -> str:
    return f"{100 * x:.0f} %"


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def _range(x: np.ndarray) -> str:
    low, high = _number(np.nanmin(x)), _number(np.nanmax(x))
    return low if low == high else f"{low} to {high}"


def _below(gap: np.ndarray) -> str:
    if np.nanmax(gap) < 0:
        return f"the runs lie {_range(-gap)} above it"
    if np.nanmin(gap) < 0:
        return f"the runs lie from {_number(-np.nanmin(gap))} above to {_number(np.nanmax(gap))} below it"
    return f"the runs lie {_range(gap)} below it"


def _change(x: np.ndarray) -> str:
    low, high, mean = (_gained(f(x)) for f in (np.nanmin, np.nanmax, np.nanmean))
    text = f"{mean} nats"
    return text if low == high else f"{text} on average ({low} to {high})"


def _moved(means: pd.Series, unit: str = "") -> str:
    return f"{_number(means.iloc[0])} to {_number(means.iloc[-1])}{unit}"


def _list(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
