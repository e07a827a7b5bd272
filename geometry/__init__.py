"""Measure the geometry of weights and representations. Functions take arrays and don't depend on the models.

Names are imported when they are first used.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from geometry.alignment import log_alignment_ratio, principal_alignment
    from geometry.dimension import levina_bickel, local_two_nn, two_nn
    from geometry.gauge import gauge_fix
    from geometry.isotropy import isoscore, mean_cosine, partition_isotropy
    from geometry.probe import METRICS, Measured, metric, summarize
    from geometry.similarity import linear_cka
    from geometry.spectrum import (
        alpha_req,
        condition_number,
        effective_rank,
        participation_ratio,
        power_law_alpha,
        singular_entropy,
        singular_values,
        stable_rank,
    )

__all__ = [
    "METRICS",
    "Measured",
    "alpha_req",
    "condition_number",
    "effective_rank",
    "gauge_fix",
    "isoscore",
    "levina_bickel",
    "linear_cka",
    "local_two_nn",
    "log_alignment_ratio",
    "mean_cosine",
    "participation_ratio",
    "partition_isotropy",
    "power_law_alpha",
    "principal_alignment",
    "metric",
    "singular_entropy",
    "singular_values",
    "stable_rank",
    "summarize",
    "two_nn",
]
