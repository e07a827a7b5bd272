"""A sweep of one tiny run over one file of text: `--config=own.py:corpus.jsonl`."""

from ml_collections import ConfigDict

from olmo_jax.config import CheckpointConfig, DataConfig, ModelConfig, TrainConfig
from sweeps.planning.plan import sweep_config


def get_config(file: str = "corpus.jsonl") -> ConfigDict:
    train = TrainConfig(
        name="tiny",
        tokens=8 * 64,
        model=ModelConfig(vocab_size=300, pad_vocab_to=8, d_model=16, n_layers=1, n_heads=2, d_ff=32),
        data=DataConfig(
            corpus="text_files",
            files=(file,),
            domain_field="" if file.endswith(".txt") else "domain",
            bpe_vocab_size=300,
            validation_fraction=0.3,
            sequence_length=16,
            batch_size=4,
        ),
        checkpoint=CheckpointConfig(every=4),
    )
    return sweep_config(train, [{}])
