"""Hazards of saturation: how much sooner the rank collapses, or the loss turns, at one level of a factor."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from sweeps.analysis.estimate import Estimate, NotEstimableError, nothing
from sweeps.analysis.hazard import hazard_ratio
from sweeps.analysis.pairing import as_level
from sweeps.report.words import setting_name
from sweeps.table.columns import controls_of, final_rows

COLLAPSE, BEST, SATURATED = "saturation/collapse_step", "saturation/best_step", "saturation/saturated"
FACTORS = (
    "config.model.parallel", "config.model.compute_dtype", "config.optimizer.final_fraction",
    "config.optimizer.weight_decay", "config.model.d_model",
)  # fmt: skip
SEED = "config.init_seed"
# Settings that follow from the width.
_WIDTH = ("config.model.n_heads", "config.model.d_ff")
_LEAST_FACTORS = 2
EVENTS = {"collapse": "collapse of the rank", "turn": "turn of the loss"}


class Hazard(NamedTuple):
    """The hazard of an event at the second level of a factor over that at the first.

    Attributes:
      event: a key of EVENTS. factor: the column. ratio: with its interval, n the number of seeds; NaN where `note`
        says why. events: in runs of either level. shares: of runs with the event, at each level.
    """

    event: str
    factor: str
    first: str
    second: str
    ratio: Estimate
    events: int
    shares: tuple[float, float]
    note: str


def events(table: pd.DataFrame) -> pd.DataFrame:
    """Return the last rows of the finished runs, with the step of each event, missing where there is none.

    Columns `collapse` and `turn`. The loss turns at its best step, if it ends more than two standard errors above.
    """
    rows = final_rows(table).rows
    rows = rows[rows[SATURATED].notna()]
    return rows.assign(collapse=rows[COLLAPSE], turn=rows[BEST].where(rows[SATURATED] == 1))


def applies(table: pd.DataFrame) -> bool:
    """Return whether a table has runs of which at least two of FACTORS differ, and nothing else."""
    if not {COLLAPSE, BEST, SATURATED, SEED, *FACTORS} <= set(table.columns):
        return False
    varied = set(controls_of(events(table))) - set(_WIDTH)
    return len(varied) >= _LEAST_FACTORS and varied <= set(FACTORS)


def hazards(
    table: pd.DataFrame, curves: Mapping[str, pd.DataFrame], courses: pd.DataFrame | None
) -> tuple[Hazard, ...]:
    """Return the hazard ratios of both events by every factor; none for a sweep in which other things differ."""
    if not applies(table):
        return ()
    rows = events(table)
    varied = [factor for factor in FACTORS if rows[factor].nunique() > 1]
    return tuple(one for event in EVENTS for factor in varied for one in _by_factor(rows, event, factor, varied))


def _by_factor(rows: pd.DataFrame, event: str, factor: str, varied: list[str]) -> Iterator[Hazard]:
    """Yield the comparison of each level with the first; runs are compared that agree in all other factors."""
    others = [other for other in varied if other != factor]
    stratum = pd.Series([str([as_level(row[o]) for o in others]) for _, row in rows.iterrows()], rows.index)
    first, *levels = sorted(rows[factor].unique())
    for level in levels:
        of = rows[factor].isin([first, level])
        kept, second = rows[of], (rows[factor] == level)[of]
        happened = kept[event].notna()
        time = kept[event].where(happened, kept["step"])
        shares = float(happened[~second].mean()), float(happened[second].mean())
        ratio, note = nothing(kept[SEED].nunique()), ""
        try:
            ratio = hazard_ratio(*(x.to_numpy() for x in (time, happened, second, stratum[of], kept[SEED])))
            if not np.isfinite(ratio.low):
                note = "too few seeds have runs of both levels with events for an interval"
        except NotEstimableError as error:
            note = str(error)
        yield Hazard(event, factor, str(first), str(level), ratio, int(happened.sum()), shares, note)


def sentences(found: tuple[Hazard, ...]) -> list[str]:
    """Return, for each event, how many comparisons show a hazard that surely differs, and which is largest."""
    lines = []
    for event, name in EVENTS.items():
        of = [one for one in found if one.event == event and np.isfinite(one.ratio.low)]
        if not of:
            continue
        sure = [one for one in of if one.ratio.low > 1 or one.ratio.high < 1]
        text = f"The hazard of a {name} surely differs in {len(sure)} of {len(of)} comparisons"
        if sure:
            largest = max(sure, key=lambda one: abs(np.log(one.ratio.estimate)))
            text += (
                f", most by {setting_name(largest.factor)}: {largest.ratio.estimate:.2g} times as high at "
                f"{largest.second} as at {largest.first} ({largest.ratio.low:.2g} to {largest.ratio.high:.2g})"
            )
        lines.append(f"{text}.")
    return lines
