"""From a grid of configurations to a table and a report.

Each name is imported on first use.
"""

from etils import epy

from olmo_jax.moved import serve_former_names

with epy.lazy_api_imports(globals()):
    from sweeps.analysis import incremental_r2, partial_spearman, spearman
    from sweeps.planning.grid import chain, cross, one_at_a_time, product, seeds, together
    from sweeps.planning.plan import sweep_config
    from sweeps.table import catalog_of, read_table

__all__ = [
    "catalog_of",
    "chain",
    "cross",
    "incremental_r2",
    "one_at_a_time",
    "partial_spearman",
    "product",
    "read_table",
    "seeds",
    "spearman",
    "sweep_config",
    "together",
]

serve_former_names()
