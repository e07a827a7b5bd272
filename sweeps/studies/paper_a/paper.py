"""The suite of paper A (arXiv 2602.20433): 108 models, 6 sizes x 18 configurations, in full and reduced.

    olmo-jax plan --config=paper:paper
    olmo-jax run --config=paper:cpu,seeds=5 --workdir=runs/paper-cpu

The argument is a scale, then options, all separated by commas:

    paper   the suite as far as it is published; `text=GLOB` names its text, `tokenizer=FILE` its tokenizer.json
    gpu     all 108, reduced so that one H100-class GPU should finish them in about half an hour (not measured)
    cpu     all 108, tiny: 25 minutes on two cores with seeds=5, evaluations included (docs/results.md)
    sizes=READING  what the labels 4M to 75M count: `head` or `blocks` (sizes.py)
    norm=KIND      layer, without parameters as in OLMo-1; or rms, with a scale as in DataDecide
    lr=RULE        peak by size and budget: fixed, ladder or neighbours (sizes.py)
    lr_rule=RULE   learning rate by batch size: fixed, sqrt or linear
    schedule=NAME  shape of the way down from the peak: cosine, linear or wsd
    quantize=SET   channel, one scale per output; group128, per 128 inputs (see GroupsConfig); or both, channel+group128
    items=TASK     also fine-tune on the training items of a task, such as arc_easy
    vocabulary=V   size of the tokenizer and of the models' vocabulary
    seeds=K        K replicates (5 or more) of each size's default; all_seeds=K: of every configuration
    steps_matched  also batch sizes 64 and 256 with as many steps as the default (32 and 512 are in the suite)
    pythia         also Pythia-14M and its twin with the sequential block, at the largest budget
    tied           also the smallest size with tied embeddings
    pair_seeds=K   K replicates (3 or more) of the runs of pythia and tied
    corpus         also each size's default trained on the corpus's other domain, code; with text=GLOB: other=GLOB

The default is sizes=head. All public OLMo-style suites of small models that we know name their sizes by that count, a
co-author's among them, and it decides what can be seen: with 64 singular values and 786 tokens per dimension the 4M
model is narrow enough to be low-rank and to saturate, with 256 and 197 it hardly is. sizes=blocks is the reading of
this project's first results.

Values marked [A] are the paper's, [ours] are stand-ins for what it doesn't publish, [code] are from public code. A
reduced suite keeps the ratios between values of a factor and between sizes. Its shortest runs have at least 20 steps.
It keeps the cumulative weight decay of every configuration, except with lr=ladder, and with sizes=head the number of
vocabulary entries per dimension, V / D (half of it on a CPU). `plan` prints what it can't keep.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from eval.config import EvalConfig, FinetuneConfig, GroupsConfig, QuantizeConfig
from olmo_jax.config import (
    SCHEDULES,
    CheckpointConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ProbeConfig,
    TrainConfig,
)
from olmo_jax.config.presets import PYTHIA
from sweeps.planning.grid import Grid, Point, chain, cross, one_at_a_time, product, seeds
from sweeps.planning.plan import sweep_config
from sweeps.studies.paper_a.scales import (
    BATCH,
    BETWEEN_BATCHES,
    BUDGET,
    BUDGETS,
    DECAY,
    DECAYS,
    FACTORIAL_BATCHES,
    FINAL_FRACTIONS,
    LR_RULES,
    RATE_FACTORS,
    SCALES,
    Rates,
    rounded,
)
from sweeps.studies.paper_a.sizes import NORMS, RATE_RULES, SIZES, check_labels, counts

_BPE_MEGABYTES = 20.0  # [ours]; the tokenizer is trained on all of a smaller text

# Options that take one of these values, the first of which is the default.
_CHOICES = {
    "sizes": ("head", "blocks"),
    "norm": tuple(NORMS),
    "lr": RATE_RULES,
    "lr_rule": tuple(LR_RULES),
    "schedule": SCHEDULES,
    "quantize": ("channel", "group128", "channel+group128"),
}
_NUMBERS = {"seeds": 5, "all_seeds": 2, "pair_seeds": 3, "vocabulary": 256}  # with the least value of each
_TEXTS = ("text", "other", "tokenizer", "items")
_FLAGS = ("steps_matched", "pythia", "tied", "corpus")


@dataclasses.dataclass(frozen=True)
class _Options:
    """The file's argument: the scale's name, options with their values, and flags."""

    name: str
    values: dict[str, str]
    flags: set[str]

    def choice(self, key: str) -> str:
        return self.values.get(key, _CHOICES[key][0])

    def number(self, key: str, default: int) -> int:
        return int(self.values.get(key, default))


def get_config(argument: str = "paper") -> ConfigDict:
    options = _parse(argument)
    rates = _rates(options)
    train = _train(rates, options)
    evaluation = EvalConfig(
        tokens_per_domain=2048 if options.name == "cpu" else 65_536,
        all_checkpoints=options.name != "cpu",
        quantize=_quantization(rates, options),
        finetune=_finetuning(train, options),
    )
    return sweep_config(train, _suite(rates, options), evaluation, notes=_notes(rates, options))


def _parse(argument: str) -> _Options:
    """Return the options of the file's argument; raises ConfigError for an unknown one."""
    name, *rest = argument.split(",")
    if name not in SCALES:
        raise ConfigError(f"paper.py has no scale '{name}'; scales: {', '.join(SCALES)}")
    known = (*_NUMBERS, *_CHOICES, *_TEXTS)
    options, flags = {}, set()
    for part in rest:
        key, equals, value = part.partition("=")
        if equals and key in known and value:
            options[key] = value
        elif not equals and key in _FLAGS:
            flags.add(key)
        else:
            listed = ", ".join([*(f"{option}=" for option in known), *_FLAGS])
            raise ConfigError(f"paper.py has no option '{part}'; options: {listed}")
    for key, least in _NUMBERS.items():
        if key in options and not (options[key].isdigit() and int(options[key]) >= least):
            raise ConfigError(f"paper.py: {key}={options[key]} needs a whole number of {least} or more")
    for key, choices in _CHOICES.items():
        if options.get(key, choices[0]) not in choices:
            plural = "rules" if key == "lr_rule" else "choices"
            raise ConfigError(f"paper.py has no {key}={options[key]}; {plural}: {', '.join(choices)}")
    if "other" in options and not {"corpus"} <= flags:
        raise ConfigError("paper.py: other=GLOB is the text of the option corpus; add corpus")
    if "corpus" in flags and "text" in options and not {"other", "tokenizer"} <= options.keys():
        raise ConfigError(
            "paper.py: corpus with text=GLOB needs other=GLOB, the text to compare with, and tokenizer=FILE for both"
        )
    if "corpus" in flags and "other" in options and "text" not in options:
        raise ConfigError("paper.py: corpus with other=GLOB needs text=GLOB, the text to compare with")
    if "pair_seeds" in options and not flags & {"pythia", "tied"}:
        raise ConfigError("paper.py: pair_seeds=K replicates the pairs of the options pythia and tied; add one of them")
    return _Options(name, options, flags)


