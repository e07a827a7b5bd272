"""What the charts of the report share: the runs' settings, colour and filters, choices, names, axes.

A chart is a Vega-Lite specification over named data. On the page, readers set the chart's parameters; the files in
report/figures show their initial values. Two parameters belong to the page and act on all charts of single runs:
`colour_by`, the name of a setting, and `hidden`, the runs that the filters leave out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np
import pandas as pd

from sweeps.report.item import Figure
from sweeps.report.names import any_name
from sweeps.report.numbers import format_value, is_missing
from sweeps.report.words import setting_name
from sweeps.table.columns import PRIMARY_PAIR, as_levels, geometry_columns, loss_columns

if TYPE_CHECKING:
    from sweeps.analysis.results import AnalysisResults

GREY = "#8c8c8c"
# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
NATS = "nats per token"
# A setting with more values than this is offered neither as a filter nor as a colour.
MAX_LEVELS = 40
_LONGEST = 60  # characters of a name
HOVER, MAX_HOVERED = "hover", 5000
# The tooltip of a run, in charts made by `by_runs`.
ABOUT = alt.Tooltip("of.about:N", title="run")

# Numbers at ticks and in legends: 134M, 1e-5, 0.25; names as they are.
LABEL = (
    "!isNumber(datum.value) ? datum.label : abs(datum.value) >= 1e4 ? format(datum.value, '.4~s') : "
    "format(datum.value, '.4~g')"
)


def names_of(columns: Iterable[str], losses: Sequence[str] = ()) -> dict[str, str]:
    """Return a different name in words for each column; a chart's fields have these names."""
    names: dict[str, str] = {}
    for column in columns:
        name = setting_name(column) if column.startswith("config.") else any_name(column, losses)
        name = printable(name if name not in names.values() else column)
        names[column] = name if name not in names.values() else f"{name[: _LONGEST - 8]} {len(names)}"
    return names


def printable(text: object) -> str:
    """Return a text of at most _LONGEST characters, with spaces for characters that XML can't hold."""
    shown = "".join(c if c.isprintable() else " " for c in str(text))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def settings_of(results: "AnalysisResults") -> dict[str, str]:
    """Return the names of the settings that figures can be coloured and filtered by, by their columns."""
    table = results.table
    return names_of(c for c in results.settings if as_levels(table[c]).nunique() <= MAX_LEVELS)


def runs_data(results: "AnalysisResults") -> pd.DataFrame:
    """Return the data "runs": one row per run with its settings, and `about`, the text of its tooltip."""
    names = settings_of(results)
    if "run_id" not in results.table:
        return pd.DataFrame({"run": [], "about": []})
    first = results.table.drop_duplicates("run_id")
    diverged = results.table.groupby("run_id")["diverged_at"].max()
    rows = []
    for row in first[["run_id", *names]].to_dict("records"):
        levels = {name: _level(row[column]) for column, name in names.items()}
        about = [f"{name} {format_value(row[column]) or 'missing'}" for column, name in names.items()]
        if not is_missing(at := diverged[row["run_id"]]):
            about.append(f"diverged at step {at:g}")
        rows.append({"run": str(row["run_id"]), "about": ": ".join([str(row["run_id"]), ", ".join(about)])} | levels)
    return pd.DataFrame(rows, columns=["run", "about", *names.values()], dtype=object)


def _level(value: Any) -> Any:
    if is_missing(value):
        return "missing"
    if isinstance(value, int | float | np.number) and not isinstance(value, bool | np.bool_):
        return float(f"{float(value):.6g}")
    return printable(format_value(value))


def final_data(results: "AnalysisResults") -> pd.DataFrame:
    """Return the data "final": one row per run that finished, with its geometry and losses under their names."""
    rows, losses = results.final.rows, loss_columns(results.final.rows)
    names = names_of([*geometry_columns(rows), *losses], losses)
    return pd.DataFrame({"run": rows["run_id"].astype(str)} | {name: values(rows, c) for c, name in names.items()})


def by_runs(chart: Any) -> Any:
    """Return a chart of data with a column `run`, filtered by `hidden`.

    It gains the fields `of`, the run's row of "runs", and `level`, the value of the setting that colours it.
    """
    return (
        chart.transform_filter("indexof(hidden, datum.run) < 0")
        .transform_lookup("run", from_=alt.LookupData(alt.NamedData("runs"), key="run"), as_="of")
        .transform_calculate(level="datum.of && isValid(datum.of[colour_by]) ? datum.of[colour_by] : 'all runs'")
    )


def figure(
    chart: Any, data: Mapping[str, pd.DataFrame], note: str = "", results: "AnalysisResults | None" = None
) -> Figure:
    """Return a figure; with `results`, one of single runs, on which the page's colour and filters act."""
    if results is None:
        return Figure(chart, data, note)
    first = next(iter(settings_of(results).values()), "")
    chart = chart.add_params(alt.param(name="colour_by", value=first), alt.param(name="hidden", value=[]))
    return Figure(chart, {**data, "runs": runs_data(results)}, note)


