"""Build the tidy table of a sweep: one row per run and checkpoint, with its configuration, geometry and every loss.

A working directory has the table as results.parquet and results.csv; results.schema.json says what each column means.
`read_table` loads it, or the tables of several sweeps as one.
"""

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.csv
from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.evaluate import read_results, settings_by_name
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort, Run, checkpoint_steps, shape_of
from olmo_jax.columns import NOT_DESCRIBED, Column
from olmo_jax.config import TrainConfig, from_config_dict
from olmo_jax.files import DamagedFileError, read_json, write_whole
from olmo_jax.logs.metrics import METRICS, read_jsonl
from olmo_jax.model import parameter_count
from olmo_jax.storage.run_files import known_runs, run_record
from olmo_jax.storage.run_status import read_status
from sweeps.models.revisions import ORIGIN
from sweeps.planning.plan import configuration, leaves
from sweeps.table import ancestry
from sweeps.table.catalog import catalog_of, declare, from_schema, schema
from sweeps.table.columns import AnalysisError

TABLE, CSV, SCHEMA = "results.parquet", "results.csv", "results.schema.json"
_SEEDS = ("init_seed", "data_seed")  # of an imported run known if it is one of several replicates
_KNOWN_OF_IMPORTED = r"name|imported|model\.|data\.(name|corpus|train_domains|sequence_length)"


def build_table(workdir: epath.Path, config: EvalConfig) -> pd.DataFrame:
    """Return the table of a working directory, from its files alone, with the evaluations of `config`.

    Columns: run_id, cohort, configuration (the run without its seeds), step, final, tokens (until that step),
    diverged_at, parameters, parameters_non_embedding, training_flops and weight_decay_dose (until that step, counted
    from the root); trunk (the run that a run descends from), if there are branches;
    `config.<dotted key>`; `train/<metric>` of that step; `<target>/<metric>` of the probe, and
    `<target>_spread/<metric>` over its probe sets; `<evaluation>/<name>` in nats per token; catalog.py describes each.
    What wasn't measured is missing, and so is how an imported run was trained, except for the tokens that the name of
    its revision gives.
    """
    settings = settings_by_name(config)
    rows = [row for run in known_runs(workdir) for row in _rows_of(workdir, run, settings)]
    table = pd.DataFrame(rows)
    if "trunk" in table:  # some runs are branches; the others are trunks
        table["trunk"] = table["trunk"].fillna(table["run_id"])
    if "diverged_at" in table:
        table["diverged_at"] = table["diverged_at"].astype("Int64")
    stored = [column for run in known_runs(workdir) for column in results.declared(workdir, run)]
    names = {column.name for column in stored}
    # A metric of the user's own keeps the meaning written by the process that had its code.
    earlier = [column for column in _declared(workdir) if column.name not in names]
    return declare(table, [*stored, *(column for column in earlier if column.meaning != NOT_DESCRIBED)])


def write_table(workdir: epath.Path, table: pd.DataFrame) -> None:
    """Write results.csv, results.schema.json and, last, results.parquet, each whole or not at all."""
    write_whole(workdir / CSV, _as_csv(table))
    write_whole(workdir / SCHEMA, _as_schema(table))
    write_whole(workdir / TABLE, _as_parquet(table))


def is_written(workdir: epath.Path, table: pd.DataFrame) -> bool:
    """Return whether results.parquet holds exactly this table, and its companion files exist."""
    exist = all((workdir / name).exists() for name in (TABLE, CSV, SCHEMA))
    written = {TABLE: _as_parquet, SCHEMA: _as_schema}
    return exist and all((workdir / name).read_bytes() == as_bytes(table) for name, as_bytes in written.items())


