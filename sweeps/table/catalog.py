"""What each column of a sweep's table means: one sentence, a unit and a kind, as results.schema.json has them.

Nothing is said twice: a metric's sentence is its docstring's, a setting's is the one that its field is declared with.
Only the columns that no function or field stands for have theirs here. What nobody has described says so.
"""

import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping, Sequence

from geometry import dimension, isotropy, spectrum
from geometry.probe import COUNTS, METRICS
from olmo_jax.config import TrainConfig
from olmo_jax.config.field import declared
from sweeps.table.columns import SPECTRUM, SPREAD, TEXTS

NOT_DESCRIBED = "not described"
NATS = "nats per token"


class Column(typing.NamedTuple):
    """One column.

    Attributes:
      meaning: one sentence, or NOT_DESCRIBED.
      unit: "" for text, and for numbers that have none.
      kind: "identity", "setting", "geometry", "loss", "evaluation", "training" or "count".
    """

    meaning: str
    unit: str
    kind: str


def schema(columns: Iterable[str]) -> dict[str, Column]:
    """The entry of each column, in the order given; none is left out."""
    return {column: describe(column) for column in columns}


def describe(column: str) -> Column:
    """The entry of one column of a table of sweeps.table."""
    if column in _FIXED:
        return _FIXED[column]
    if column.startswith("config."):
        return _setting(column.removeprefix("config."))
    target, _, name = column.rpartition("/")
    if target == "train":
        return _TRAINING.get(name, Column(NOT_DESCRIBED, "", "training"))
    if target.startswith(TEXTS) and name in _OF_TEXTS:
        meaning, unit = _OF_TEXTS[name]
        return Column(meaning.format(text=target.removeprefix(TEXTS)), unit, "loss" if name == "loss" else "evaluation")
    evaluation, _, result = column.partition("/")
    for pattern, words, results in _EVALUATIONS:
        if found := re.fullmatch(pattern, evaluation):
            return _evaluation(result, words.format(**_in_words(found.groupdict())), results)
    return _geometry(target, name) if target else Column(NOT_DESCRIBED, "", "evaluation")


_FIXED = {
    "sweep": Column("The sweep that the run is of, named by its folder.", "", "identity"),
    "run_id": Column("The run: its name and a hash of its configuration.", "", "identity"),
    "cohort": Column("The cohort that the run was trained in, as one program with others.", "", "identity"),
    "configuration": Column("The run without its seeds: runs that share it are replicates.", "", "identity"),
    "step": Column("The step of training after which the checkpoint was taken.", "steps", "identity"),
    "final": Column("Whether it is the run's last step.", "", "identity"),
    "tokens": Column("Tokens seen by then.", "tokens", "count"),
    "diverged_at": Column(
        "The step at which the run's loss, gradient or parameters stopped being finite.", "steps", "training"
    ),
    "parameters": Column("Parameters of the model, all of them.", "parameters", "count"),
    "parameters_non_embedding": Column(
        "Parameters of the model but those of embedding, unembedding and positions.", "parameters", "count"
    ),
    "training_flops": Column(
        "Operations of the matmuls of training until then, forward and backward, unembedding and attention included.",
        "FLOPs",
        "count",
    ),
    "weight_decay_dose": Column("Sum over the steps until then of learning rate times weight decay.", "", "training"),
}

_TRAINING = {
    "loss": Column("Mean cross-entropy over the batch of that step.", NATS, "training"),
    "grad_norm": Column("Global norm of the gradient at that step, before it is cut.", "", "training"),
    "learning_rate": Column("Learning rate of that step.", "", "training"),
}

# Of the texts of config.probe.texts.
_OF_TEXTS = {
    "loss": ("Loss on the text {text}, measured in the loop.", NATS),
    "accuracy": ("Share of the tokens of the text {text} that are the likeliest, measured in the loop.", "share"),
}

# Settings.