def _rates(options: _Options) -> Rates:
    reading = options.choice("sizes")
    scale = SCALES[options.name][reading]
    scale = dataclasses.replace(scale, vocabulary=options.number("vocabulary", scale.vocabulary))
    norm, eps = NORMS[options.choice("norm")]
    sizes = {label: dataclasses.replace(m, norm=norm, norm_eps=eps) for label, m in SIZES[reading].items()}
    if scale.is_full:
        sizes = {label: dataclasses.replace(m, vocab_size=scale.vocabulary) for label, m in sizes.items()}
        check_labels(sizes, reading)
    return Rates(scale, options.choice("lr"), LR_RULES[options.choice("lr_rule")], sizes)


def _train(rates: Rates, options: _Options) -> TrainConfig:
    """Return the default run of the smallest size."""
    text, scale = options.values.get("text"), rates.scale
    smallest = next(iter(rates.sizes.values()))
    return TrainConfig(
        tokens=scale.tokens(BUDGET),
        model=scale.model(smallest),
        optimizer=OptimizerConfig(  # betas, eps, clip, warm-up [ours, after code]; schedule [A], as OLMo's code has it
            learning_rate=rounded(rates.peak(smallest, BUDGET, BATCH)),
            weight_decay=rates.decay,
            final_fraction=0.1,
            schedule=options.choice("schedule"),
        ),
        data=DataConfig(  # the Pile [A]; the built-in corpus's prose stands in for it unless a text is named [ours]
            corpus="text_files" if text else "python_packages",
            files=(text,) if text else (),
            train_domains=() if text else ("prose",),
            max_megabytes=scale.megabytes,
            tokenizer=options.values.get("tokenizer", "bpe"),
            bpe_vocab_size=scale.vocabulary,
            bpe_megabytes=_BPE_MEGABYTES if text or scale.megabytes > _BPE_MEGABYTES else 0.0,
            max_epochs=scale.epochs,
            sequence_length=scale.context,
            batch_size=BATCH // scale.batch,
        ),
        probe=ProbeConfig(documents=64 if options.name == "cpu" else 128, document_tokens=min(scale.context, 64)),
        checkpoint=CheckpointConfig(log_spaced=4 if scale.batch > 8 else 8),
    )


