"""What the page's scripts draw from, as JSON: runs and their settings, curves, spectra, final values, statistics."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sweeps.analysis.results import AnalysisResults
from sweeps.report.curves import by_target, curve_data, metric_name, target_name, to_json
from sweeps.report.numbers import format_value, is_missing
from sweeps.report.words import setting_name
from sweeps.studies import Study
from sweeps.table.catalog import Catalog, catalog_of
from sweeps.table.columns import PRIMARY_PAIR, SPECTRUM, as_levels, geometry_columns, loss_columns

# Of one run's spectra over training so many are drawn, equally far apart among those measured.
MAX_SPECTRA = 8
# A setting with more values than this is no filter and no colour.
MAX_LEVELS = 40

METHODS = {"round_to_nearest": "rounding", "gptq": "GPTQ"}


def page_data(results: AnalysisResults, studies: Sequence[Study]) -> dict[str, Any]:
    """Return all data of the page; a key without data has an empty value."""
    table, final = results.table, results.final.rows
    settings = [c for c in results.settings if as_levels(table[c]).nunique() <= MAX_LEVELS]
    data = {
        "runs": _runs(table, settings),
        "settings": [{"key": c, "name": setting_name(c)} for c in settings],
        **curve_data(results.curves),
        "spectra": _spectra(results),
        "final": _final(final),
        "metrics": geometry_columns(table),
        "losses": loss_columns(table),
        "primary": PRIMARY_PAIR,
        "effects": effects(catalog_of(table)),
        "matrix": _matrix(results.associations),
        "saturation": records(results.saturation.runs),
        "median_rank": _plain(results.saturation.median_rank),
        "variance": records(results.variance.drop(columns="note")),
        "prediction": records(results.prediction.drop(columns="note")),
        "importance": records(results.importance),
        "early": records(results.early.drop(columns="note")),
    }
    for study in studies:
        data |= study.data(results)
    return data


def effects(catalog: Catalog) -> list[dict[str, Any]]:
    """What is done to trained models: each with the column of its loss, its name, and `bits` where it has some.

    `less` names the column to take off, so that an effect is a change of loss; None where it is one already.
    """
    found: list[dict[str, Any]] = []
    quantised = [
        name
        for method in METHODS
        for name in catalog.select(kind="loss", after="quantize", method=method, domain="in_domain")
    ]
    for key in catalog.select():
        of = catalog[key].of
        if key in quantised:
            variant = "" if of["scope"] == "blocks" else f" {of['scope']}".replace("_", " ")
            method = METHODS[of["method"]] + variant
            name = f"{METHODS[of['method']]} to {of['bits']} bits{variant}: rise of in-domain loss"
            found.append({"key": key, "name": name, "less": PRIMARY_PAIR[1], "bits": of["bits"], "method": method})
        elif of.get("after") == "finetune" and of["rate"] != "best":
            what = "forgetting" if of.get("measure") == "forgetting" else "loss on its text"
            if what == "forgetting" or of.get("domain") == "target":
                name = f"{finetuning_name(key.partition('/')[0])}: {what}"
                found.append({"key": key, "name": name, "less": None, "bits": None, "method": None})
    return found


def finetuning_name(evaluation: str) -> str:
    """Return the name of a fine-tuning, such as `finetune_code_lr0.001`, in words."""
    return evaluation.replace("finetune_", "fine-tuning on ").replace("_lr", " at rate ").replace("_", " ")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as JSON values, with null for missing ones."""
    return [{key: _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _runs(table: pd.DataFrame, settings: list[str]) -> dict[str, Any]:
    """Return each run's settings as [value to order by, text], and where it diverged."""
    first = table.drop_duplicates("run_id")
    diverged = table.groupby("run_id")["diverged_at"].max() if len(table) else {}
    return {
        str(row["run_id"]): {
            "settings": {c: [_plain(row[c]), format_value(row[c]) or "missing"] for c in settings},
            "diverged_at": _plain(diverged[row["run_id"]]),
        }
        for row in first[["run_id", *settings]].to_dict("records")
    }


def _final(final: pd.DataFrame) -> dict[str, Any]:
    columns = geometry_columns(final) + loss_columns(final)
    values = {c: to_json(pd.to_numeric(final[c], errors="coerce").to_numpy(dtype=float)) for c in columns}
    return {"run": [str(r) for r in final["run_id"]], "values": values}


def _spectra(results: AnalysisResults) -> dict[str, Any]:
    """Return for each target its name, the measured indexes and each run's steps and singular values by step."""
    found: dict[str, Any] = {}
    for run, curve in results.curves.items():
        spectra = [c for c in curve.columns if c.partition("/")[0].endswith(SPECTRUM)]
        for target, columns in by_target(spectra).items():
            columns = sorted(columns, key=_place)
            there = curve[curve[columns].notna().any(axis=1)]
            chosen = there.iloc[np.unique(np.linspace(0, len(there) - 1, MAX_SPECTRA).round().astype(int))]
            if chosen.empty:
                continue
            of_target = found.setdefault(target, {"name": target_name(target.removesuffix(SPECTRUM)), "runs": {}})
            of_target["runs"][run] = {
                "places": [_place(c) for c in columns],
                "steps": [int(step) for step in chosen["step"]],
                "values": [to_json(row) for row in chosen[columns].to_numpy(dtype=float)],
            }
    return found


def _place(column: str) -> int:
    return int(column.rpartition("/")[2])


def _matrix(associations: pd.DataFrame) -> dict[str, Any]:
    """Return the estimates of rank correlations by method as [metric][target], with a text on each."""
    metrics, targets = (list(dict.fromkeys(associations[c])) for c in ("metric", "target"))
    methods = {}
    for method in ("raw", "partial rank", "partial factor"):
        of_method = associations[associations["method"] == method].set_index(["metric", "target"])
        pairs = pd.MultiIndex.from_product([metrics, targets])
        values = of_method[["estimate", "low", "high", "q_value"]].reindex(pairs)
        methods[method] = {
            name: [to_json(row) for row in values[name].to_numpy(dtype=float).reshape(len(metrics), len(targets))]
            for name in values
        }
    names = {m: f"{target_name(m.rpartition('/')[0])}: {metric_name(m)}" for m in metrics}
    return {"metrics": metrics, "names": names, "targets": targets, "methods": methods}


def _plain(value: Any) -> Any:
    """Return the value as a JSON value."""
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float | np.number):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    return str(value)
