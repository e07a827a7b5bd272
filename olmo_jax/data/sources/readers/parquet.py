"""Read rows of Parquet files with some of the columns, which may be fields of structs."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from olmo_jax.data import DataError
from olmo_jax.data.sources.readers.rows import value
from olmo_jax.errors import brief
from olmo_jax.storage.paths import printable

_ROWS_AT_ONCE = 1024


def rows(path: Path, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file with the columns that hold `fields`; a field of a struct is named with dots.

    Raises DataError for a field without a column, and for a file that can't be read as Parquet.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        leaves = {column.path for column in file.schema}
        for field in fields:
            if field not in names and field.split(".")[0] not in names:
                value(dict.fromkeys(names), field, f"{printable(path)}: row 1")
        columns = [field if any(_within(leaf, field) for leaf in leaves) else field.split(".")[0] for field in fields]
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
            yield from batch.to_pylist()


def count(path: Path) -> int:
    """Return the number of rows in the file's metadata. Raises DataError if it can't be read as Parquet."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _within(leaf: str, field: str) -> bool:
    return leaf == field or leaf.startswith(f"{field}.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except DataError:
        raise
    except Exception as e:  # noqa: BLE001  pyarrow raises many kinds of error for a damaged file
        raise DataError(f"{printable(path)}: can't be read as Parquet ({brief(e)}); fetch or write it again") from None
