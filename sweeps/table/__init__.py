"""Build, write and read the tidy table of a sweep, and describe its columns."""

from sweeps.table.catalog import catalog_of
from sweeps.table.table import TABLE, build_table, read_table, write_table

__all__ = ["TABLE", "build_table", "catalog_of", "read_table", "write_table"]
