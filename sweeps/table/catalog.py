"""Describe each column of a sweep's table: its kind, its unit, what it was measured on, and its meaning in a sentence.

Columns are declared where their values come from: a metric by its docstring, a setting at its field, an evaluation in
its file. Only these places and this module parse the names of columns; all other code asks the catalog:

    catalog_of(table).select(kind="loss", after="quantize", method="gptq", bits=3)
"""

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from eval import suite
from olmo_jax.columns import NATS, NOT_DESCRIBED, Column, first_sentence, sentence
from olmo_jax.config import ConfigError, TrainConfig
from olmo_jax.config.field import declared
from olmo_jax.probes import columns as probe_columns

# The attribute of a table with the declarations that this code can't derive from column names; see `declare`.
_ATTRIBUTE = "declared_columns"

FIXED = (
    Column("sweep", "identity", "", "The sweep that the run belongs to, named by its folder."),
    Column("run_id", "identity", "", "The run: its name and a hash of its configuration."),
    Column("cohort", "identity", "", "The cohort that the run was trained in, in one program with other runs."),
    Column("configuration", "identity", "", "The run without its seeds: runs that share it are replicates."),
    Column("trunk", "identity", "", "The run that this one branched off from, directly or over others; or itself."),
    Column("step", "identity", "steps", "The step of training after which the checkpoint was taken."),
    Column("final", "identity", "", "Whether this is the run's last step."),
    Column("tokens", "count", "tokens", "Tokens seen until this step."),
    Column(
        "diverged_at",
        "training",
        "steps",
        "The step at which the run's loss, gradient or parameters stopped being finite.",
    ),
    Column(
        "verdict",
        "identity",
        "",
        "What the audit of a published model's history says of the checkpoint; missing if it wasn't audited.",
    ),
    Column("parameters", "count", "parameters", "All parameters of the model."),
    Column(
        "parameters_non_embedding",
        "count",
        "parameters",
        "Parameters of the model without those of embedding, unembedding and positions.",
    ),
    Column(
        "training_flops",
        "count",
        "FLOPs",
        "Operations in training's matmuls until this step, forward and backward, with unembedding and attention.",
    ),
    Column(
        "weight_decay_dose",
        "training",
        "",
        "Learning rate (without factors of single groups) times weight decay, summed over the steps until this one.",
    ),
    Column("train/loss", "training", NATS, "Mean cross-entropy over the batch of this step."),
    Column("train/grad_norm", "training", "", "Global norm of the gradient at this step, before clipping."),
    Column("train/learning_rate", "training", "", "Learning rate of this step."),
)


class Catalog(Mapping[str, Column]):
    """The columns of a table by name, in its order."""

    def __init__(self, columns: Iterable[Column]):
        self._columns = {column.name: column for column in columns}

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def select(self, kind: str | None = None, **of: Any) -> list[str]:
        """Return the names of the columns of a kind whose `of` has all the given values; None requires a missing key.

        Without `statistic`, errors, spreads and points of curves are left out, as with `statistic=None`.
        """
        wanted = {"statistic": None} | of
        return [
            name
            for name, column in self.items()
            if kind in (None, column.kind) and all(column.of.get(key) == value for key, value in wanted.items())
        ]


def catalog_of(table: pd.DataFrame) -> Catalog:
    """Return the catalog of a table of sweeps.table, or of any part of one."""
    known = {column.name: column for column in _declarations(table)}
    return Catalog(known[name] if name in known else describe(name) for name in map(str, table.columns))


def heads(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return a table without rows that has the columns of all the given tables, and their declarations."""
    result = pd.DataFrame(columns=list(dict.fromkeys(column for table in tables for column in table.columns)))
    return declare(result, [column for table in tables for column in _declarations(table)])


class _Entries(dict[str, Any]):
    """Entries as in results.schema.json; never modified, so that pandas needn't copy them with a table."""

    def __deepcopy__(self, memo: Any) -> "_Entries":
        return self


def _declarations(table: pd.DataFrame) -> list[Column]:
    return from_schema(table.attrs.get(_ATTRIBUTE, {}))


def declare(table: pd.DataFrame, columns: Iterable[Column]) -> pd.DataFrame:
    """Return the table with the declarations of those columns that this code can't describe, kept in its attributes.

    Such columns are those of the user's own evaluations and metrics, whose code this process may not have. Raises
    ConfigError for a column that is declared with two units.
    """
    names = {name for name in map(str, table.columns) if not is_described(name)}
    result: dict[str, Column] = {}
    for column in columns:
        other = result.setdefault(column.name, column) if column.name in names else column
        if other.unit != column.unit:
            units = " and ".join(repr(unit) for unit in (other.unit, column.unit))
            raise ConfigError(f"column {column.name!r} is declared with the units {units}; rename the result of one of "
                              "the evaluations, or delete the columns.json of the runs with the old unit")  # fmt: skip
    table.attrs = {_ATTRIBUTE: _Entries(schema(Catalog(result.values())))} if result else {}
    return table


def describe(name: str) -> Column:
    """Return the description of a column by its name; its meaning is NOT_DESCRIBED if this code doesn't know it."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name.startswith("config."):
        return _setting(name)
    if name.startswith("train/"):
        return Column(name, "training", "", NOT_DESCRIBED)
    return suite.describe(name) or probe_columns.describe(name) or Column(name, "evaluation", "", NOT_DESCRIBED)


def is_described(name: str) -> bool:
    """Return whether this code knows the column's meaning."""
    return describe(name).meaning != NOT_DESCRIBED


def schema(catalog: Catalog) -> dict[str, dict[str, Any]]:
    """Return what results.schema.json holds of each column."""
    return {
        name: {"meaning": column.meaning, "unit": column.unit, "kind": column.kind, "of": dict(column.of)}
        for name, column in catalog.items()
    }


def from_schema(entries: Mapping[str, Any]) -> list[Column]:
    """Return the columns that a results.schema.json describes; entries without `of`, from older code, are left out."""
    fields = ("kind", "unit", "meaning", "of")
    return [
        Column(name, *(entry[field] for field in fields))
        for name, entry in entries.items()
        if isinstance(entry, dict) and entry.keys() >= set(fields) and isinstance(entry["of"], dict)
    ]


_BY_NAME = {column.name: column for column in FIXED}


@functools.cache
def _setting(column: str) -> Column:
    *sections, name = column.removeprefix("config.").split(".")
    words = " ".join([*sections, name]).replace("_", " ")
    of: type = TrainConfig
    for section in sections:
        of = typing.get_type_hints(of).get(section, object)
    fields = {f.name: f for f in dataclasses.fields(of)} if dataclasses.is_dataclass(of) else {}
    if name not in fields:
        return Column(column, "setting", "", NOT_DESCRIBED)
    setting = declared(fields[name])
    meaning = sentence(words, first_sentence(setting.meaning)) if setting.meaning else NOT_DESCRIBED
    return Column(column, "setting", setting.unit, meaning)