def _quantization(rates: Rates, options: _Options) -> QuantizeConfig:
    chosen = options.choice("quantize").split("+")
    return QuantizeConfig(
        bits=(4, 3) if "channel" in chosen else (),
        groups=GroupsConfig(
            bits=(4, 3) if "group128" in chosen else (), calibration_tokens=rates.scale.calibration_tokens
        ),
    )


def _finetuning(train: TrainConfig, options: _Options) -> FinetuneConfig:
    targets = [] if "text" in options.values else ["code"]
    if "items" in options.values:
        targets.append(f"task:{options.values['items']}")
    if not targets:
        return FinetuneConfig()
    return FinetuneConfig(
        targets=tuple(targets),
        tokens=4096 if options.name == "cpu" else 1_000_000,
        batch_size=8 if options.name == "cpu" else 32,  # 32 [A]
        learning_rates=(train.optimizer.learning_rate / 3,),
        item_tokens=min(train.data.sequence_length, 128),
    )


def _suite(rates: Rates, options: _Options) -> Grid:
    by_size = [_sized(rates, label) for label in rates.sizes]
    configurations = chain(
        product({"tokens": BUDGETS, "data.batch_size": FACTORIAL_BATCHES}),
        *(
            one_at_a_time({"tokens": BUDGET, "data.batch_size": BATCH}, {key: values})[1:]
            for key, values in (
                ("data.batch_size", BETWEEN_BATCHES),
                ("optimizer.weight_decay", DECAYS),
                ("optimizer.learning_rate", RATE_FACTORS),
                ("optimizer.final_fraction", FINAL_FRACTIONS),
            )
        ),
    )
    if "steps_matched" in options.flags:
        matched = [{"tokens": BUDGET * batch // BATCH, "data.batch_size": batch} for batch in BETWEEN_BATCHES]
        configurations = chain(configurations, matched)
    grid = _at(rates, by_size, configurations)
    all_seeds, default_seeds = options.number("all_seeds", 1), options.number("seeds", 1)
    if all_seeds > 1:
        grid = _replicated(grid, 0, all_seeds)
    default: Point = {}
    if default_seeds > all_seeds:
        grid = chain(grid, _replicated(_at(rates, by_size, [default]), all_seeds, default_seeds))
    pairs: Grid = []
    if "pythia" in options.flags:
        pair = [_sized(rates, f"pythia-{label}", PYTHIA[label]) for label in ("14m", "14m-sequential")]
        pairs = chain(pairs, _at(rates, pair, [{"tokens": BUDGETS[-1]}]))
    if "tied" in options.flags:
        tied = by_size[0] | {"name": f"{by_size[0]['name']}-tied", "model.tied": True}
        pairs = chain(pairs, _at(rates, [tied], [default]))
    count = options.number("pair_seeds", 1)
    grid = chain(grid, _replicated(pairs, 0, count) if count > 1 else pairs)
    if "corpus" in options.flags:
        others = _at(rates, by_size, [default])
        grid = chain(grid, cross(others, [_other_corpus(options.values)]))
    return grid


def _sized(rates: Rates, label: str, preset: ModelConfig | None = None) -> Point:
    """Return a size as overrides of the smallest, with every field of the architecture that differs."""
    model = dataclasses.asdict(rates.scale.model(preset or rates.sizes[label]))
    base = dataclasses.asdict(rates.scale.model(next(iter(rates.sizes.values()))))
    sized = {key: value for key, value in model.items() if value != base[key]}
    return {"name": label} | {f"model.{key}": value for key, value in sized.items()}


def _at(rates: Rates, sized: Grid, settings: Grid) -> Grid:
    """Return every size at every configuration, given in the paper's numbers."""
    return [point | _setting(rates, point["name"], setting) for point in sized for setting in settings]


def _setting(rates: Rates, label: str, point: Point) -> Point:
    """Return overrides for a configuration in the paper's numbers, in which learning rates are factors of the peak."""
    scale = rates.scale
    paper: Point = {"tokens": BUDGET, "data.batch_size": BATCH, "optimizer.learning_rate": 1.0} | point
    tokens, batch = paper["tokens"], paper["data.batch_size"]
    size = rates.sizes.get(label.removesuffix("-tied")) or PYTHIA[label.removeprefix("pythia-")]
    overrides: dict[str, Any] = {
        "tokens": scale.tokens(tokens),
        "data.batch_size": batch // scale.batch,
        "optimizer.learning_rate": rounded(rates.peak(size, tokens, batch, paper["optimizer.learning_rate"])),
        "probe.every": _most_steps(rates, batch) // 8,
    }
    if "optimizer.weight_decay" in paper:
        overrides["optimizer.weight_decay"] = rounded(rates.decay * paper["optimizer.weight_decay"] / DECAY)
    if "optimizer.final_fraction" in paper:
        overrides["optimizer.final_fraction"] = paper["optimizer.final_fraction"]
    return overrides


def _most_steps(rates: Rates, batch: int) -> int:
    """Return the steps of the longest run at a batch size, on which probe.every depends as its cohort shares it."""
    budget = BUDGETS[-1] if batch in FACTORIAL_BATCHES else BUDGET
    return rates.scale.tokens(budget) // (batch // rates.scale.batch * rates.scale.context)


def _replicated(grid: Grid, first: int, end: int) -> Grid:
    """Vary initial parameters and data order, which gives the noise that effects are compared with."""
    return seeds(grid, end - first, keys=("init_seed", "data_seed"), first=first)


def _other_corpus(options: dict[str, str]) -> Point:
    if "other" in options:
        return {"data.name": "other", "data.files": (options["other"],)}
    return {"data.name": "code", "data.train_domains": ("code",)}


def _notes(rates: Rates, options: _Options) -> list[str]:
    scale = rates.scale
    notes = [
        "the choice of 18 configurations, sizes, context, peak, warm-up and Adam's numbers are ours: none is published"
    ]
    if scale.is_full:
        notes.append(f"parameters with the head and without the embedding, as OLMo counts: {counts(rates.sizes)}")
    else:
        notes += _reductions(rates, options)
    if "text" not in options.values:
        notes.append("the built-in corpus stands in for the Pile; text=GLOB uses your own text")
        if scale.epochs > 1:
            notes.append(
                "the largest budgets pass over the built-in corpus several times; text=GLOB of over 170 MB avoids that"
            )
    largest = max(rates.peak(size, BUDGET, BATCH) for size in rates.sizes.values())
    if largest * rates.decay * RATE_FACTORS[-1] >= 1:
        notes.append(
            f"untestable here: learning rate x{RATE_FACTORS[-1]:g}, whose weight decay would subtract "
            f"{largest * rates.decay * RATE_FACTORS[-1]:.2g} times each weight in one step"
        )
    return notes


def _reductions(rates: Rates, options: _Options) -> list[str]:
    """Return notes on what a reduced suite can't keep."""
    scale = rates.scale
    widths = [scale.model(size).d_model for size in rates.sizes.values()]
    full = [size.d_model for size in rates.sizes.values()]
    notes = [
        f"untestable here: claims that need the paper's sizes; {', '.join(rates.sizes)} have widths of "
        f"{', '.join(map(str, widths))} here and of {', '.join(map(str, full))} in full, which bounds their ranks"
    ]
    dimensions = scale.vocabulary / widths[0], next(iter(rates.sizes.values())).vocab_size / full[0]
    kept = abs(dimensions[0] / dimensions[1] - 1) < 0.05
    tokens = scale.tokens(BUDGET) / scale.vocabulary, BUDGET / 50280
    notes.append(
        f"tokens of the vocabulary per dimension of the smallest size: {dimensions[0]:.0f}"
        + (", as in the full suite" if kept else f", in the full suite {dimensions[1]:.0f}")
        + f"; the default sees each token of the vocabulary {tokens[0]:.0f} times on average, in full {tokens[1]:,.0f}"
    )
    if rates.decay < rates.kept_decay:
        notes.append(
            f"untestable here: the full suite's cumulative weight decays with lr={rates.rule}, of which "
            f"{rates.decay / rates.kept_decay:.2g} fits into the steps; its ratios are kept"
        )
    if scale.first_steps * OptimizerConfig().warmup_fraction < 0.5:
        notes.append(f"the shortest runs, of {scale.first_steps} steps, have no step of warm-up")
    if "group128" in options.choice("quantize"):
        notes.append(
            f"GPTQ in groups is calibrated on {scale.calibration_tokens:,} tokens instead of 524,288"
            + (", and models narrower than 128 have smaller groups" if min(widths) < 128 else "")
        )
    return notes
