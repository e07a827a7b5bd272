"""The demonstration: 12 small models, 2 batch sizes x 3 weight decays x 2 seeds, from text to report on a laptop.

    olmo-jax run --config=demo --workdir=demo          (`make demo`; 5 minutes on 2 cores)
    olmo-jax run --config=demo:smoke --workdir=/tmp/x  (every stage, 1 to 2 minutes; its results mean nothing)

Two cohorts, one per batch size. The cumulative weight decay, the sum over the steps of learning rate x weight decay,
spans .05 to 4 (methods.md section 5), the range in which decay can act as it does in paper A's suite. All values are
our own choice.
"""

import dataclasses

from ml_collections import ConfigDict

from eval.config import EvalConfig, FinetuneConfig, QuantizeConfig
from olmo_jax.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    TrainConfig,
)
from sweeps.planning.grid import product
from sweeps.planning.plan import sweep_config


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "smoke"):
        raise ConfigError(f"demo.py has no argument '{size}'; leave it out, or give 'smoke'")
    smoke = size == "smoke"
    train = TrainConfig(
        name="smoke" if smoke else "demo",
        tokens=8192 if smoke else 253_952,
        model=ModelConfig(
            vocab_size=512 if smoke else 2048,
            d_model=32 if smoke else 64,
            n_layers=1 if smoke else 4,
            n_heads=4,
            d_ff=128 if smoke else 256,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_fraction=0.05),
        data=DataConfig(
            train_domains=("prose",),
            max_megabytes=1.0 if smoke else 6.0,
            bpe_vocab_size=512 if smoke else 2048,
            sequence_length=64 if smoke else 128,
        ),
        # Measuring states takes forward passes over all documents; measuring matrices costs almost nothing.
        probe=ProbeConfig(
            every=8 if smoke else 62,
            unembedding=dataclasses.replace(ProbeConfig().unembedding, every=4 if smoke else 10),
            documents=48 if smoke else 96,
            document_tokens=32,
        ),
        checkpoint=CheckpointConfig(log_spaced=2 if smoke else 4),
    )
    evaluation = EvalConfig(
        tokens_per_domain=1024 if smoke else 4096,
        quantize=QuantizeConfig(bits=(4, 3)),  # 8 bits change no loss by more than 3e-5 nats
        finetune=FinetuneConfig(
            targets=("code",),
            tokens=2048 if smoke else 16_384,
            batch_size=8,
            learning_rates=(3e-4, 3e-3),
            points=2,  # each evaluates all domains, which takes longer than the training steps between them
        ),
    )
    grid = product({"data.batch_size": [8, 32], "optimizer.weight_decay": [0.25, 1.0, 5.0], "init_seed": [0, 1]})
    return sweep_config(train, grid, evaluation)
