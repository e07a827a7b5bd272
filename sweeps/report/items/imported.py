"""What was measured on each imported model: losses and how changes of the weights raise them, tasks, geometry."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report.cells import cell
from sweeps.report.curves import metric_name
from sweeps.report.item import Cell, NothingToShow, Table, add_section, report_item
from sweeps.report.numbers import is_missing, number, signed
from sweeps.table.catalog import Catalog, catalog_of

SECTION = "imported"
# With more models than this, the tables of the sweep say more than one table per model.
_MOST_MODELS = 8
_TARGETS = {
    "unembedding": "W as stored",
    "unembedding_gauge_fixed": "W gauge-fixed",
    "final_states": "final states",
    "final_states_centred": "final states without their mean",
}
_ERRORS = "Standard errors, in parentheses, are over documents; those of a rise are paired."

add_section(SECTION, "Imported models", after="findings", optional=True)


@report_item(section=SECTION, order=10)
def imported_losses(results: AnalysisResults) -> Table:
    """Each imported model's loss over all domains, and what quantisation, noise and truncation add to it."""
    records = []
    for run, row, catalog in _models(results):
        rises = catalog.select(kind="change", measure="rise", domain="macro")
        for column in [*catalog.select(kind="loss", domain="macro", after=None), *rises]:
            if is_missing(row[column]):
                continue
            before, of_what, _ = catalog[column].meaning.partition(": ")
            what = before if of_what else "Loss"
            if column in rises:
                what = f"Rise {what[0].lower()}{what[1:]}"
            error = _error(row, catalog, column)
            records.append((run, what, row[column], error))
    if not records:
        raise NothingToShow("no loss of an imported model was measured")
    frame = pd.DataFrame(records, columns=["model", "measured", "nats_per_token", "standard_error"])
    rows = [[cell(what, kind="name"), _with_error(value, error)] for _, what, value, error in records]
    return Table(
        "Loss of imported models and its rises, nats per token",
        ["measured", "nats per token"],
        rows,
        frame,
        groups=list(frame["model"]),
        runs=list(frame["model"]),
        note=_ERRORS,
    )


@report_item(section=SECTION, order=20)
def imported_tasks(results: AnalysisResults) -> Table:
    """Each imported model's accuracy on each task, in percent, with the chance level."""
    records: list[dict[str, Any]] = []
    for run, row, catalog in _models(results):
        for task in dict.fromkeys(catalog[column].of["task"] for column in catalog.select(kind="task")):
            of_task = [c for c in catalog.select(task=task) if not is_missing(row[c])]
            record = {"model": run, "task": task}
            for column in of_task:
                name = column.partition("/")[2]
                if name.startswith("accuracy") or name in ("chance", "items"):
                    record[name] = row[column]
                    record[f"{name}_standard_error"] = _error(row, catalog, column)
            records.append(record)
    if not records:
        raise NothingToShow("no task of an imported model was scored")
    frame = pd.DataFrame(records).dropna(axis="columns", how="all")
    scores = [c for c in frame if str(c).startswith("accuracy") and not str(c).endswith("_standard_error")]
    rows = [
        [
            cell(str(record["task"]).replace("_", " "), kind="name"),
            cell(record.get("items"), f"{record.get('items', 0):.0f}"),
            cell(record.get("chance"), signed(100 * record.get("chance", 0.0), 0)),
            *(_with_error(record.get(c), record.get(f"{c}_standard_error"), 100) for c in scores),
        ]
        for record in records
    ]
    heads = ["task", "items", "chance", *(str(c).replace("_", " ") for c in scores)]
    models = [record["model"] for record in records]
    note = "Percent, with standard errors over items in parentheses."
    return Table("Tasks of imported models, %", heads, rows, frame, groups=models, runs=models, note=note)


@report_item(section=SECTION, order=30)
def imported_geometry(results: AnalysisResults) -> Table:
    """Each imported model's geometry metrics of the unembedding, as stored and gauge-fixed, and of its final states."""
    records: list[dict[str, Any]] = []
    for run, row, catalog in _models(results):
        columns = {target: catalog.select(kind="geometry", target=target) for target in _TARGETS}
        metrics = dict.fromkeys(catalog[c].of["metric"] for of_target in columns.values() for c in of_target)
        for metric in metrics:
            of_metric = {t: c for t, names in columns.items() for c in names if catalog[c].of["metric"] == metric}
            records.append({"model": run, "metric": metric} | {t: row[c] for t, c in of_metric.items()})
    if not records:
        raise NothingToShow("no geometry of an imported model was measured")
    frame = pd.DataFrame(records)
    targets = [target for target in _TARGETS if target in frame]
    rows = [
        [
            cell(metric_name(f"/{record['metric']}"), kind="name"),
            *(_number(record.get(target)) for target in targets),
        ]
        for record in records
    ]
    models = [record["model"] for record in records]
    heads = ["metric", *(_TARGETS[target] for target in targets)]
    return Table("Geometry of imported models", heads, rows, frame, groups=models, runs=models)


def _models(results: AnalysisResults) -> Iterator[tuple[str, Mapping[str, Any], Catalog]]:
    """Yield the run id and the last row of each imported model, and the catalog of its columns."""
    rows = results.final.rows
    if "config.imported" not in rows or not rows["config.imported"].fillna("").astype(bool).any():
        raise NothingToShow("no model of this sweep was imported")
    imported = rows[rows["config.imported"].fillna("").astype(bool)]
    if len(imported) > _MOST_MODELS:
        raise NothingToShow(f"{len(imported)} models were imported; at most {_MOST_MODELS} are shown one by one")
    catalog = catalog_of(rows)
    for _, row in imported.iterrows():
        yield str(row["run_id"]), row.to_dict(), catalog


def _error(row: Mapping[str, Any], catalog: Catalog, column: str) -> float | None:
    """Return the standard error of a column, which the table has under the same attributes; None without one."""
    of = dict(catalog[column].of)
    if "task" in of:
        of = {"task": of["task"], "name": column.partition("/")[2]}
    wanted = dict.fromkeys(("after", "measure", "over")) | of | {"statistic": "standard_error"}
    errors = catalog.select(kind="evaluation", **wanted)
    return None if not errors or is_missing(row[errors[0]]) else float(row[errors[0]])


def _with_error(value: float | None, error: float | None, scale: float = 1.0) -> Cell:
    """Return a cell of a value with its standard error, both to two significant digits of the error."""
    if value is None or is_missing(value):
        return Cell("")
    if error is None or not error > 0:
        return cell(value, number(scale * value))
    digits = max(0, min(5, 1 - int(f"{scale * error:e}".partition("e")[2])))
    return cell(value, f"{signed(scale * value, digits)} ({scale * error:.{digits}f})")


def _number(value: float | None) -> Cell:
    return Cell("") if value is None or is_missing(value) else cell(float(value))