def _setting(key: str) -> Column:
    *sections, name = key.split(".")
    words = " ".join([*sections, name]).replace("_", " ")
    of: type = TrainConfig
    for section in sections:
        of = typing.get_type_hints(of).get(section, object)
    fields = {f.name: f for f in dataclasses.fields(of)} if dataclasses.is_dataclass(of) else {}
    if name not in fields:
        return Column(NOT_DESCRIBED, "", "setting")
    setting = declared(fields[name])
    meaning = _told(words, _first_sentence(setting.meaning)) if setting.meaning else NOT_DESCRIBED
    return Column(meaning, setting.unit, "setting")


# Geometry.

_TARGETS = {
    "unembedding": "the unembedding",
    "unembedding_gauge_fixed": "the unembedding without what the logits can't see",
    "embedding": "the embedding",
    "final_states": "the states after the final norm",
}
# Of metrics whose function says nothing, and none of the same name in geometry does.
_METRICS = {
    "energy_top_1": "Share of the sum of squared singular values in the largest.",
    "energy_top_10": "Share of the sum of squared singular values in the 10 largest.",
    "two_nn_mle": "TwoNN's intrinsic dimension, by maximum likelihood instead of the regression.",
    "local_two_nn_std": "Standard deviation over points of the TwoNN dimension around each.",
    "local_two_nn_q10": "10 % quantile over points of the TwoNN dimension around each.",
    "local_two_nn_median": "Median over points of the TwoNN dimension around each.",
    "local_two_nn_q90": "90 % quantile over points of the TwoNN dimension around each.",
    "local_two_nn_q5": "5 % quantile over points of the TwoNN dimension around each.",
    "local_two_nn_q25": "25 % quantile over points of the TwoNN dimension around each.",
    "local_two_nn_q75": "75 % quantile over points of the TwoNN dimension around each.",
    "local_two_nn_q95": "95 % quantile over points of the TwoNN dimension around each.",
}
_PERCENT = ("effective_rank_percent",)


def _geometry(target: str, name: str) -> Column:
    if target.endswith(SPECTRUM) and name.isdigit():
        of = _target(target.removesuffix(SPECTRUM))
        return Column(f"Singular value of {of} at place {name}, the largest at 1.", "", "geometry")
    if target.endswith(SPREAD):
        of = f"{target.removesuffix(SPREAD)}/{name}"
        return describe(of)._replace(meaning=f"Standard deviation of {of} over the probe's sets of documents.")
    meaning, kind = _told(f"Of {_target(target)}", metric_meaning(name)), "count" if name in COUNTS else "geometry"
    unit = "% of the columns" if name in _PERCENT else "rows" if name in ("points", "duplicates") else ""
    return Column(meaning, unit, kind)


def metric_meaning(name: str) -> str:
    """The first sentence on a registered metric: its own, else that of what it calls; NOT_DESCRIBED without any."""
    if name not in METRICS:
        return NOT_DESCRIBED
    if METRICS[name].__doc__:
        return _first_sentence(METRICS[name].__doc__ or "")
    of_geometry = METRICS[name].__module__ == "geometry.probe"
    if of_geometry and name in _METRICS:
        return _METRICS[name]
    modules = (spectrum, isotropy, dimension) if of_geometry else ()
    told = [f.__doc__ for module in modules if (f := getattr(module, name, None)) is not None and f.__doc__]
    return _first_sentence(told[0]) if told else NOT_DESCRIBED


def _target(target: str) -> str:
    plain = target.removesuffix("_centred")
    if found := re.fullmatch(r"(layer_\d+|final_states)\.(.+)", plain):
        return f"{_target(found[1])}, on the text {found[2]}"
    layer = re.fullmatch(r"layer_(\d+)", plain)
    words = f"the states after block {layer[1]}" if layer else _TARGETS.get(plain, f"the parameter {plain}")
    return words if plain == target else f"{words}, without the mean row"


