"""DataDecide's published recipe, 4M to 150M parameters: does this trainer learn what theirs did?

    olmo-jax plan --config=datadecide:4m,text=dolma/*.json.gz,tokenizer=neox.json
    olmo-jax run --config=datadecide:4m+8m,seeds=3,text=GLOB,tokenizer=FILE --workdir=runs/datadecide
    olmo-jax report --workdir=runs/datadecide --join=ppl-results.parquet
    olmo-jax run --config=datadecide:cpu --workdir=runs/datadecide-cpu

The argument is a list of sizes separated by "+", `all` for the ten from 4m to 150m, or `cpu`; then options:

    cpu        the 4M model with small batches and few steps on debian_prose, for trying the recipe, not for the
               published loss; 19 minutes on 2 cores
    seeds=K    the first K of the published seeds: default (6198), small aux 2 (14), small aux 3 (15)
    text=GLOB  files of one of the published corpora; without it, the built-in prose stands in
    tokenizer=FILE  its tokenizer.json (theirs is GPT-NeoX's); without it, one of 50,280 tokens is trained on the text

`report --join` takes the published table of perplexities (allenai/DataDecide-ppl-results) and plots its curves with
these. Model, initial parameters, optimiser, schedule, batch and steps are the published ones [code], see recipe.py; the
order of the data and the probes are ours.
"""

import dataclasses

from ml_collections import ConfigDict

from eval.config import EvalConfig, QuantizeConfig
from olmo_jax.config import (
    CheckpointConfig,
    ConfigError,
    DataConfig,
    ProbeConfig,
    TrainConfig,
)
from sweeps.planning.grid import Grid, Point, cross, together
from sweeps.planning.plan import sweep_config
from sweeps.studies.datadecide import recipe

_OPTIONS = ("seeds", "text", "tokenizer")
# The reduced run [ours]: sequences of a batch, and steps.
_CPU_BATCH, _CPU_STEPS = 4, 140


def get_config(argument: str = "cpu") -> ConfigDict:
    scale, options = _parse(argument)
    sizes = recipe.SIZES if scale == "all" else ("4m",) if scale == "cpu" else tuple(scale.split("+"))
    count = int(options.get("seeds", 1))
    grid = cross([_sized(size, scale) for size in sizes], _seeds(count))
    train = _train(sizes[0], scale, options)
    evaluation = EvalConfig(
        tokens_per_domain=4096 if scale == "cpu" else 262_144,
        tokens_per_document=512 if scale == "cpu" else 0,
        quantize=QuantizeConfig(bits=()),
        batch_size=8,
    )
    return sweep_config(train, grid, evaluation, notes=_notes(scale, options))


def _parse(argument: str) -> tuple[str, dict[str, str]]:
    scale, *rest = argument.split(",")
    if scale not in ("all", "cpu") and not set(scale.split("+")) <= set(recipe.SIZES):
        raise ConfigError(f"datadecide.py has no size '{scale}'; sizes: {', '.join(recipe.SIZES)}, all, cpu")
    options = {}
    for part in rest:
        key, _, value = part.partition("=")
        if key not in _OPTIONS or not value:
            raise ConfigError(f"datadecide.py has no option '{part}'; options: {'=, '.join(_OPTIONS)}=")
        options[key] = value
    most = len(recipe.SEEDS)
    if options.get("seeds", "1") not in map(str, range(1, most + 1)):
        raise ConfigError(
            f"datadecide.py: seeds={options['seeds']} needs a number from 1 to {most}, the number of published seeds"
        )
    return scale, options


def _train(size: str, scale: str, options: dict[str, str]) -> TrainConfig:
    text = options.get("text")
    point = _sized(size, scale)
    model = recipe.model(size)
    return TrainConfig(
        name=size,
        tokens=point["tokens"],
        model=dataclasses.replace(model, compute_dtype="float32") if scale == "cpu" else model,
        optimizer=recipe.optimizer(size),
        data=DataConfig(
            corpus="text_files" if text else "debian_prose" if scale == "cpu" else "python_packages",
            files=(text,) if text else (),
            train_domains=() if text or scale == "cpu" else ("prose",),
            max_megabytes=20.0 if scale == "cpu" else 100_000.0,
            tokenizer=options.get("tokenizer", "bpe"),
            bpe_vocab_size=model.vocab_size,
            bpe_megabytes=20.0,
            sequence_length=recipe.SEQUENCE,
            batch_size=point["data.batch_size"],
            max_epochs=1.0 if text or scale == "cpu" else 1000.0,
        ),
        probe=ProbeConfig(every=20 if scale == "cpu" else recipe.CHECKPOINT_EVERY // 5),
        checkpoint=CheckpointConfig(every=_CPU_STEPS // 4 if scale == "cpu" else recipe.CHECKPOINT_EVERY),
    )


def _steps(size: str, scale: str) -> int:
    return _CPU_STEPS if scale == "cpu" else recipe.steps(size)


def _sized(size: str, scale: str) -> Point:
    """Return a size as overrides, the same fields for all sizes."""
    model = recipe.model(size)
    batch = _CPU_BATCH if scale == "cpu" else recipe.batch_size(size)
    optimizer = recipe.optimizer(size)
    return {
        "name": size,
        "tokens": _steps(size, scale) * batch * recipe.SEQUENCE,
        "data.batch_size": batch,
        "optimizer.learning_rate": optimizer.learning_rate,
        "optimizer.warmup_fraction": optimizer.warmup_fraction,
        **{f"model.{field}": getattr(model, field) for field in ("d_model", "n_layers", "n_heads", "d_ff")},
    }


def _seeds(count: int) -> Grid:
    chosen = list(recipe.SEEDS.values())[:count]
    return together({"init_seed": chosen, "data_seed": chosen})


def _notes(scale: str, options: dict[str, str]) -> list[str]:
    notes = [
        "the published recipe; losses can be compared with the published ones only on the same corpus and tokenizer"
    ]
    if scale == "cpu":
        notes.append(
            f"reduced: {_CPU_STEPS} steps of {_CPU_BATCH} sequences instead of {recipe.steps('4m'):,} of "
            f"{recipe.batch_size('4m')}, in float32 instead of bfloat16"
        )
    elif "text" not in options:
        notes.append(
            "the built-in prose stands in for the corpus, and is repeated many times; text=GLOB uses your own text"
        )
    return notes
