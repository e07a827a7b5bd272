"""Select what statistics use from a table: its settings, geometry and losses, and its rows; the errors they raise."""

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

# Targets of the probe that are listed before all others.
FIRST_TARGETS = ("unembedding", "unembedding_gauge_fixed", "final_states")
HELD_OUT_LOSS = f"{TEXTS}validation/loss"
SATURATION = "saturation/rise"
# The one pair that was declared in advance; every other number on a page is exploratory.
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
    """The last rows of the runs that finished, and how many runs were left out, by reason."""

    rows: pd.DataFrame
    diverged: int
    unfinished: int


def final_rows(table: pd.DataFrame) -> FinalRows:
    """Return the last row of each run that finished with finite parameters, and how many runs were left out."""
    diverged_runs = table.loc[table["diverged_at"].notna(), "run_id"].unique()
    last = table[table["final"].fillna(False).astype(bool)]
    unfinished = set(table["run_id"]) - set(last["run_id"]) - set(diverged_runs)
    kept = last[~last["run_id"].isin(diverged_runs)].reset_index(drop=True)
    return FinalRows(kept, len(diverged_runs), len(unfinished))


def last_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `final_rows`, and the last row of each diverged run, from before it diverged."""
    of_diverged = table[table["diverged_at"].notna()].sort_values("step").drop_duplicates("run_id", keep="last")
    return pd.concat([final_rows(table).rows, of_diverged], ignore_index=True)


def controls_of(table: pd.DataFrame) -> list[str]:
    """Return the settings that differ between rows: `config.` columns except seeds and what isn't part of the identity.

    A setting that only some rows have counts as differing. The parents' configuration counts if there are several.
    """
    least = {"config.branch.parent_configuration": 2 if _has_roots(table) else 1}
    return [c for c in table.columns if _is_setting(c) and as_levels(table[c]).nunique(dropna=False) > least.get(c, 1)]


def missing_as_level(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the table with each of the columns that has missing values as text, where "missing" is a level."""
    incomplete = [c for c in columns if table[c].isna().any()]
    return table.assign(
        **{c: as_levels(table[c]).astype(object).map(str, na_action="ignore").fillna("missing") for c in incomplete}
    )


def geometry_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns `<target>/<metric>` of the probe for all metrics, those of FIRST_TARGETS first.

    Spreads and counts, which describe the measurement, and singular values and quantiles, which are points of curves,
    are left out.
    """
    order = {target: i for i, target in enumerate(FIRST_TARGETS)}
    return sorted(catalog_of(table).select(kind="geometry"), key=lambda c: order.get(target_of(c), len(order)))


def loss_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of losses: by domain and on average, and on average after quantisation, damage or fine-tuning.

    Their errors, bits per byte and perplexities, which add nothing, are left out. If there are no such columns, as for
    runs that learn equations, the loss on held-out text that is measured in the loop is returned.
    """
    catalog = catalog_of(table)
    losses = [name for name, column in catalog.items() if _is_analysed(column)]
    return losses or [name for name in catalog if name == HELD_OUT_LOSS]


def performance_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of performance: losses, losses and rises after quantisation, fine-tuning and forgetting."""
    catalog = catalog_of(table)
    found = [
        *(
            c
            for domain in ("in_domain", "out_of_domain")
            for c in catalog.select(kind="loss", domain=domain, after=None)
        ),
        *catalog.select(kind="loss", domain="in_domain", after="quantize"),
        *catalog.select(kind="change", domain="in_domain", after="quantize", measure="rise"),
        *([SATURATION] if SATURATION in table.columns else []),
        *(c for c in catalog.select(after="finetune", domain="target") if catalog[c].of.get("rate") != "best"),
        *(c for c in catalog.select(after="finetune", measure="forgetting") if catalog[c].of.get("rate") != "best"),
    ]
    return [c for c in dict.fromkeys(found) if c.split("/")[0] != "unigram" and table[c].notna().any()]


def target_of(column: str) -> str:
    """Return the target of a column `<target>/<metric>`."""
    return column.rpartition("/")[0]


def spread_column(column: str) -> str:
    """Return the name of the column with the standard deviation of `column` over the probe's sets, if there is one."""
    target, _, name = column.rpartition("/")
    return f"{target}{SPREAD}/{name}"


def as_levels(column: pd.Series) -> pd.Series:
    """Return the column as hashable values: numbers as they are, others (a list of files) as text."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map(str, na_action="ignore")


def require_column(table: pd.DataFrame, name: str) -> None:
    """Raise UnknownColumnError if the table lacks the column."""
    if name not in table.columns:
        near = difflib.get_close_matches(name, [str(c) for c in table.columns], n=1, cutoff=0.4)
        others = f"it has {len(table.columns)} others, none with a similar name"
        hint = f"; did you mean '{near[0]}'?" if near else f"; {others}"
        raise UnknownColumnError(f"the table has no column '{name}'{hint}")


def numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as floats, with NaN for missing values. Raises AnalysisError if a value isn't a number."""
    try:
        return pd.to_numeric(table[name]).to_numpy(dtype=float, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise AnalysisError(f"column '{name}' of the table contains a value that isn't a number: {error}") from None


def _has_roots(table: pd.DataFrame) -> bool:
    """Return whether some runs aren't branches."""
    column = table.get("config.branch.parent_configuration")
    return column is not None and bool((column == "").any())


def _is_setting(column: str) -> bool:
    # A branch's parent is one run, seeds included; its configuration is a column of its own.
    if not column.startswith("config.") or column.endswith("seed") or column == "config.branch.parent":
        return False
    if column in _ROLES:
        return _ROLES[column] not in NOT_IDENTITY
    # A field of another version of the code is treated as the other fields of its section are.
    section = column.rpartition(".")[0] + "."
    section_roles = {role for other, role in _ROLES.items() if other.startswith(section)}
    return not section_roles or not section_roles <= NOT_IDENTITY


def _is_analysed(column: Column) -> bool:
    """Return whether a column is a loss of the runs or, after something was done to them, an average or a change."""
    of = column.of
    if "statistic" in of or of.keys() & {"model", "text"}:
        return False
    if column.kind == "change":
        return of.get("measure") == "forgetting"
    return column.kind == "loss" and ("after" not in of or of.get("domain") in (*AVERAGES, "target"))