# Evaluations.

_LOSSES = (
    (r"standard_error/(?P<domain>.+)", "Standard error, by document, of the loss {domain}", NATS, "evaluation"),
    (r"bits_per_byte/(?P<domain>.+)", "Loss over the bytes of the text, {domain}", "bits per byte", "evaluation"),
    (r"perplexity/(?P<domain>.+)", "Exponential of the loss {domain}", "", "evaluation"),
    (r"rise_standard_error/(?P<domain>.+)", "Paired standard error of the loss's rise {domain}", NATS, "evaluation"),
    (r"rise/(?P<domain>.+)", "Rise of the loss {domain}", NATS, "evaluation"),
    (r"(?P<domain>[^/]+)", "Loss {domain}", NATS, "loss"),
)
_QUANTIZED = (
    (r"error/weight", "Relative error of the weights, mean over matrices", "", "evaluation"),
    (r"error/output", "Relative error of outputs on the calibration tokens, mean over matrices", "", "evaluation"),
    (r"error/output_rounded", "The same by rounding to nearest, mean over matrices", "", "evaluation"),
    (r"error/damping", "Damping of the Hessians, mean over matrices", "", "evaluation"),
    *_LOSSES,
)
_FINETUNED = (
    (r"diverged", "Seeds whose fine-tuning diverged", "seeds", "evaluation"),
    (r"learning_rate", "That learning rate", "", "evaluation"),
    (r"step", "That step", "steps", "evaluation"),
    (r"train_loss", "Training loss of the last step", NATS, "evaluation"),
    (r"target", "Loss on what was trained on", NATS, "loss"),
    (r"forgetting", "Rise of the in-domain loss", NATS, "loss"),
    *_LOSSES,
)
_TASK = (
    (r"(?P<name>\w+)_standard_error", "Standard error of {name}", "", "evaluation"),
    (r"accuracy(?P<how>\w*)", "Share of items answered rightly, by log-likelihood{how}", "share", "evaluation"),
    (r"bits_per_byte", "Of the right answer", "bits per byte", "evaluation"),
    (r"nats", "Of the right answer", "nats", "evaluation"),
    (r"chance", "Accuracy of guessing", "share", "evaluation"),
    (r"items", "Items that were scored", "items", "count"),
)
_CKA = ((r"(?P<states>.+)", "Linear CKA of {states} to its states at the run's last checkpoint", "", "evaluation"),)
_DIMENSION = (
    (
        r"(?P<states>.+)/n(?P<points>\d+)_l(?P<neighbors>\d+)/local_two_nn",
        "Mean TwoNN dimension of {states} around {points} points in neighbourhoods of {neighbors}",
        "",
        "evaluation",
    ),
    (
        r"(?P<states>.+)/n(?P<points>\d+)_l(?P<neighbors>\d+)/local_two_nn_std",
        "Standard deviation over points of the same for {states}, {points} and {neighbors}",
        "",
        "evaluation",
    ),
    (r"(?P<states>.+)/n(?P<points>\d+)_l(?P<neighbors>\d+)/points", "Points that there were", "rows", "count"),
)
_SATURATION = (
    (r"saturated", "1 where the rise is more than two standard errors, else 0", "", "evaluation"),
    (r"best_step", "Step of the least in-domain loss of all checkpoints", "steps", "evaluation"),
    (r"rise", "Final in-domain loss minus the least of all checkpoints", NATS, "evaluation"),
    (r"rise_standard_error", "Paired standard error, by document, of the rise", NATS, "evaluation"),
    (r"highest_rank", "Highest effective rank of the unembedding after the first part of training", "", "evaluation"),
    (r"highest_rank_step", "Step of the highest effective rank", "steps", "evaluation"),
    (r"collapse_step", "Step at which that rank first lay below a share of its highest", "steps", "evaluation"),
    (r"rank_fall", "1 minus the last effective rank over the highest", "", "evaluation"),
    (r"learning_rate_at_best", "Learning rate at the best step, over its peak", "", "evaluation"),
)
# The evaluation's name, what it is in words, and its results: name, meaning, unit, kind; of several the first.
_EVALUATIONS = (
    (r"lm_loss", "", _LOSSES),
    (r"unigram", "Of a unigram model of the training tokens", _LOSSES),
    (r"round_to_nearest_(?P<bits>\d+)(?P<scope>_.+)?", "After rounding weights to {bits} bits{scope}", _QUANTIZED),
    (r"gptq_(?P<bits>\d+)(?P<scope>_.+)?", "After GPTQ to {bits} bits{scope}", _QUANTIZED),
    (r"noise_relative_(?P<x>.+)", "After noise of {x} of each matrix's root mean square", _LOSSES),
    (r"noise_absolute_(?P<x>.+)", "After noise of standard deviation {x}", _LOSSES),
    (r"truncation_(?P<x>.+)", "After the unembedding was cut to {x} of its dimensions", _LOSSES),
    (r"finetune_(?P<on>.+)_lr(?P<x>[^_]+)", "After fine-tuning on {on} at learning rate {x}", _FINETUNED),
    (
        r"finetune_(?P<on>.+)_best",
        "After fine-tuning on {on} at the rate and step of the least target loss",
        _FINETUNED,
    ),
    (r"task_(?P<x>.+)", "On the task {x}", _TASK),
    (r"cka", "", _CKA),
    (r"saturation", "", _SATURATION),
    (r"local_dimension", "", _DIMENSION),
)
_DOMAINS = {
    "in_domain": "over the domains trained on, which count alike",
    "out_of_domain": "over the other domains, which count alike",
    "macro": "over all domains, which count alike",
}
_PARTS = {"spread": "standard deviation over seeds", "best": "at the step of the least target loss"}


