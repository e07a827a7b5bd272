"""Checkpoint in, results out: loss by domain, quantisation, fine-tuning.

Each name is imported when it is first asked for.
"""

from etils import epy

from olmo_jax.moved import serve_former_names

with epy.lazy_api_imports(globals()):
    from eval.config import (
        DimensionConfig,
        DynamicsConfig,
        EvalConfig,
        FinetuneConfig,
        PerturbConfig,
        QuantizeConfig,
        TasksConfig,
    )
    from eval.quantize import round_to_nearest

__all__ = [
    "DimensionConfig",
    "DynamicsConfig",
    "EvalConfig",
    "FinetuneConfig",
    "PerturbConfig",
    "QuantizeConfig",
    "TasksConfig",
    "round_to_nearest",
]

serve_former_names()
