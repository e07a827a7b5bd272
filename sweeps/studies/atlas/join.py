"""Join a published table of results to the measured checkpoints, and list every row that finds no partner, or two."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from sweeps.report.joining import JoinError
from sweeps.studies.atlas.suites import KEYS, Suite


class Joined(NamedTuple):
    """The measured checkpoints with the published columns, and what didn't fit.

    Attributes:
      table: all measured rows, with the targets of their partner as `published/<column>`; missing without one.
      rejected: the published rows without a partner, or with several, with a column `why`, one of WHY. Some of the
        first two kinds are expected of a table of more models or steps than were measured; mislabelled rows are among
        them.
      alone: the measured rows without a partner.
    """

    table: pd.DataFrame
    rejected: pd.DataFrame
    alone: pd.DataFrame


NO_MODEL, NO_STEP, TWICE = (
    "no such model was measured",
    "this step of the model wasn't measured",
    "another row has the same keys",
)
WHY = (NO_MODEL, NO_STEP, TWICE)


def join(suite: Suite, measured: pd.DataFrame, published: pd.DataFrame) -> Joined:
    """Return the measured rows with the published columns.

    Raises JoinError for a table without the suite's columns or targets, and where nothing matches.
    """
    check_columns(suite, published)
    keys = [key for key in KEYS if key in suite.columns and key in measured]
    names = [suite.columns[key] for key in keys]
    published = published.reset_index(drop=True)
    if not keys:
        raise JoinError(f"--join: nothing of {', '.join(suite.columns)} is known of the measured checkpoints")
    theirs = pd.DataFrame({key: _labels(published[name], key) for key, name in zip(keys, names, strict=True)})
    measured = measured.reset_index(drop=True)
    ours = pd.DataFrame({key: _labels(_renamed(measured[key], suite.names.get(key, {})), key) for key in keys})
    twice = theirs.duplicated(keep=False)
    is_step = _among(theirs, ours, keys)
    of_model = [key for key in keys if key != "step"]
    is_model = _among(theirs, ours, of_model) if of_model else pd.Series(True, index=theirs.index)
    why = pd.Series(NO_MODEL, index=theirs.index).mask(is_model, NO_STEP).mask(is_step & twice, TWICE)
    fits = is_step & ~twice
    if is_step.any() and not fits.any():
        raise JoinError(
            f"--join: every row that matches a checkpoint shares its {', '.join(names)} with another row; keep one row "
            "per checkpoint, such as that of one task"
        )
    if not fits.any():
        raise JoinError(
            f"--join: no row of the table matches a measured checkpoint; its {', '.join(names)} are such as "
            f"{_first(theirs)}, and those measured such as {_first(ours)}"
        )
    targets = published[list(suite.targets)].add_prefix("published/")
    partners = pd.concat([theirs, targets], axis=1)[fits]
    place = ours.assign(row=range(len(ours))).merge(partners, on=keys, how="inner").sort_values("row")
    values = place.set_index("row")[[column for column in place if column.startswith("published/")]]
    return Joined(
        measured.join(values),
        published[~fits].assign(why=why[~fits]).reset_index(drop=True),
        measured[~_among(ours, theirs[fits], keys).to_numpy()],
    )


def check_columns(suite: Suite, published: pd.DataFrame) -> None:
    """Raise JoinError for a published table without the suite's columns and targets."""
    if not suite.columns:
        raise JoinError("--join: the suite says of no column of the table what it is; set its `columns`")
    if lacking := [name for name in (*suite.columns.values(), *suite.targets) if name not in published]:
        raise JoinError(f"--join: the table has no column {', '.join(lacking)}; it has {', '.join(published)[:300]}")


def _among(rows: pd.DataFrame, others: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Return which rows have the keys of one of the others."""
    merged = rows[keys].merge(others[keys].drop_duplicates(), on=keys, how="left", indicator=True)
    return pd.Series((merged["_merge"] == "both").to_numpy(), index=rows.index)


def _renamed(column: pd.Series, names: Mapping[str, str]) -> pd.Series:
    return column.map(lambda value: names.get(value, value))


def _labels(column: pd.Series, key: str) -> pd.Series:
    """Return a column's values in one spelling: 4M as 4m, steps as whole numbers, seeds with spaces, "" if missing."""
    if key == "step":
        return pd.to_numeric(column, errors="coerce").round().astype("Int64")
    text = column.map(_text).str.lower()
    return text.str.replace(r"[\s_-]+", " ", regex=True) if key == "seed" else text


def _text(value: Any) -> str:
    if pd.isna(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _first(labels: pd.DataFrame) -> str:
    return ", ".join(map(str, labels.iloc[0])) if len(labels) else "none"


def describe(joined: Joined) -> list[str]:
    """Return lines on what was joined and what wasn't, with the first rows of each kind that didn't fit."""
    lines = [f"joined {len(joined.table) - len(joined.alone)} of {len(joined.table)} checkpoints to the table"]
    for why in WHY:
        rows = joined.rejected[joined.rejected["why"] == why].drop(columns="why")
        if len(rows):
            first = ", ".join(f"{name} {value}" for name, value in list(rows.iloc[0].items())[:6])
            lines.append(f"left out {len(rows):,} rows of the table, as {why}; the first: {first}")
    return lines
