"""What the end of training does: each outcome by decay, sharpness-aware minimisation, averaging, tokens and rate.

Computed for any sweep with branches that end at equal tokens in several ways (anneal.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from sweeps.analysis.contrast import LEAST_SEEDS, contrast
from sweeps.analysis.estimate import Estimate
from sweeps.analysis.pairing import as_level
from sweeps.report.names import any_name, loss_name
from sweeps.report.numbers import change
from sweeps.table.columns import controls_of, final_rows, performance_columns

CONSTANT = "constant rate"
SAM = " with SAM"
# Kinds of ends that are compared with a constant rate.
DECAY, AVERAGING = "decay", "averaging"
RATE, TOKENS, SEED = "config.optimizer.learning_rate", "tokens", "config.init_seed"
_NEEDED = (
    "trunk", "step", TOKENS, RATE, SEED, "config.branch.parent", "config.branch.average_last", "config.branch.ema",
    "config.branch.start_step", "config.optimizer.schedule", "config.optimizer.decay_fraction",
    "config.optimizer.sam_rho",
)  # fmt: skip
# What the factors are made of; pairs agree in every other setting, which the column OTHER holds.
_FACTORS = (
    RATE, "config.tokens", "config.optimizer.schedule", "config.optimizer.decay_fraction",
    "config.optimizer.decay_shape", "config.optimizer.sam_rho",
)  # fmt: skip
OTHER = "other settings"
RANK = "unembedding_gauge_fixed/effective_rank_percent"
# Besides performance.
_OTHERS = ("curvature/critical_sharpness", "curvature/trace", "unembedding/effective_rank_percent", RANK)


class Change(NamedTuple):
    """The change of an outcome by one factor.

    Attributes:
      factor: "decay", "sharpness-aware minimisation", "averaging", "tokens" or "learning rate". first, second: the
        levels compared. estimate: second minus first, n the number of seeds. base: the outcome's mean at the first.
    """

    outcome: str
    factor: str
    first: str
    second: str
    estimate: Estimate
    base: float


class End(NamedTuple):
    """How the training of a run ended.

    Attributes:
      end: in words. kind: DECAY, AVERAGING, or "" for an end that isn't compared with a constant rate.
      plain: in words, the same end without sharpness-aware minimisation.
    """

    end: str
    kind: str
    plain: str


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last rows of the finished branches, and of trunks that no branch repeats.

    They have the fields of End as columns, and OTHER, the values of all settings that differ and are no factor. A trunk
    is one of the ends if its rate is constant.
    """
    rows = final_rows(table).rows
    parents = rows["config.branch.parent"].fillna("").astype(str)  # missing for imported runs
    branches, roots = rows[parents != ""], rows[parents == ""]
    branches = _with_end(branches, [_end(row) for row in branches[list(_NEEDED)].to_dict("records")])
    roots = roots[roots["run_id"].isin(branches["trunk"]) & (roots["config.optimizer.schedule"] == "wsd")]
    roots = roots[roots["config.optimizer.decay_fraction"] == 0]
    roots = _with_end(roots, [End(CONSTANT, "", CONSTANT)] * len(roots))
    repeated = set(map(tuple, branches.loc[branches["end"] == CONSTANT, ["trunk", TOKENS]].to_numpy().tolist()))
    single = [place not in repeated for place in zip(roots["trunk"], roots[TOKENS], strict=True)]
    # pd.concat leaves a block of memory per column, and pandas warns of the next column; a copy joins them.
    found = pd.concat([branches, roots[single]], ignore_index=True).copy()
    others = [c for c in controls_of(found) if c not in _FACTORS and not c.startswith("config.branch.")]
    levels = [list(map(as_level, found[c])) for c in others]
    return found.assign(**{OTHER: list(map(str, zip(*levels, strict=True))) if levels else ""})


def _with_end(rows: pd.DataFrame, found: Sequence[End]) -> pd.DataFrame:
    return rows.assign(**pd.DataFrame(found, rows.index, columns=End._fields, dtype=object))


def _end(row: Mapping[str, Any]) -> End:
    share = row["config.optimizer.decay_fraction"] if row["config.optimizer.schedule"] == "wsd" else None
    if share is None:
        plain, kind = f"{row['config.optimizer.schedule']} schedule", ""
    else:
        plain = f"decay over the last {share:.0%}".replace("%", " %") if share else CONSTANT
        kind = DECAY if share else ""
    trained = plain + (SAM if row["config.optimizer.sam_rho"] else "")
    kept = row["config.branch.average_last"]
    if not row["config.branch.ema"] and kept <= 1:
        return End(trained, kind, plain)
    average = "moving average" if row["config.branch.ema"] else f"mean of {kept:.0f} checkpoints"
    if row["step"] == row["config.branch.start_step"]:
        return End(average, AVERAGING, average)
    return End(f"{average}, then {trained}", "", f"{average}, then {plain}")


