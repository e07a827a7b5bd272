"""Names of the metrics that tell about the measurement, not about the matrix: nothing to relate to a loss.

Without JAX, for whoever reads tables of metrics; geometry.probe adds those that `count` registers.
"""

COUNTS: set[str] = {"points", "rank_cap", "duplicates"}
