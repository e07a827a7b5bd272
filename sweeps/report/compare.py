"""Two or more sweeps side by side: a page and a table of their differences, each later sweep against the first."""

import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from etils import epath

from olmo_jax import files
from olmo_jax.config import ConfigError
from olmo_jax.storage.paths import local
from sweeps.analysis.comparison import COLUMNS, differences
from sweeps.analysis.pairing import Pairing, pair
from sweeps.report.cells import cell
from sweeps.report.item import Cell, Figure, Table
from sweeps.report.numbers import change, format_value
from sweeps.report.words import counted
from sweeps.table.catalog import describe
from sweeps.table.columns import AnalysisError, UnknownColumnError
from sweeps.table.table import TABLE, read_table

PAGE, CSV = "index.html", "comparison.csv"
# A difference of more than FAR times the median one lies off the figure's axis, where the others would coincide.
FAR = 10

_SHOWN = tuple(c for c in COLUMNS if c not in ("seed_deviation", "spread"))
_HEADS = {"p_value": "p", "q_value": "q", "seed_sds": "in SD over seeds", "low": "95 % from", "high": "to"}


class Comparison(NamedTuple):
    """One sweep against the first: their names, the paired runs, and one row per metric or loss (`differences`)."""

    first: str
    second: str
    pairing: Pairing
    rows: pd.DataFrame


