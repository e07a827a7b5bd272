r"""A sweep over your own text; copy it and change it.

    olmo-jax run --config='own_text:texts/*.txt' --workdir=runs/mine

The argument is a path or a glob of .txt, .jsonl, .json (one object per line; also .gz and .zst of these) or .parquet
files. A .txt is one document. One large text can be split at a separator of documents, or cut into blocks:

    --config.train.data.document_separator='<|endoftext|>'      or '\n\n', an empty line
    --config.train.data.block_characters=2000

If a field of the other formats holds a document's domain, name it: `--config.train.data.domain_field=source`, or
`=meta.source` for a nested field. Then `--config.train.data.train_domains` chooses the domains to train on, the others
are out of domain, and `--config.evaluation.finetune.targets=('law',)` names domains to fine-tune on.
"""

from ml_collections import ConfigDict

from olmo_jax.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, ProbeConfig, TrainConfig
from sweeps.planning.grid import cross, product, together
from sweeps.planning.plan import sweep_config


def get_config(files: str = "texts/*") -> ConfigDict:
    train = TrainConfig(
        name="mine",
        tokens=500_000,
        model=ModelConfig(vocab_size=2048, d_model=64, n_layers=4, n_heads=4, d_ff=256),
        optimizer=OptimizerConfig(warmup_fraction=0.05),
        data=DataConfig(
            corpus="text_files",
            files=(files,),
            bpe_vocab_size=2048,
            bpe_megabytes=20.0,
            sequence_length=128,
            batch_size=16,
        ),
        # Final states of 32 tokens rank models as those of 64, the default, do, but in half the time (docs/speed.md).
        probe=ProbeConfig(document_tokens=32),
        checkpoint=CheckpointConfig(log_spaced=4),
    )
    grid = cross(
        # A point is a dict of overrides by dotted key; `together` pairs its lists, `product` takes every combination.
        together({"optimizer.learning_rate": [1e-3, 5e-3], "optimizer.warmup_fraction": [0.02, 0.1]}),
        product({"optimizer.weight_decay": [0.1, 1.0], "init_seed": [0, 1]}),
    )
    return sweep_config(train, grid)