def read_table(*workdirs: epath.PathLike) -> pd.DataFrame:
    """Return the tables of one or several sweeps as one.

    A column that a sweep lacks is missing in its rows. Numbers are promoted to a type that holds them all; a column
    that holds numbers in one sweep and text or lists in another becomes text. Runs that several sweeps share appear
    more than once; use `drop_duplicates(["run_id", "step"])` before statistics of the whole.

    Args:
      workdirs: folders that hold results.parquet.

    Returns:
      As `build_table`; for several sweeps, with a first column `sweep`, the folder's name, made unique by a number.

    Raises AnalysisError if a folder has no results.parquet, or one that can't be read.
    """
    if not workdirs:
        raise AnalysisError("no folder to read a table from; name one that holds results.parquet")
    tables = [_read(epath.Path(workdir)) for workdir in workdirs]
    if len(tables) == 1:
        return tables[0]
    names = _unique([epath.Path(workdir).resolve().name for workdir in workdirs])
    sweeps = np.repeat(names, [len(table) for table in tables])
    columns = dict.fromkeys(column for table in tables for column in table.columns if column != "sweep")
    joined = pd.DataFrame({"sweep": sweeps} | {column: _joined(tables, column) for column in columns})
    return declare(joined, [column for table in tables for column in catalog_of(table).values()])


def read_curves(workdir: epath.Path) -> dict[str, pd.DataFrame]:
    """Return every run's metrics over training, by run id."""
    runs = known_runs(workdir)
    return {run: pd.DataFrame(read_jsonl(workdir / "runs" / run / METRICS)) for run in runs}


def _rows_of(workdir: epath.Path, run: str, evaluations: Mapping[str, Any]) -> list[dict[str, Any]]:
    record = run_record(workdir, run)
    config = from_config_dict(TrainConfig, record["config"])
    total, inner = parameter_count(config.model)
    metrics = {row["step"]: row for row in read_jsonl(workdir / "runs" / run / METRICS)}
    steps = _steps_of(workdir, record["folder"], run, config, metrics)
    settings = {
        f"config.{key}": _setting(value)
        for key, value in leaves(dataclasses.asdict(config)).items()
        if not config.imported or re.match(_KNOWN_OF_IMPORTED, key) or (config.init_seed and key in _SEEDS)
    }

    verdicts = _verdicts(workdir, run) if config.imported else {}

    before = ancestry.trained_before(workdir, config)

    def trained(step: int) -> dict[str, Any]:
        if config.imported:  # only what its publisher states is known
            return {"tokens": metrics.get(step, {}).get("tokens")} | verdicts.get(step, {})
        return ancestry.trained_until(config, step, before)

    branch = {"trunk": ancestry.root(workdir, run, config)} if config.branch.parent else {}

    return [
        {
            "run_id": run,
            "cohort": record["cohort"],
            "configuration": configuration(config),
            "step": step,
            "final": step == config.total_steps,
            "diverged_at": read_status(workdir, run).get("diverged_at"),
            "parameters": total,
            "parameters_non_embedding": inner,
        }
        | branch
        | trained(step)
        | settings
        | _measured(metrics.get(step, {}))
        | _losses(read_results(workdir, run, step, evaluations))
        for step in steps
    ]


def _verdicts(workdir: epath.Path, run: str) -> dict[int, dict[str, str]]:
    """Return the column `verdict` of an imported run's steps, as far as its history was audited."""
    path = workdir / "runs" / run / ORIGIN
    if not path.exists():
        return {}
    origin = read_json(path, "import it again")
    revisions = origin.get("revisions", {})
    return {int(step): {"verdict": entry["verdict"]} for step, entry in revisions.items() if "verdict" in entry}


