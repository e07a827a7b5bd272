"""A sweep of eight small models that also measures my_metric.py.

    olmo-jax run --config=sweep.py --workdir=runs/first
    olmo-jax run --config='sweep.py:texts/*.txt' --workdir=runs/mine

Without an argument the text is that of the installed Python packages. Every setting that the grid doesn't name can be
given on the command line, such as --config.train.tokens=1e6; `olmo-jax config` lists them.
"""

import my_metric  # noqa: F401  registers the metric

from olmo_jax.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, ProbeConfig, TrainConfig
from sweeps.planning.grid import product
from sweeps.planning.plan import sweep_config


def get_config(files: str = ""):
    text = {"corpus": "text_files", "files": (files,)} if files else {"train_domains": ("prose",), "max_megabytes": 6.0}
    train = TrainConfig(
        name="my-study",
        tokens=250_000,
        model=ModelConfig(vocab_size=2048, d_model=64, n_layers=4, n_heads=4, d_ff=256),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_fraction=0.05),
        data=DataConfig(bpe_vocab_size=2048, sequence_length=128, batch_size=16, **text),
        probe=ProbeConfig(document_tokens=32),
        checkpoint=CheckpointConfig(log_spaced=4),
    )
    # Each point of the grid is one model; seeds are settings like others.
    grid = product({"optimizer.weight_decay": [0.1, 1.0], "data.batch_size": [8, 32], "init_seed": [0, 1]})
    config = sweep_config(train, grid)
    config.train.probe.unembedding.metrics += ("longest_row",)
    return config
