"""Evaluate checkpoints: loss by domain, quantisation, perturbation, tasks and fine-tuning.

Names are imported when they are first used.
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