def choice(name: str, label: str, options: Sequence[str], chosen: str = "") -> alt.Parameter:
    """Return a parameter that the reader of the page chooses; the first option unless `chosen` is one."""
    value = chosen if chosen in options else options[0]
    return alt.param(name=name, value=value, bind=alt.binding_select(options=list(options), name=label))


def of(name: str) -> str:
    """Return the title that is the value of the parameter `name`; see `Figure.specification`."""
    return f"={name}"


def quoted(text: str) -> str:
    """Return a text as a literal of Vega's expressions."""
    return json.dumps(text)


def x(field: str, title: str | None, *, log: bool = False, at: Sequence[float] = ()) -> Any:
    """Return a quantitative x axis, logarithmic if `log`, with ticks at `at` if given."""
    return _axis(alt.X, field, title, log, at)


def y(field: str, title: str | None, *, log: bool = False, at: Sequence[float] = ()) -> Any:
    """Return a quantitative y axis; the arguments are those of `x`."""
    return _axis(alt.Y, field, title, log, at)


def _axis(kind: Any, field: str, title: str | None, log: bool, at: Sequence[float]) -> Any:
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False, nice=True)
    ticks: dict[str, Any] = {"values": list(at)} if at else {"tickCount": 5}
    axis = alt.Axis(labelExpr=LABEL, labelOverlap="greedy", **ticks)
    return kind(f"{field}:Q").title(title).scale(scale).axis(axis)


def scatter(chart: Any, across: str, up: str) -> Any:
    """Return the chart, made by `by_runs`, as points at its fields x and y, with these parameters as titles."""
    numbers = [alt.Tooltip(f"{field}:Q", format=".4~g") for field in ("x", "y")]
    points = chart.transform_filter("isValid(datum.x) && isValid(datum.y)").mark_point()
    return points.encode(x("x", of(across)), y("y", of(up)), **level(shape=True), tooltip=[ABOUT, *numbers])


def hover(base: Any, count: int, *fields: str) -> list[Any]:
    """Return a layer of invisible points for the tooltips of a line; no layer for more than MAX_HOVERED points.

    A tooltip shows run, step and `fields`; the first of these is the point's y. Files are drawn without this layer.
    """
    if count > MAX_HOVERED:
        return []
    tooltip = [ABOUT, "step:Q", *(alt.Tooltip(f"{field}:Q", format=".4~g") for field in fields)]
    points = base.mark_point(opacity=0, size=60).encode(alt.Y(f"{fields[0]}:Q"), tooltip=tooltip)
    return [points.properties(name=HOVER)]


def level(shape: bool = False) -> dict[str, Any]:
    """Return the encoding of the level of the chosen setting by colour, and by shape too if asked for."""
    legend = alt.Legend(labelExpr=LABEL, symbolLimit=12, symbolOpacity=1)
    encoded = {"color": alt.Color("level:O").title(of("colour_by")).legend(legend)}
    return encoded | ({"shape": alt.Shape("level:N").title(of("colour_by"))} if shape else {})


def apart(field: str, title: str | None = None, order: Sequence[str] | None = None, grey: Sequence[str] = ()) -> Any:
    """Return the encoding of a name by distinct colours; names in `grey` have shades of grey."""
    color = alt.Color(f"{field}:N").title(title)
    if order is None:
        return color
    shades = dict(zip(grey, ("#8c8c8c", "#d0d0d0"), strict=False))
    coloured = [name for name in order if name not in shades]
    colours = [shades.get(name) or COLOURS[coloured.index(name) % len(COLOURS)] for name in order]
    return color.scale(domain=list(order), range=colours)


def decades(numbers: Iterable[float]) -> list[float]:
    """Return the powers of ten around positive numbers, as ticks of a logarithmic axis."""
    x_N = np.asarray([x for x in numbers if np.isfinite(x) and x > 0], dtype=float)
    if not len(x_N):
        return []
    low, high = np.floor(np.log10(x_N.min())), np.ceil(np.log10(x_N.max()))
    return [float(10**k) for k in np.arange(low, high + 1)]


def spans(numbers: Iterable[float]) -> bool:
    """Return whether the numbers are positive and span more than two octaves, which suits a logarithmic axis better."""
    x_N = np.asarray([x for x in numbers if np.isfinite(x)], dtype=float)
    return bool(len(x_N) and x_N.min() > 0 and x_N.max() > 4 * x_N.min())


def values(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as floats; values that aren't finite numbers are NaN, as is a missing column."""
    if column not in table.columns:
        return np.full(len(table), np.nan)
    value_N = pd.to_numeric(table[column], errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(value_N), value_N, np.nan)


def first_of(names: Iterable[str], most: int) -> list[str]:
    """Return at most `most` of the columns; those of the pair declared beforehand come first."""
    return sorted(dict.fromkeys(names), key=lambda name: name not in PRIMARY_PAIR)[:most]


def kinds(results: "AnalysisResults") -> tuple[list[str], list[str]]:
    """Return the names in "final" of geometry, and of losses, each with the one declared beforehand first."""
    rows, losses = results.final.rows, loss_columns(results.final.rows)
    geometry = geometry_columns(rows)
    names = names_of([*geometry, *losses], losses)
    return [names[c] for c in first_of(geometry, len(geometry))], [names[c] for c in first_of(losses, len(losses))]
