"""What a column of the table is: a setting, geometry, or a loss; the rows that statistics are of; errors of columns."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from eval.columns import AVERAGES
from olmo_jax.columns import Column
from olmo_jax.config import TrainConfig
from olmo_jax.config.field import NOT_IDENTITY, declared, settings
from olmo_jax.errors import UserError
from olmo_jax.probes.columns import SPECTRUM as SPECTRUM
from olmo_jax.probes.columns import SPREAD as SPREAD
from olmo_jax.probes.columns import TEXTS as TEXTS
from sweeps.table.catalog import catalog_of

# Targets of the probe that come before all others.
FIRST_TARGETS = ("unembedding", "unembedding_gauge_fixed", "final_states")
HELD_OUT_LOSS = f"{TEXTS}validation/loss"
# The one pair declared before looking; every other number on a page is exploration.
PRIMARY_PAIR = ("unembedding/effective_rank_percent", "lm_loss/in_domain")

# The role of each setting by its column; see olmo_jax.config.field.
_ROLES = {f"config.{key}": declared(field).role for key, field, _ in settings(TrainConfig())}


class AnalysisError(UserError, ValueError):
    """A table that can't be analysed as asked; the message names the column and what is wrong with it."""


class UnknownColumnError(AnalysisError, KeyError):
    """A column that the table doesn't have; the message names the nearest one."""

    def __str__(self) -> str:
        return str(self.args[0])


class FinalRows(NamedTuple):
    """Last rows of the runs that finished, and how many runs were left out and why."""

    rows: pd.DataFrame
    diverged: int
    unfinished: int


def final_rows(table: pd.DataFrame) -> FinalRows:
    """The last row of each run that reached its end with finite parameters, and what was left out."""
    diverged_runs = table.loc[table["diverged_at"].notna(), "run_id"].unique()
    last = table[table["final"].fillna(False).astype(bool)]
    unfinished = set(table["run_id"]) - set(last["run_id"]) - set(diverged_runs)
    kept = last[~last["run_id"].isin(diverged_runs)].reset_index(drop=True)
    return FinalRows(kept, len(diverged_runs), len(unfinished))


def last_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `final_rows`, and the last row of each run that diverged, with the parameters it had before."""
    of_diverged = table[table["diverged_at"].notna()].sort_values("step").drop_duplicates("run_id", keep="last")
    return pd.concat([final_rows(table).rows, of_diverged], ignore_index=True)


def controls_of(table: pd.DataFrame) -> list[str]:
    """The settings that differ between rows: `config.` columns but seeds, names, places and what is only looked at.

    A setting that some rows have and others lack differs.
    """
    return [c for c in table.columns if _is_setting(c) and as_levels(table[c]).nunique(dropna=False) > 1]


def missing_as_level(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The table with those of the columns that are missing somewhere as categories in words, of which it is one."""
    holed = [c for c in columns if table[c].isna().any()]
    return table.assign(
        **{c: as_levels(table[c]).astype(object).map(str, na_action="ignore").fillna("missing") for c in holed}
    )


def geometry_columns(table: pd.DataFrame) -> list[str]:
    """Columns `<target>/<metric>` of the probe, whatever their metrics, those of FIRST_TARGETS first.

    Spreads and counts tell about the measurement, and singular values and quantiles are curves; they are left out.
    """
    order = {target: i for i, target in enumerate(FIRST_TARGETS)}
    return sorted(catalog_of(table).select(kind="geometry"), key=lambda c: order.get(target_of(c), len(order)))


def loss_columns(table: pd.DataFrame) -> list[str]:
    """Columns of a loss: by domain and on average; on average after quantisation, damage or fine-tuning.

    Their errors, bits per byte and perplexities say the same again and are left out. Of runs without any, such as those
    that learn equations, the loss on held-out text that is measured in the loop.
    """
    catalog = catalog_of(table)
    found = [name for name, column in catalog.items() if _is_analysed(column)]
    return found or [name for name in catalog if name == HELD_OUT_LOSS]


def target_of(column: str) -> str:
    """What a column `<target>/<metric>` measures."""
    return column.rpartition("/")[0]


def spread_column(column: str) -> str:
    """The column that holds the standard deviation of `column` over disjoint probe sets, if the probe took any."""
    target, _, name = column.rpartition("/")
    return f"{target}{SPREAD}/{name}"


def as_levels(column: pd.Series) -> pd.Series:
    """The column as hashable values: what isn't a number (a list of files) as its text; missing stays missing."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(str, na_action="ignore")


def require_column(table: pd.DataFrame, name: str) -> None:
    """Raises UnknownColumnError unless the table has the column."""
    if name not in table.columns:
        near = difflib.get_close_matches(name, [str(c) for c in table.columns], n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else f"; it has {len(table.columns)} others, none of a like name"
        raise UnknownColumnError(f"the table has no column '{name}'{hint}")


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """A column as floats, missing values NaN. Raises AnalysisError for one that holds something else."""
    try:
        return pd.to_numeric(table[name]).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"column '{name}' of the table holds something that isn't a number: {error}") from None


def _is_setting(column: str) -> bool:
    if not column.startswith("config.") or column.endswith("seed"):
        return False
    if column in _ROLES:
        return _ROLES[column] not in NOT_IDENTITY
    # A field that another version of the code has: as the others of its section.
    section = column.rpartition(".")[0] + "."
    alike = {role for other, role in _ROLES.items() if other.startswith(section)}
    return not alike or not alike <= NOT_IDENTITY


def _is_analysed(column: Column) -> bool:
    """Whether a column is a loss of the runs or, after something was done to them, its average or how it changed."""
    of = column.of
    if "statistic" in of or of.keys() & {"model", "text"}:
        return False
    if column.kind == "change":
        return of.get("measure") == "forgetting"
    return column.kind == "loss" and ("after" not in of or of.get("domain") in (*AVERAGES, "target"))
