"""Train one cohort of language models: text in, checkpoints and metrics out.

The public API is listed here. Each name is imported on first use, so that commands that need no JAX start at once.
"""

from etils import epy

from olmo_jax.moved import serve_former_names

with epy.lazy_api_imports(globals()):
    from olmo_jax.checkpoint import load_run
    from olmo_jax.config import (
        CheckpointConfig,
        ComputeConfig,
        DataConfig,
        MeshConfig,
        ModelConfig,
        OptimizerConfig,
        ProbeConfig,
        TargetConfig,
        TextsConfig,
        TrainConfig,
    )
    from olmo_jax.hf import export_checkpoint, import_checkpoint
    from olmo_jax.model import apply, hidden, init, parameter_count, unembedding

__all__ = [
    "CheckpointConfig",
    "ComputeConfig",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProbeConfig",
    "TargetConfig",
    "TextsConfig",
    "TrainConfig",
    "apply",
    "export_checkpoint",
    "hidden",
    "import_checkpoint",
    "init",
    "load_run",
    "parameter_count",
    "unembedding",
]

serve_former_names()
