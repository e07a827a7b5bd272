"""Read a published table and lay it beside a sweep's results, in the way of the sweep's study."""

from pathlib import Path

import pandas as pd

from olmo_jax.errors import UserError, brief
from sweeps.studies import registered_studies

_READERS = {".parquet": pd.read_parquet, ".csv": pd.read_csv}


class JoinError(UserError):
    """A published table that can't be read or doesn't fit the sweep."""

    exit_code = 2


def join_published(file: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return what each study of a sweep makes of a published table, by the study's name.

    Args:
      file: .parquet or .csv. table: the sweep's, one row per (run, checkpoint).

    Raises JoinError for a file that can't be read, and where no study of the sweep takes a table; UserError where the
    table doesn't fit.
    """
    studies = [study for study in registered_studies() if study.join is not None]
    chosen = [study for study in studies if study.joins(table)]
    if not chosen:
        known = ", ".join(study.name for study in studies)
        raise JoinError(f"--join={file}: this sweep has no runs of a study that takes a published table ({known})")
    published = read_published(file)
    return {study.name: study.join(published, table) for study in chosen if study.join is not None}


def read_published(file: str) -> pd.DataFrame:
    """Return the table in a .parquet or .csv file. Raises JoinError."""
    path = Path(file)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise JoinError(f"--join={file}: needs a table in {' or '.join(_READERS)}")
    if not path.is_file():
        raise JoinError(f"--join={file}: no such file")
    try:
        return reader(path)
    except (ValueError, OSError) as error:  # pyarrow's errors and pandas' parser errors are ValueErrors
        raise JoinError(f"--join={file}: can't be read as a table: {brief(error)}") from error