def write_comparison(
    workdirs: Sequence[str], to: epath.PathLike, pair_by: Sequence[str] | None = None, command: str = ""
) -> list[str]:
    """Write `to`/index.html and `to`/comparison.csv, each atomically.

    Args:
      workdirs: folders of sweeps that have been reported, all compared with the first.
      to: a folder, created if it doesn't exist.
      pair_by: settings to pair by, instead of those that `sweeps.analysis.pairing.pair` finds.
      command: shown on the page.

    Returns:
      Lines to print: for each comparison the number of pairs, what differs and the largest difference in a loss; then
      the path of the page.

    Raises:
      ConfigError: fewer than two folders, one folder twice, or a name in pair_by that a table lacks. AnalysisError: a
      folder without results.parquet, a sweep without a finished run, or sweeps without a pair.
    """
    places = [os.path.realpath(local(workdir)) for workdir in workdirs]
    if len(places) < 2:
        raise ConfigError(f"{workdirs[0]} is the only folder; name two or more folders of sweeps to compare")
    for place, workdir in zip(places, workdirs, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{workdir} is named twice; name folders of different sweeps")
    tables = [read_table(place) for place in places]
    names = _names(places)
    comparisons = [
        _compared(names[0], name, tables[0], table, pair_by) for name, table in zip(names[1:], tables[1:], strict=True)
    ]
    facts = {"command": command} | {f"{TABLE} of {n}": _digest(p) for n, p in zip(names, places, strict=True)}
    folder = epath.Path(local(to))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_whole(folder / CSV, _as_csv(comparisons), durable=False)
    path = _write_page(folder / PAGE, comparisons, facts)
    return [line for one in comparisons for line in _lines(one)] + [f"Comparison: {path}"]


def _compared(
    first: str, second: str, of_first: pd.DataFrame, of_second: pd.DataFrame, pair_by: Sequence[str] | None
) -> Comparison:
    try:
        pairing = pair(of_first, of_second, pair_by)
        return Comparison(first, second, pairing, differences(pairing, lambda column: describe(column).unit))
    except UnknownColumnError as error:
        raise ConfigError(f"--pair_by, {second} against {first}: {error}") from error
    except AnalysisError as error:
        raise AnalysisError(f"{second} against {first}: {error}") from error


def _names(places: Sequence[str]) -> list[str]:
    """Return the folders by their names, or by their paths if two have the same name."""
    names = [os.path.basename(place) for place in places]
    return names if len(set(names)) == len(names) else list(places)


def _digest(place: str) -> str:
    return f"sha256 {hashlib.sha256((epath.Path(place) / TABLE).read_bytes()).hexdigest()[:16]}, in {place}"


def _as_csv(comparisons: Sequence[Comparison]) -> str:
    named = [one.rows.assign(first_sweep=one.first, second_sweep=one.second) for one in comparisons]
    return pd.concat(named)[["first_sweep", "second_sweep", *COLUMNS]].to_csv(index=False)


# Words.


def _lines(one: Comparison) -> list[str]:
    return [f"{one.second} against {one.first}: {_pairs(one)}", _differing(one), _largest(one)]


def _pairs(one: Comparison) -> str:
    """Say how many pairs there are, in which settings they agree, and what was left out."""
    p = one.pairing
    text = counted(p.pairs, "pair") + " of configurations"
    text += f", equal in {', '.join(map(_setting, p.paired_by))}" if p.paired_by else ""
    if p.averaged:
        text += f"; {p.averaged} {'compares' if p.averaged == 1 else 'compare'} means of several configurations"
    if p.same:
        text += f"; {p.same} {'is' if p.same == 1 else 'are'} the same configuration in both"
    for name, final, unpaired in zip((one.first, one.second), (p.first, p.second), p.unpaired, strict=True):
        out = {"unpaired": unpaired, "diverged": final.diverged, "unfinished": final.unfinished}
        named = [f"{n} {why}" for why, n in out.items() if n]
        text += f"; left out of {name}: {', '.join(named)}" if named else ""
    if p.apart:
        text += f"; some unpaired runs differ only in {' or '.join(map(_setting, p.apart))}: see --pair_by"
    return text


def _differing(one: Comparison) -> str:
    named = [f"{_setting(c)} ({a} in {one.first}, {b} in {one.second})" for c, (a, b) in one.pairing.differs.items()]
    return f"What differs: {'; '.join(named) or 'no setting'}"


def _largest(one: Comparison) -> str:
    losses = one.rows[(one.rows["kind"] == "loss") & one.rows["difference"].notna()]
    if losses.empty:
        return "Largest difference in a loss: no pair has a loss in both sweeps"
    row = losses.loc[losses["difference"].abs().idxmax()]
    text = f"Largest difference in a loss: {row['column']} {change(row['difference'])} {row['unit']}".rstrip()
    if math.isnan(row["low"]):
        text += " (1 pair gives no interval)"
    else:
        pairs = counted(row["pairs"], "pair")
        text += f" (95 % interval {change(row['low'])} to {change(row['high'])}, {pairs})"
    return text if math.isnan(row["seed_sds"]) else f"{text}, {change(row['seed_sds'])} standard deviations over seeds"


def _setting(column: str) -> str:
    return column.removeprefix("config.")


# The page.


def _write_page(path: epath.Path, comparisons: Sequence[Comparison], facts: dict[str, str]) -> epath.Path:
    from sweeps.report.page import write_page  # jinja2 and altair, which nothing before this needs

    figures = {
        f"differences-{i}": figure for i, one in enumerate(comparisons) if (figure := _figure(one, f"differences-{i}"))
    }
    parts = [
        {
            "label": f"{one.second} against {one.first}",
            "sentences": [_pairs(one), _differing(one), _largest(one)],
            "figure": figures.get(f"differences-{i}"),
            "table": _table(one),
        }
        for i, one in enumerate(comparisons)
    ]
    title = f"{', '.join(one.second for one in comparisons)} against {comparisons[0].first}"
    return write_page(path, "compare.html", figures, title=title, parts_of=parts, facts=facts)


def _table(one: Comparison) -> Table:
    heads = [{"first": one.first, "second": one.second, **_HEADS}.get(c, c) for c in _SHOWN]
    rows = [[_cell(c, row[c]) for c in _SHOWN] for _, row in one.rows.iterrows()]
    return Table(f"Differences, {one.second} against {one.first}", heads, rows, one.rows)


def _cell(column: str, value: Any) -> Cell:
    if column in ("low", "high", "difference", "seed_sds") and not math.isnan(value):
        return cell(value, change(value))
    return cell(value, kind={"column": "name", "note": "notes"}.get(column, ""))


def _figure(one: Comparison, name: str) -> Figure | None:
    """Return the differences in standard deviations over seeds; without replicates, over the first's configurations.

    None if there is neither.
    """
    import altair as alt

    from sweeps.report import charts

    rows = one.rows
    scale, unit = rows["seed_deviation"], "in standard deviations over seeds"
    if not (scale > 0).any():
        scale, unit = rows["spread"], f"in standard deviations over the paired configurations of {one.first}"
    drawn = rows[rows["difference"].notna() & (scale > 0)]
    if drawn.empty:
        return None
    scale = scale[drawn.index].astype(float)
    data = pd.DataFrame(
        {
            "column": drawn["column"],
            "kind": drawn["kind"].map({"metric": "geometry"}).fillna(drawn["kind"]),
            **{end: drawn[of].astype(float) / scale for end, of in _ENDS.items()},
            "sure": (drawn["q_value"] < 0.05).fillna(False).astype(bool),
            "text": [
                f"{change(r.difference)} {r.unit}, q {format_value(r.q_value) or 'unknown'}" for r in drawn.itertuples()
            ],
        }
    ).reset_index(drop=True)
    low, high = _range(data)
    across = alt.Scale(domain=[low, high], nice=False)
    kinds = ["loss", "geometry"]
    base = alt.Chart().encode(
        alt.Y("column:N").title(None).sort(list(data["column"])), charts.apart("kind", order=kinds)
    )
    layers = alt.layer(
        base.mark_rule(clip=True).encode(alt.X("low:Q").scale(across).title(f"difference {unit}"), alt.X2("high:Q")),
        base.mark_point(clip=True, filled=False).encode(
            alt.X("value:Q").scale(across),
            alt.Fill("kind:N").title(None).scale(domain=kinds),
            fillOpacity=alt.when("datum.sure").then(alt.value(1)).otherwise(alt.value(0)),
            tooltip=["column:N", "text:N", alt.Tooltip("value:Q", format="+.2f")],
        ),
        alt.Chart().mark_rule(color=charts.GREY, strokeDash=[3, 3]).encode(x=alt.datum(0)),
        data=alt.NamedData(name),
    )
    beyond = int((~data["value"].between(low, high)).sum())
    more = {"Beyond the axis": beyond, "Only in the table": len(rows) - len(data)}
    note = f"{one.second} minus {one.first}, {unit}, with 95 % intervals over the pairs. Filled points have q < .05."
    note += "".join(f" {where}: {n}." for where, n in more.items() if n)
    return Figure(layers.properties(width=520), {name: data}, note)


_ENDS = {"value": "difference", "low": "low", "high": "high"}


def _range(data: pd.DataFrame) -> tuple[float, float]:
    """Return the range of the axis: 0 and the intervals of all differences that aren't FAR."""
    size = data["value"].abs()
    near = data.loc[size <= FAR * size.median(), list(_ENDS)]
    low, high = min(0.0, near.min(axis=None)), max(0.0, near.max(axis=None))
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin
