"""Statistics of the table's columns, clustered by configuration: pure functions of a DataFrame.

The table has one row per (run, checkpoint). Seeds of a configuration and checkpoints of a run aren't independent, so
functions take `groups`, the column that names the cluster. For definitions and pitfalls see methods.md, sections 1
and 5.
"""

from sweeps.analysis.association import associations
from sweeps.analysis.correlation import partial_spearman, spearman
from sweeps.analysis.estimate import MIN_ROWS, Estimate
from sweeps.analysis.leads import LeadLag, change_point, lead_lag
from sweeps.analysis.mixed import mixed_effects
from sweeps.analysis.r2 import incremental_r2
from sweeps.analysis.saturation import Saturation, saturation_of
from sweeps.analysis.seed_noise import seed_deviation, seed_deviations
from sweeps.analysis.variance import variance_split
from sweeps.table.columns import (
    PRIMARY_PAIR,
    AnalysisError,
    FinalRows,
    UnknownColumnError,
    as_levels,
    controls_of,
    final_rows,
    geometry_columns,
    loss_columns,
    missing_as_level,
    spread_column,
    target_of,
)

__all__ = [
    "MIN_ROWS", "PRIMARY_PAIR", "AnalysisError", "Estimate", "FinalRows", "LeadLag", "Saturation",
    "UnknownColumnError", "as_levels", "associations", "change_point", "controls_of", "final_rows",
    "geometry_columns", "incremental_r2", "lead_lag", "loss_columns", "missing_as_level", "mixed_effects",
    "partial_spearman", "saturation_of", "seed_deviation", "seed_deviations", "spearman", "spread_column",
    "target_of", "variance_split",
]  # fmt: skip
