"""What both papers measure, on a published model: text, probes and evaluations for `olmo-jax import`.

    olmo-jax import smollm2 --config=real_models --workdir=runs/smollm2 --run
    olmo-jax import smollm2 --config=real_models:finetune --workdir=runs/smollm2-code --run

The argument is a part of the study, optionally with `,smoke` for a size that runs in a minute and whose results mean
nothing:

    paper_a    geometry of unembedding and blocks, loss by domain, tasks, quantisation, noise, truncation (the default)
    finetune   paper B's first claim: the model is fine-tuned on code; local dimension of code and prose along the way

Sizes are chosen for a model of 135M parameters on two cores [ours]: 500 items of each task; 2,048 tokens per domain, of
at least four documents, since standard errors are over documents; GPTQ is calibrated on training text of all domains.
"""

import dataclasses

from ml_collections import ConfigDict

from eval.config import EvalConfig, FinetuneConfig, PerturbConfig, QuantizeConfig, TasksConfig
from olmo_jax.config import (
    ConfigError,
    DataConfig,
    ParametersConfig,
    ProbeConfig,
    TargetConfig,
    TextsConfig,
    TrainConfig,
)
from sweeps.planning.plan import sweep_config

TASKS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande", "lambada")
_UNEMBEDDING = (*ProbeConfig().unembedding.metrics, "power_law_alpha")
_LENGTH = 256
# The first claim's texts: the one that is fine-tuned on, and two kinds of prose that aren't.
_TEXTS = TextsConfig(
    names=("code", "prose", "prose_jax"), documents=24, document_tokens=96, points=1500, neighbors=64
)  # fmt: skip


def get_config(arg: str = "paper_a") -> ConfigDict:
    name, *options = arg.split(",")
    parts = {"paper_a": _paper_a, "finetune": _finetune}
    if name not in parts or options not in ([], ["smoke"]):
        known = ", ".join(parts)
        raise ConfigError(f"real_models.py has no argument '{arg}'; use {known}, with or without ',smoke'")
    train, evaluation = parts[name]()
    if options:
        train, evaluation = _smoke(train, evaluation)
    return sweep_config(train, [{}], evaluation)


def _paper_a() -> tuple[TrainConfig, EvalConfig]:
    data = DataConfig(corpus="debian_prose", max_megabytes=1.0, sequence_length=_LENGTH, batch_size=16)
    probe = ProbeConfig(
        unembedding=TargetConfig(metrics=_UNEMBEDDING, spectrum=True),
        parameters=ParametersConfig(metrics=("effective_rank_percent", "stable_rank"), pattern=r"(attention|mlp)/\w+$"),
        final_states=TargetConfig(metrics=("effective_rank_percent", "mean_cosine", "isoscore"), centred=True),
    )
    evaluation = EvalConfig(
        tokens_per_domain=2048,
        tokens_per_document=512,
        batch_size=16,
        quantize=QuantizeConfig(bits=(8, 4, 3), calibration_tokens=8192),
        perturb=PerturbConfig(relative=(0.05, 0.1), draws=2, pattern="blocks_.*", kept_ranks=(0.9, 0.75, 0.5)),
        tasks=TasksConfig(names=TASKS, most_items=500),
    )
    return TrainConfig(data=data, probe=probe), evaluation


def _finetune() -> tuple[TrainConfig, EvalConfig]:
    data = DataConfig(train_domains=("prose",), max_megabytes=4.0, sequence_length=_LENGTH, batch_size=8)
    probe = ProbeConfig(final_states=TargetConfig(), texts=_TEXTS)
    tuning = FinetuneConfig(
        targets=("code",), learning_rates=(2e-4,), seeds=(0, 1, 2), tokens=24 * 8 * _LENGTH, batch_size=8, points=2
    )
    evaluation = EvalConfig(
        tokens_per_domain=2048,
        domains=_TEXTS.names,
        batch_size=16,
        quantize=QuantizeConfig(bits=()),
        finetune=tuning,
    )
    return TrainConfig(data=data, probe=probe), evaluation


def _smoke(train: TrainConfig, evaluation: EvalConfig) -> tuple[TrainConfig, EvalConfig]:
    """Return the same with little text, the built-in corpus and the items of one small task."""
    texts = dataclasses.replace(train.probe.texts, documents=8, document_tokens=32, points=100, neighbors=32)
    data = dataclasses.replace(
        train.data, corpus="python_packages", train_domains=("prose",), max_megabytes=0.4, sequence_length=32
    )
    probe = dataclasses.replace(train.probe, texts=texts, documents=16, document_tokens=16)
    tuning = dataclasses.replace(evaluation.finetune, tokens=4 * 8 * 32, points=1, seeds=(0,))
    return dataclasses.replace(train, data=data, probe=probe), dataclasses.replace(
        evaluation,
        tokens_per_domain=256,
        quantize=dataclasses.replace(evaluation.quantize, calibration_tokens=256),
        tasks=TasksConfig(names=TASKS[1:2] if evaluation.tasks.names else (), most_items=4),
        finetune=tuning,
    )
