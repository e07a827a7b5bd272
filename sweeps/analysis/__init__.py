"""From the table to statements: statistics of columns, clustered by configuration. Pure functions of a DataFrame.

The table has one row a (run, checkpoint). Seeds of a configuration and checkpoints of a run aren't independent, so
functions take `groups`, the column that names the cluster. Definitions and traps: methods.md, sections 1 and 5.
"""

from sweeps.analysis.associations import correlations
from sweeps.analysis.columns import (
    FIRST_TARGETS,
    LOSS_PREFIXES,
    PRIMARY_PAIR,
    SPECTRUM,
    SPREAD,
    FinalRows,
    as_levels,
    controls_of,
    final_rows,
    geometry_columns,
    loss_columns,
    spread_column,
    target_of,
)
from sweeps.analysis.correlation import partial_spearman, spearman
from sweeps.analysis.estimate import MIN_ROWS, AnalysisError, Estimate, UnknownColumnError

__all__ = [
    "FIRST_TARGETS",
    "LOSS_PREFIXES",
    "MIN_ROWS",
    "PRIMARY_PAIR",
    "SPECTRUM",
    "SPREAD",
    "AnalysisError",
    "Estimate",
    "FinalRows",
    "UnknownColumnError",
    "as_levels",
    "controls_of",
    "correlations",
    "final_rows",
    "geometry_columns",
    "loss_columns",
    "partial_spearman",
    "spearman",
    "spread_column",
    "target_of",
]
