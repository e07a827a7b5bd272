"""What is done with a checkpoint, as configuration."""

import dataclasses
import re
from typing import Any

from olmo_jax.config import ConfigError, one_of, require
from olmo_jax.config.field import (
    NOT_NEGATIVE,
    POSITIVE_WHOLE,
    POSITIVES,
    SEED,
    SEEDS,
    SHARE,
    Bound,
    Role,
    at_least,
    choice,
    each,
    setting,
    within,
)
from olmo_jax.config.validation import Settings

METHODS = ("round_to_nearest", "gptq")
# What shares a scale, and the range that a symmetric grid covers: see quantize.py.
GRANULARITIES = ("channel", "group", "tensor")
SYMMETRIC_GRIDS = ("max", "gptq")
# The projections of every block; embedding, unembedding and norms keep their precision.
BLOCK_PROJECTIONS = r"blocks_\d+/(attention|mlp)/\w+"

# Parts of a model that are quantised together, as patterns of parameter paths. Norms and biases never are.
SCOPES = {
    "blocks": BLOCK_PROJECTIONS,
    "blocks+unembedding": rf"{BLOCK_PROJECTIONS}|unembedding",
    "all": rf"{BLOCK_PROJECTIONS}|unembedding|embedding",
}


@dataclasses.dataclass(frozen=True)
class QuantizeConfig(Settings):
    """Quantisation of weights, emulated: bits x methods x scopes, the loss by domain after each."""

    bits: tuple[int, ...] = setting(
        (8, 4, 3),
        Role.OBSERVATION,
        "Widths, 2 to 8; () leaves quantisation out.",
        bound=each(within(2, 8), "needs widths of 2 to 8 bits"),
        unit="bits",
    )
    methods: tuple[str, ...] = setting(METHODS, Role.OBSERVATION, 'Methods: "round_to_nearest", "gptq".')
    scopes: tuple[str, ...] = setting(
        ("blocks",),
        Role.OBSERVATION,
        'Parts that are quantised together: "blocks" (the blocks\' projections), "blocks+unembedding", "all" (the '
        "embedding too), or a regular expression that the whole of a parameter's path has to match.",
    )
    granularity: str = setting(
        "channel",
        Role.OBSERVATION,
        "Weights that share a scale, as in quantize.round_to_nearest.",
        bound=choice(*GRANULARITIES),
    )
    group_size: int = setting(
        0,
        Role.OBSERVATION,
        'Inputs of a group where granularity is "group"; else 0.',
        bound=at_least(0, "needs a number of inputs, or 0 for no groups"),
    )
    symmetric: bool = setting(True, Role.OBSERVATION, "The grid is symmetric around 0.")
    grid: str = setting(
        "max",
        Role.OBSERVATION,
        "Range that the grid covers, as in quantize.round_to_nearest.",
        bound=choice(*SYMMETRIC_GRIDS),
    )
    act_order: bool = setting(
        False, Role.OBSERVATION, "GPTQ takes inputs in the order of their second moments, the largest first."
    )
    damping: float = setting(
        0.01,
        Role.OBSERVATION,
        "Share of the mean of the Hessian's diagonal that GPTQ adds to it.",
        bound=at_least(0, "needs a share of 0 or more"),
        unit="share",
    )
    calibration_tokens: int = setting(
        16384,
        Role.OBSERVATION,
        "Tokens of the training windows (those of data seed 0, whatever a run has seen) that GPTQ reads.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )

    def check_fields(self, at: str) -> None:
        for name in ("bits", "methods", "scopes"):
            _unique(getattr(self, name), f"{at}.{name}")
        for method in self.methods:
            one_of(method, METHODS, f"{at}.methods")
        for scope in self.scopes:
            try:
                re.compile(SCOPES.get(scope, scope))
            except re.error as error:
                known = ", ".join(SCOPES)
                raise ConfigError(
                    f"{at}.scopes: {scope!r} is none of {known} and no regular expression: {error}"
                ) from None
        require(
            (self.granularity == "group") == (self.group_size > 0),
            f"{at}.group_size",
            self.group_size,
            f"contradicts {at}.granularity = {self.granularity!r}: 'group' needs the number of inputs of a group, the "
            "others 0",
        )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Continued training of a checkpoint, with a fresh optimiser and linear decay to 0.

    Betas, eps and clipping are OptimizerConfig's defaults; z-loss and what is decayed are as in the run's training.
    Models, learning rates and seeds are the members of one cohort.
    """

    targets: tuple[str, ...] = setting(
        (),
        Role.OBSERVATION,
        'What is trained on, one after another: a domain of the data, or "task:NAME", the training items of a '
        "multiple-choice or classification task (its answers' tokens alone bear loss); () leaves fine-tuning out.",
    )
    learning_rates: tuple[float, ...] = setting(
        (1e-4, 1e-3), Role.OBSERVATION, "Peaks of the learning rate.", bound=POSITIVES
    )
    seeds: tuple[int, ...] = setting(
        (0,),
        Role.OBSERVATION,
        "Seeds of the order of the text, and of dropout; their mean and spread are reported.",
        bound=SEEDS,
    )
    tokens: int = setting(
        1_000_000,
        Role.OBSERVATION,
        "Tokens of each target, an item counted with its padding.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    batch_size: int = setting(
        32, Role.OBSERVATION, "Sequences, or items, of a step.", bound=POSITIVE_WHOLE, unit="sequences"
    )
    warmup_fraction: float = setting(
        0.1, Role.OBSERVATION, "Share of the steps over which the rate rises.", bound=SHARE, unit="share"
    )
    weight_decay: float = setting(0.0, Role.OBSERVATION, "Decoupled weight decay.", bound=NOT_NEGATIVE)
    points: int = setting(
        4,
        Role.OBSERVATION,
        "Times along the way, evenly spaced and with the end, at which losses and geometry are measured.",
        bound=POSITIVE_WHOLE,
    )
    train_items: int = setting(
        0,
        Role.OBSERVATION,
        "Items of a task that are trained on, drawn once for all models; 0 for all.",
        bound=at_least(0, "needs a number of items, or 0 for all"),
    )
    task_items: int = setting(
        500, Role.OBSERVATION, "Validation items of a task that are scored.", bound=POSITIVE_WHOLE
    )
    item_tokens: int = setting(
        128, Role.OBSERVATION, "Length of an item, cut on the left.", bound=POSITIVE_WHOLE, unit="tokens"
    )
    most_members: int = setting(
        64,
        Role.OBSERVATION,
        "Models x learning rates x seeds that are trained at a time.",
        bound=POSITIVE_WHOLE,
    )

    @property
    def domains(self) -> tuple[str, ...]:
        """The targets that are domains of the data."""
        return tuple(target for target in self.targets if not target.startswith("task:"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the targets that are tasks."""
        return tuple(target.removeprefix("task:") for target in self.targets if target.startswith("task:"))

    def check_fields(self, at: str) -> None:
        rates = self.learning_rates
        # The name of a result holds the rate to six digits.
        unique = len({f"{rate:g}" for rate in rates}) == len(rates)
        require(unique, f"{at}.learning_rates", rates, "names a rate twice (to six digits)")
        require(bool(rates) or not self.targets, f"{at}.learning_rates", rates, "needs one at least")
        require(bool(self.seeds), f"{at}.seeds", self.seeds, "needs one at least")
        _unique(self.seeds, f"{at}.seeds")
        # A domain may be named as a task is in a file's name.
        _unique(tuple(target.replace("task:", "task_", 1) for target in self.targets), f"{at}.targets")


@dataclasses.dataclass(frozen=True)
class PerturbConfig(Settings):
    """How the loss takes damage that no training made: noise on the weights, and an unembedding of lower rank."""

    absolute: tuple[float, ...] = setting(
        (),
        Role.OBSERVATION,
        "Standard deviations of Gaussian noise, in units of weights; () for none.",
        bound=POSITIVES,
    )
    relative: tuple[float, ...] = setting(
        (),
        Role.OBSERVATION,
        "Standard deviations over the root mean square of the matrix that the noise is added to.",
        bound=POSITIVES,
    )
    pattern: str = setting(
        ".*",
        Role.OBSERVATION,
        "Regular expression that the whole of a matrix's path has to match for it to get noise.",
    )
    draws: int = setting(
        3,
        Role.OBSERVATION,
        "Draws of the noise, the same for every model; mean and standard error are over these.",
        bound=POSITIVE_WHOLE,
    )
    seed: int = setting(0, Role.OBSERVATION, "Seed of the draws.", bound=SEED)
    kept_ranks: tuple[float, ...] = setting(
        (),
        Role.OBSERVATION,
        "Shares of its dimensions that the unembedding keeps, by descending singular value; () for none.",
        bound=each(Bound("(0, 1]", "needs shares in (0, 1]", lambda share: 0 < share <= 1)),
        unit="share",
    )

    def check_fields(self, at: str) -> None:
        for name in ("absolute", "relative"):
            _unique(tuple(f"{scale:g}" for scale in getattr(self, name)), f"{at}.{name}")
        _unique(tuple(f"{share:g}" for share in self.kept_ranks), f"{at}.kept_ranks")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"{at}.pattern = {self.pattern!r}: is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class TasksConfig(Settings):
    """Multiple choice by rank classification, and LAMBADA."""

    names: tuple[str, ...] = setting(
        (),
        Role.OBSERVATION,
        "Names of tasks, see olmo_jax/data/sources/task_items.py, or paths of .jsonl files of your own; () for none.",
    )
    most_items: int = setting(
        1000,
        Role.OBSERVATION,
        "Items of each task's validation set, drawn once for all models; 0 for all.",
        bound=NOT_NEGATIVE,
    )
    tokens: int = setting(
        0,
        Role.OBSERVATION,
        "Longest context with its answer, cut on the left; 0: as long as the training's sequences.",
        bound=NOT_NEGATIVE,
        unit="tokens",
    )

    def check_fields(self, at: str) -> None:
        _unique(self.names, f"{at}.names")


@dataclasses.dataclass(frozen=True)
class DynamicsConfig(Settings):
    """What happened over a run's checkpoints."""

    saturation: bool = setting(
        True,
        Role.OBSERVATION,
        "Whether the loss rose after its best, and when the unembedding's rank fell; at the last checkpoint.",
    )
    collapse: float = setting(
        0.8,
        Role.OBSERVATION,
        "The rank has collapsed once it is lower than this share of the highest before.",
        bound=Bound("(0, 1)", "needs a share between 0 and 1", lambda share: 0 < share < 1),
        unit="share",
    )
    collapse_after: float = setting(
        0.2,
        Role.OBSERVATION,
        "Share of the steps after which a collapse is looked for, since every rank falls from that of its random "
        "beginning.",
        bound=Bound("[0, 1)", "needs a share in [0, 1)", lambda share: 0 <= share < 1),
        unit="share",
    )
    cka: bool = setting(
        False,
        Role.OBSERVATION,
        "Linear CKA of each layer's states to those of the last checkpoint, at every checkpoint.",
    )
    cka_tokens: int = setting(
        1024, Role.OBSERVATION, "States that CKA is taken of.", bound=at_least(2, "needs at least 2"), unit="tokens"
    )


@dataclasses.dataclass(frozen=True)
class DimensionConfig(Settings):
    """How local dimension depends on how it is measured: of the texts and states of config.train.probe.texts."""

    points: tuple[int, ...] = setting(
        (),
        Role.OBSERVATION,
        "Numbers N of states. All pairs of these and `neighbors` are measured, at the last checkpoint; () for none.",
    )
    neighbors: tuple[int, ...] = setting(
        (32, 64, 128),
        Role.OBSERVATION,
        "Sizes L of neighbourhoods.",
        bound=each(at_least(3, ""), "needs numbers of at least 3"),
    )

    def check_fields(self, at: str) -> None:
        for name in ("points", "neighbors"):
            _unique(getattr(self, name), f"{at}.{name}")
        require(bool(self.neighbors) or not self.points, f"{at}.neighbors", self.neighbors, "needs one at least")
        require(
            not self.points or min(self.points) > max(self.neighbors),
            f"{at}.points",
            self.points,
            f"a point among {min(self.points, default=0)} has fewer than {max(self.neighbors, default=0)} others; "
            f"raise it, or lower {at}.neighbors",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig(Settings):
    """The evaluations of a sweep."""

    tokens_per_domain: int = setting(
        16384,
        Role.OBSERVATION,
        "Validation tokens of each domain that losses are taken over.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    domains: tuple[str, ...] = setting((), Role.OBSERVATION, "Domains that losses are taken of; () for all there are.")
    batch_size: int = setting(
        32, Role.OBSERVATION, "Windows that go through the models at a time.", bound=POSITIVE_WHOLE, unit="sequences"
    )
    all_checkpoints: bool = setting(
        True,
        Role.OBSERVATION,
        "Take the loss by domain at every checkpoint, or else at the last; the rest is at the last only.",
    )
    quantize: QuantizeConfig = QuantizeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    perturb: PerturbConfig = PerturbConfig()
    tasks: TasksConfig = TasksConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    dimension: DimensionConfig = DimensionConfig()

    def check_fields(self, at: str) -> None:
        _unique(self.domains, f"{at}.domains")


def _unique(values: tuple[Any, ...], key: str) -> None:
    require(len(set(values)) == len(values), key, values, "names something twice")