def _setting(value: Any) -> Any:
    """Return a configuration's value for the table: valid UTF-8, even for file names that aren't."""
    if isinstance(value, tuple):
        return [_setting(one) for one in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _steps_of(workdir: epath.Path, folder: str, run: str, config: TrainConfig, metrics: Mapping[int, Any]) -> list[int]:
    """Return the steps of a run's checkpoints; in a copy without checkpoints, the steps at which they were due."""
    if config.imported:  # with metrics of checkpoints that weren't kept
        return sorted(metrics)
    path = checkpoint.directory(workdir, folder)
    if path.exists():
        return [step for step, runs in checkpoint.member_lists(path).items() if run in runs]
    return sorted(checkpoint_steps(Cohort(shape_of(config, ""), (Run(run, config),))) & set(metrics))


def _measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metrics.jsonl as columns: the probe's have a target in their names; the others get `train`."""
    return {k if "/" in k else f"train/{k}": v for k, v in row.items() if k not in ("step", "tokens")}


def _losses(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{e}/{name}": value for e, result in results.items() for name, value in result["metrics"].items()}


def _as_schema(table: pd.DataFrame) -> bytes:
    return (json.dumps(schema(catalog_of(table)), indent=2, ensure_ascii=False) + "\n").encode()


def _as_parquet(table: pd.DataFrame) -> bytes:
    plain = table.copy(deep=False)
    plain.attrs = {}  # results.schema.json has them
    return plain.to_parquet(index=False)


def _as_csv(table: pd.DataFrame) -> bytes:
    """Return a CSV with numbers to their last digit, lists as JSON and missing values empty; pyarrow is fast."""
    lists = {c: table[c].map(_list_as_text) for c in table.columns if pd.api.types.is_object_dtype(table[c])}
    written = io.BytesIO()
    pyarrow.csv.write_csv(pyarrow.Table.from_pandas(table.assign(**lists), preserve_index=False), written)
    return written.getvalue()


def _list_as_text(value: Any) -> Any:
    value = _as_list(value)
    return json.dumps(list(value)) if isinstance(value, list | tuple) else value


def _as_list(value: Any) -> Any:
    """Return a list for an array, which is what Parquet reads lists as."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _read(workdir: epath.Path) -> pd.DataFrame:
    path = workdir / TABLE
    if not path.exists():
        raise AnalysisError(f"{workdir} holds no {TABLE}; `olmo-jax report --workdir={workdir}` writes it")
    try:
        table = pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (ValueError, TypeError, KeyError, OSError, pyarrow.ArrowException) as error:
        raise AnalysisError(f"{path} can't be read: {error}; delete it and run `olmo-jax report` again") from error
    for column in filter(lambda c: pd.api.types.is_object_dtype(table[c]), table.columns):
        table[column] = table[column].map(_as_list)
    return declare(table, _declared(workdir))


def _declared(workdir: epath.Path) -> list[Column]:
    """Return the columns of results.schema.json; none from a damaged file, or one that older code wrote."""
    try:
        return from_schema(read_json(workdir / SCHEMA, "report again"))
    except (FileNotFoundError, DamagedFileError):
        return []


def _unique(names: Sequence[str]) -> list[str]:
    """Return the names, made unique: a repeated one gets the first number, from 2, that is free."""
    result: list[str] = []
    for name in names:
        tries = (name, *(f"{name}-{i}" for i in range(2, len(names) + 2)))
        result.append(next(one for one in tries if one not in result and (one == name or one not in names)))
    return result


def _joined(tables: Sequence[pd.DataFrame], column: str) -> pd.Series:
    """Return a column of all tables, concatenated; tables in which it is entirely missing don't decide its type."""
    starts = np.cumsum([0, *(len(table) for table in tables)])
    pieces = [
        table[column].set_axis(range(start, start + len(table)))
        for start, table in zip(starts, tables, strict=False)
        if column in table.columns
    ]
    known = [piece for piece in pieces if piece.notna().any()]
    if len({_kind(piece) for piece in known}) > 1:
        known = [piece.map(lambda v: str(_list_as_text(v)), na_action="ignore").astype(object) for piece in known]
    joined = pd.concat(known) if known else pieces[0]
    return joined.reindex(range(starts[-1]))


def _kind(piece: pd.Series) -> str:
    if pd.api.types.is_bool_dtype(piece):
        return "bool"
    if pd.api.types.is_numeric_dtype(piece):
        return "number"
    return "list" if isinstance(piece.dropna().iloc[0], list) else "text"