def has_branches(table: pd.DataFrame) -> bool:
    """Return whether a table has branches; older ones lack the columns."""
    return set(_NEEDED) <= set(table.columns)


def has_ends(table: pd.DataFrame) -> bool:
    """Return whether a table has branches of trunks with a constant rate, and some that end in another way."""
    return has_branches(table) and has_several(ends(table))


def has_several(rows: pd.DataFrame) -> bool:
    """Return whether rows of `ends` hold a constant rate and another end."""
    found = set(rows["end"])
    return CONSTANT in found and len(found) > 1


def outcomes(table: pd.DataFrame) -> list[str]:
    """Return the columns that the study looks at: performance, relative rises by quantisation, sharpness and rank."""
    rises = [c for c in table.columns if c.endswith("/relative_rise/in_domain") or c.startswith("noise_relative")]
    rises = [c for c in rises if c.endswith("rise/in_domain")]
    columns = dict.fromkeys([*performance_columns(table), *rises, *_OTHERS])
    return [c for c in columns if c in table.columns and table[c].notna().any()]


def changes(
    table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None
) -> tuple[Change, ...]:
    """Return the change of every outcome by every factor; none for a sweep without such branches."""
    if not has_branches(table) or not has_several(rows := ends(table)):
        return ()
    return tuple(one for outcome in outcomes(table) for one in _changes_of(rows, outcome) if one.estimate.n)


def _changes_of(rows: pd.DataFrame, outcome: str) -> Iterator[Change]:
    def compared(name: str, factor: str, first: object, second: object, within: list[str]) -> Change:
        estimate = contrast(rows, outcome, factor, (first, second), [*within, OTHER], SEED)
        base = float(rows.loc[rows[factor] == first, outcome].mean())
        return Change(outcome, name, _level(first), _level(second), estimate, base)

    found = rows[list(End._fields)].drop_duplicates().sort_values("end")
    for end, kind, plain in found.itertuples(index=False):
        if plain != end:
            yield compared("sharpness-aware minimisation", "end", plain, end, [TOKENS, RATE])
        elif kind:
            yield compared(kind, "end", CONSTANT, end, [TOKENS, RATE])
    for name, factor, other in (("tokens", TOKENS, RATE), ("learning rate", RATE, TOKENS)):
        levels = sorted(set(rows[factor]))
        if len(levels) > 1:
            yield compared(name, factor, levels[0], levels[-1], ["end", other])


def _level(level: object) -> str:
    return f"{level:,.6g}" if isinstance(level, float | int) else str(level)


def sentences(found: tuple[Change, ...]) -> list[str]:
    """Return what decay, tokens and rate did to quantisation at the fewest bits, and to forgetting, in words."""
    quantised = sorted(one.outcome for one in found if re.fullmatch(r"gptq_\d+/rise/in_domain", one.outcome))
    forgotten = sorted(one.outcome for one in found if one.outcome.endswith("/forgetting"))
    lines = []
    for outcome in [*quantised[:1], *forgotten[:1]]:
        of = [one for one in found if one.outcome == outcome and one.factor in _SAID]
        if not of:
            continue
        parts = [_in_words(one) for one in of]
        seeds = max(one.estimate.n for one in of)
        intervals = "95 % intervals over" if seeds >= LEAST_SEEDS else "no intervals, for lack of seeds:"
        lines.append(f"{outcome_name(outcome)}: {'; '.join(parts)} ({intervals} {seeds} seeds).")
    return lines


_SAID = ("decay", "tokens", "learning rate")


def _in_words(one: Change) -> str:
    of = one.estimate
    what = one.second if one.factor == "decay" else f"{one.factor} from {one.first} to {one.second}"
    ends_of = f" ({change(of.low)} to {change(of.high)})" if of.n >= LEAST_SEEDS else ""
    return f"{what} changed it by {change(of.estimate)}{ends_of}"


def outcome_name(column: str) -> str:
    """Return an outcome in words."""
    return any_name(column, []) if column.startswith("unembedding") else loss_name(column)
