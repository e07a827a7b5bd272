"""Text, probes and evaluations for imported models, unless `olmo-jax import` is given another file.

    olmo-jax import pythia-14m --workdir=runs/pythia --config.train.data.max_megabytes=24

`train.data` is the text: `train_domains` says which of its domains count as in-domain; nothing is trained on them. The
model, its name and its tokenizer are the imported ones; optimiser, batch and budget aren't used. Windows are cut to the
model's context.
"""

from ml_collections import ConfigDict

from olmo_jax.config import DataConfig, TrainConfig
from sweeps.planning.plan import sweep_config


def get_config() -> ConfigDict:
    train = TrainConfig(data=DataConfig(train_domains=("prose",), max_megabytes=6.0))
    return sweep_config(train, [{}])
