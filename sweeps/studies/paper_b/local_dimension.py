"""Claims 1 to 3 of paper B (arXiv 2506.01034) on small models; the fourth is grokking.py.

    olmo-jax run --config=local_dimension:shift --workdir=runs/shift

The argument is an experiment, optionally with `,smoke` for a size that runs in seconds and whose results mean nothing:

    shift        models of prose are fine-tuned on code: local dimension of each domain before, during and after
    exhaustion   long training on little prose: does local dimension level off where validation stops improving?
    overfitting  models of prose learn to classify spam from few e-mails, far beyond the best validation loss

Six models each, which differ only in their seeds, so that an interval over them exists. All sizes are ours.
"""

import dataclasses

from ml_collections import ConfigDict

from eval.config import DimensionConfig, EvalConfig, FinetuneConfig, QuantizeConfig
from olmo_jax.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    TargetConfig,
    TextsConfig,
    TrainConfig,
)
from sweeps.planning.grid import seeds
from sweeps.planning.plan import sweep_config

_MODELS = 6
_BATCH, _LENGTH = 8, 128
_TEXTS = TextsConfig(
    metrics=(*TextsConfig().metrics, "effective_rank", "isoscore"),
    documents=128,
    document_tokens=128,
    points=1500,
    neighbors=64,
)


def get_config(arg: str = "shift") -> ConfigDict:
    name, *options = arg.split(",")
    experiments = {"shift": _shift, "exhaustion": _exhaustion, "overfitting": _overfitting}
    if name not in experiments or options not in ([], ["smoke"]):
        known = ", ".join(experiments)
        raise ConfigError(f"local_dimension.py has no argument '{arg}'; use {known}, with or without ',smoke'")
    train, evaluation = experiments[name]()
    grid = seeds([{}], _MODELS, ("init_seed", "data_seed"))
    if options:
        train, evaluation = _smoke(train), _smoke_evaluation(evaluation)
        grid = grid[:2]
    return sweep_config(train, grid, evaluation)


def _train(name: str, steps: int, texts: TextsConfig, probes: int, megabytes: float = 4.0) -> TrainConfig:
    return TrainConfig(
        name=name,
        tokens=steps * _BATCH * _LENGTH,
        model=ModelConfig(vocab_size=2048, d_model=64, n_layers=4, n_heads=4, d_ff=256),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_fraction=0.02),
        data=DataConfig(
            train_domains=("prose",),
            max_megabytes=megabytes,
            bpe_vocab_size=2048,
            sequence_length=_LENGTH,
            batch_size=_BATCH,
        ),
        probe=ProbeConfig(every=steps // probes, final_states=TargetConfig(), texts=texts),
        checkpoint=CheckpointConfig(every=steps // 2),
    )


def _shift() -> tuple[TrainConfig, EvalConfig]:
    texts = dataclasses.replace(_TEXTS, names=("prose", "code", "prose_jax"))
    tuning = FinetuneConfig(
        targets=("code",),
        learning_rates=(1e-3,),
        tokens=150 * _BATCH * _LENGTH,
        batch_size=_BATCH,
        points=5,
    )
    return _train("shift", 500, texts, probes=5), _evaluation(tuning, DimensionConfig((750, 1500)))


def _exhaustion() -> tuple[TrainConfig, EvalConfig]:
    texts = dataclasses.replace(_TEXTS, names=("train", "validation"))
    train = _train("exhaust", 900, texts, probes=45, megabytes=0.4)
    data = dataclasses.replace(train.data, max_epochs=100.0, validation_fraction=0.3)
    train = dataclasses.replace(train, data=data, optimizer=dataclasses.replace(train.optimizer, final_fraction=1.0))
    return train, _evaluation()


def _overfitting() -> tuple[TrainConfig, EvalConfig]:
    texts = dataclasses.replace(_TEXTS, names=("train", "validation"))
    tuning = FinetuneConfig(
        targets=("task:spam",),
        learning_rates=(1e-3,),
        tokens=300 * 16 * 64,
        batch_size=16,
        points=25,
        train_items=128,
        task_items=200,
        item_tokens=64,
    )
    # Loss by domain is measured at every point, but the claim isn't about it.
    return _train("overfit", 300, texts, probes=3), dataclasses.replace(_evaluation(tuning), tokens_per_domain=1024)


def _evaluation(
    tuning: FinetuneConfig = EvalConfig.finetune, dimension: DimensionConfig = EvalConfig.dimension
) -> EvalConfig:
    return EvalConfig(tokens_per_domain=4096, quantize=QuantizeConfig(bits=()), finetune=tuning, dimension=dimension)


def _smoke(train: TrainConfig) -> TrainConfig:
    texts = dataclasses.replace(train.probe.texts, documents=16, points=200, neighbors=32)
    steps = 16
    return dataclasses.replace(
        train,
        name=f"{train.name}-smoke",
        tokens=steps * _BATCH * _LENGTH,
        model=dataclasses.replace(train.model, vocab_size=512, d_model=32, n_layers=1),
        data=dataclasses.replace(train.data, max_megabytes=0.4, bpe_vocab_size=512, max_epochs=100.0),
        probe=dataclasses.replace(train.probe, every=2, texts=texts),
        checkpoint=CheckpointConfig(every=steps // 2),
    )


def _smoke_evaluation(evaluation: EvalConfig) -> EvalConfig:
    tuning = dataclasses.replace(evaluation.finetune, tokens=16 * _BATCH * _LENGTH, task_items=32, train_items=32)
    dimension = DimensionConfig((100, 200), (16, 32)) if evaluation.dimension.points else DimensionConfig()
    return dataclasses.replace(evaluation, tokens_per_domain=1024, finetune=tuning, dimension=dimension)
