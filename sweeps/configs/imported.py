"""What imported models are looked at with, if `olmo-jax import` is given no other file: text, probes, evaluations.

    olmo-jax import pythia-14m --workdir=runs/pythia --config.train.data.max_megabytes=24

`train.data` is the text: `train_domains` says which of its domains count as in-domain, and nothing is trained on them.
The model, its name and its tokenizer are the imported ones; optimiser, batch and budget aren't used. Windows are no
longer than the model's context.
"""

from ml_collections import ConfigDict

from olmo_jax.config import DataConfig, TrainConfig
from sweeps.planning.plan import sweep_config


def get_config() -> ConfigDict:
    train = TrainConfig(data=DataConfig(train_domains=("prose",), max_megabytes=6.0))
    return sweep_config(train, [{}])
