"""Compare two sweeps: the difference of every metric and loss over runs paired by configuration.

Letters: N final rows, P pairs, S choices of signs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sweeps.analysis.encode import finite_numbers
from sweeps.analysis.estimate import join_notes
from sweeps.analysis.pairing import Pairing, as_level, pair
from sweeps.analysis.ranks import q_values
from sweeps.analysis.seed_noise import seed_deviations
from sweeps.table.catalog import heads
from sweeps.table.columns import PRIMARY_PAIR, geometry_columns, loss_columns

# With up to EXACT_PAIRS pairs the permutation test takes every choice of signs, with more it draws SAMPLED at random.
EXACT_PAIRS = 12
SAMPLED = 9999

_NUMBERS = (
    "first", "second", "difference", "low", "high", "p_value", "q_value", "seed_sds", "seed_deviation", "spread",
)  # fmt: skip
COLUMNS = ("column", "kind", "unit", "pairs", *_NUMBERS, "note")

_CONFIGURATION = "configuration"
_SEEDS = ("config.init_seed", "config.data_seed")


def compare(
    first: pd.DataFrame,
    second: pd.DataFrame,
    pair_by: Sequence[str] | None = None,
    unit_of: Callable[[str], str] = lambda column: "",
) -> pd.DataFrame:
    """Return the difference of every metric and loss between two sweeps, over runs paired by configuration.

    The rows are the final rows of runs that didn't diverge, paired as in `pairing.pair`. The pairs are the sample, with
    one difference each [ours]: over the seeds that both sweeps have or, without common seeds, between the means over
    seeds. The interval is Student's t over the pairs, which is valid for normal differences from 2 pairs on, whereas a
    bootstrap of so few pairs is too narrow. p is that of the paired permutation test that flips the signs of
    differences: all 2^n choices for up to 12 pairs, 9,999 random ones with a fixed seed for more. It assumes a
    symmetric distribution, not a normal one, and is at least 2 / 2^n.

    Args:
      first, second: tables of the two sweeps, one row per (run, checkpoint).
      pair_by: columns that have to agree in a pair, instead of those that `pair` finds; others are averaged over.
      unit_of: function that returns the unit of a column by its name, "" for none.

    Returns:
      One row per column: first the pair declared beforehand, then losses, then geometry. column, kind ("loss" or
      "metric"), unit ("" without one), pairs (number of pairs with a value in both sweeps), first and second (means
      over these pairs), difference (second minus first), low and high (95 %), p_value, q_value (Benjamini-Hochberg over
      all rows), seed_sds (the difference in standard deviations over seeds), seed_deviation (that standard deviation,
      pooled over the configurations of both), spread (standard deviation of the first sweep's values over the pairs),
      note (why a value is missing). A column that only one sweep has is a row without numbers.

    Raises:
      AnalysisError: a sweep without a finished run, no pair, or a column that holds something other than numbers.
      UnknownColumnError: a name in pair_by that a table lacks.
    """
    return differences(pair(first, second, pair_by), unit_of)


def differences(pairing: Pairing, unit_of: Callable[[str], str] = lambda column: "") -> pd.DataFrame:
    """Return the table of `compare` for sweeps that are already paired."""
    first_rows, second_rows = pairing.first.rows, pairing.second.rows
    columns = heads(first_rows, second_rows)
    kinds = dict.fromkeys(loss_columns(columns), "loss") | dict.fromkeys(geometry_columns(columns), "metric")
    both = [c for c in kinds if c in first_rows.columns and c in second_rows.columns]
    first_PC, second_PC = _means(pairing, both)
    noise = seed_deviations(_by_sweep(pairing, both), both)
    rows = []
    for column, kind in sorted(kinds.items(), key=lambda item: item[0] not in PRIMARY_PAIR):
        row: dict[str, Any] = {"column": column, "kind": kind, "unit": unit_of(column)}
        if column in both:
            row |= _difference(first_PC[column].to_numpy(), second_PC[column].to_numpy(), float(noise[column]))
        else:
            which = "first" if column in first_rows.columns else "second"
            row |= {"pairs": 0, "note": f"only the {which} sweep has this column"}
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table = table.astype(dict.fromkeys(_NUMBERS, float) | {"pairs": int})
    return table.assign(q_value=q_values(table["p_value"].to_numpy()))


def _means(pairing: Pairing, columns: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns' means in each pair for the first and the second sweep, over common seeds if there are any.

    A seed without a value in one sweep is left out of both. A mean over configurations needs a value in each of them.
    """
    sides = (pairing.first.rows, pairing.first_N), (pairing.second.rows, pairing.second_N)
    names = [c for c in _SEEDS if all(c in rows.columns for rows, _ in sides)]
    labels = [_labels(rows, pair_N, names) for rows, pair_N in sides]
    single = [part[part.groupby("pair")["configuration"].transform("nunique") == 1] for part in labels]
    shared = set(single[0][["pair", "seed"]].merge(single[1][["pair", "seed"]]).itertuples(index=False, name=None))
    seeded = {number for number, _ in shared}
    means = []
    for (rows, _), part in zip(sides, labels, strict=True):
        used_N = [p not in seeded or (p, seed) in shared for p, seed in zip(part["pair"], part["seed"], strict=True)]
        part = part[used_N].assign(seed=lambda used: used["seed"].where(used["pair"].isin(seeded), ""))
        values = finite_numbers(rows, columns).loc[part.index]
        by_configuration = values.groupby([part["pair"], part["seed"], part["configuration"]]).mean()
        by_seed = by_configuration.groupby(level=["pair", "seed"])
        means.append(by_seed.mean().where(by_seed.count().eq(by_seed.size(), axis=0)))
    lacking = means[0].isna() | means[1].isna()
    first_PC, second_PC = (part.mask(lacking).groupby(level="pair").mean() for part in means)
    return first_PC, second_PC


def _labels(rows: pd.DataFrame, pair_N: np.ndarray, seeds: list[str]) -> pd.DataFrame:
    """Return pair, seed and configuration of the rows that are in a pair."""
    seed = [str([as_level(value) for value in values]) for values in zip(*(rows[c] for c in seeds), strict=True)]
    labels = {"pair": pair_N, "seed": seed or "", _CONFIGURATION: rows[_CONFIGURATION].map(str)}
    return pd.DataFrame(labels, rows.index)[pair_N >= 0]


def _by_sweep(pairing: Pairing, columns: list[str]) -> pd.DataFrame:
    """Return the final rows of both sweeps, with the configurations of each renamed so that none is in both."""
    finals = {"first": pairing.first.rows, "second": pairing.second.rows}
    named = [r[columns].assign(configuration=f"{s} " + r[_CONFIGURATION].map(str)) for s, r in finals.items()]
    return pd.concat(named, ignore_index=True)


def _difference(first_P: np.ndarray, second_P: np.ndarray, noise: float) -> dict[str, Any]:
    """Return one row's numbers, over the pairs that have both values. `noise`: the standard deviation over seeds."""
    known_P = np.isfinite(first_P) & np.isfinite(second_P)
    first_P, second_P = first_P[known_P], second_P[known_P]
    n = len(first_P)
    if n == 0:
        return {"pairs": 0, "seed_deviation": noise, "note": "no pair has a value in both sweeps"}
    difference_P, notes = second_P - first_P, []
    mean = float(difference_P.mean())
    row = {"pairs": n, "first": first_P.mean(), "second": second_P.mean(), "difference": mean, "seed_deviation": noise}
    if n == 1:
        notes.append("1 pair gives no interval")
    else:
        half_width = stats.t.ppf(0.975, n - 1) * stats.sem(difference_P)
        row |= {"low": mean - half_width, "high": mean + half_width, "p_value": _sign_flip(difference_P)}
        row |= {"spread": first_P.std(ddof=1)}
        if 2 / 2**n > 0.05:
            notes.append(f"{n} pairs allow no p-value under {2 / 2**n:.3g}")
    if noise > 0:
        row |= {"seed_sds": mean / noise}
    else:
        notes.append("all replicates are equal" if noise == 0 else "no configuration has replicates")
    return row | {"note": join_notes(*notes)}


def _sign_flip(difference_P: np.ndarray) -> float:
    """Return the two-sided p of a mean difference by the permutation test that flips signs."""
    sums_S = np.abs(_signs(len(difference_P)) @ difference_P)
    extreme = int((sums_S >= abs(difference_P.sum()) * (1 - 1e-9)).sum())
    if len(difference_P) <= EXACT_PAIRS:
        return extreme / len(sums_S)
    return (extreme + 1) / (len(sums_S) + 1)


@functools.lru_cache(maxsize=8)
def _signs(n_pairs: int) -> np.ndarray:
    """Return choices of signs, 1 and -1: [S, P]."""
    if n_pairs <= EXACT_PAIRS:
        return ((np.arange(2**n_pairs)[:, None] >> np.arange(n_pairs)) & 1) * 2.0 - 1
    return np.random.default_rng(0).integers(0, 2, (SAMPLED, n_pairs)) * 2.0 - 1
