"""A single run of a preset on the built-in corpus, shared by the configurations of published architectures."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from olmo_jax.config import ConfigError, ModelConfig, OptimizerConfig, TrainConfig, to_config_dict


def single_run(family: str, size: str, presets: Mapping[str, ModelConfig], optimizer: OptimizerConfig) -> ConfigDict:
    """Return the configuration of a run of `presets[size]` with 2 million tokens.

    Raises ConfigError for an unknown size.
    """
    if size not in presets:
        raise ConfigError(f"{family}.py has no size '{size}'; sizes: {', '.join(presets)}")
    run = TrainConfig(name=f"{family}-{size}", tokens=2_000_000, model=presets[size], optimizer=optimizer)
    config = to_config_dict(run)
    config.data.train_domains = ("prose",)
    config.data.bpe_megabytes = 20.0
    config.data.sequence_length = 512
    config.data.batch_size = 32
    config.probe.every = 20
    config.checkpoint.log_spaced = 5
    return config
