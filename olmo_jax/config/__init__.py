"""The configuration of one run: frozen dataclasses, checked once, at the start (see validation.py)."""

from olmo_jax.config.branch import BranchConfig
from olmo_jax.config.compute import ComputeConfig
from olmo_jax.config.data import ArithmeticConfig, DataConfig
from olmo_jax.config.intervention import InterventionConfig
from olmo_jax.config.model import ModelConfig
from olmo_jax.config.probe import ParametersConfig, ProbeConfig, TargetConfig, TextsConfig
from olmo_jax.config.train import DECAY_SHAPES, SCHEDULES, CheckpointConfig, MeshConfig, OptimizerConfig, TrainConfig
from olmo_jax.config.validation import (
    ConfigError,
    folder_name,
    from_config_dict,
    one_of,
    require,
    to_config_dict,
    unknown_key,
)

__all__ = [
    "DECAY_SHAPES",
    "SCHEDULES",
    "ArithmeticConfig",
    "BranchConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "ConfigError",
    "DataConfig",
    "InterventionConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParametersConfig",
    "ProbeConfig",
    "TargetConfig",
    "TextsConfig",
    "TrainConfig",
    "folder_name",
    "from_config_dict",
    "one_of",
    "require",
    "to_config_dict",
    "unknown_key",
]
