"""Names of the metrics that describe the measurement, not the matrix; analyses don't relate them to a loss.

This module doesn't import JAX, so that code that only reads tables of metrics doesn't have to either. geometry.probe
adds the names that `count` registers.
"""

COUNTS: set[str] = {"points", "rank_cap", "duplicates"}