def _evaluation(name: str, words: str, results: Sequence[tuple[str, str, str, str]]) -> Column:
    """Of the result `name` of an evaluation that `words` tell of."""
    first, _, rest = name.partition("/")
    if first == "geometry":
        inner = describe(rest)
        return Column(_told(words, inner.meaning), inner.unit, "evaluation")
    if first in _PARTS and rest and results is _FINETUNED:
        inner = _evaluation(rest, f"{words}, {_PARTS[first]}", results)
        return inner._replace(kind="evaluation")
    for pattern, meaning, unit, kind in results:
        if found := re.fullmatch(pattern, name):
            return Column(_told(words, meaning.format(**_in_words(found.groupdict()))), unit, kind)
    return Column(NOT_DESCRIBED, "", "evaluation")


def _in_words(parts: Mapping[str, str | None]) -> dict[str, str]:
    words = {key: value or "" for key, value in parts.items()}
    if "domain" in words:
        words["domain"] = _DOMAINS.get(words["domain"], f"on {words['domain']}")
    if words.get("scope"):
        words["scope"] = f", {words['scope'].removeprefix('_')}"
    if "how" in words:
        words["how"] = words["how"].replace("_", " ")
    return words


# Words.


def _first_sentence(text: str) -> str:
    """Of a docstring or a piece of one: until the first full stop before a capital letter, or a blank line."""
    paragraph = re.split(r"\n\s*\n", text.strip())[0]
    line = " ".join(paragraph.split())
    return re.split(r"(?<=\.) (?=[A-Z])", line)[0]


def _told(before: str, meaning: str) -> str:
    """A sentence of what a column is of, and what of it; NOT_DESCRIBED stays."""
    if meaning == NOT_DESCRIBED:
        return meaning
    word = meaning.split()[0]
    inner = meaning[0].lower() + meaning[1:] if word[1:].islower() or word == "A" else meaning  # but N, TwoNN, KL
    return _sentence(f"{before}: {inner}" if before else meaning)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
