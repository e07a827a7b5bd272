"""What is done with a checkpoint, as configuration."""

import dataclasses
import math
import re

from eval.quantize import BLOCK_PROJECTIONS, GRANULARITIES, SYMMETRIC_GRIDS
from olmo_jax.config import ConfigError, one_of, require

METHODS = ("round_to_nearest", "gptq")

# Parts of a model that are quantised together, as patterns of parameter paths. Norms and biases never are.
SCOPES = {
    "blocks": BLOCK_PROJECTIONS,
    "blocks+unembedding": rf"{BLOCK_PROJECTIONS}|unembedding",
    "all": rf"{BLOCK_PROJECTIONS}|unembedding|embedding",
}


@dataclasses.dataclass(frozen=True)
class QuantizeConfig:
    """Quantisation of weights, emulated: bits x methods x scopes, the loss by domain after each.

    Attributes:
      bits: widths, 2 to 8; () leaves quantisation out.
      methods: "round_to_nearest", "gptq".
      scopes: "blocks" (the blocks' projections), "blocks+unembedding", "all" (the embedding too), or a regular
        expression that the whole of a parameter's path has to match.
      granularity, group_size, symmetric, grid: as in quantize.round_to_nearest; group_size 0 for none.
      act_order, damping: of GPTQ.
      calibration_tokens: of the training windows (those of data seed 0, whatever a run has seen) that GPTQ reads.
    """

    bits: tuple[int, ...] = (8, 4, 3)
    methods: tuple[str, ...] = METHODS
    scopes: tuple[str, ...] = ("blocks",)
    granularity: str = "channel"
    group_size: int = 0
    symmetric: bool = True
    grid: str = "max"
    act_order: bool = False
    damping: float = 0.01
    calibration_tokens: int = 16384

    def check(self, at: str) -> None:
        require(all(2 <= b <= 8 for b in self.bits), f"{at}.bits", self.bits, "needs widths of 2 to 8 bits")
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
        one_of(self.granularity, GRANULARITIES, f"{at}.granularity")
        one_of(self.grid, SYMMETRIC_GRIDS, f"{at}.grid")
        require(
            self.group_size >= 0, f"{at}.group_size", self.group_size, "needs a number of inputs, or 0 for no groups"
        )
        require(
            (self.granularity == "group") == (self.group_size > 0),
            f"{at}.group_size",
            self.group_size,
            f"contradicts {at}.granularity = {self.granularity!r}: 'group' needs the number of inputs of a group, the "
            "others 0",
        )
        require(self.damping >= 0, f"{at}.damping", self.damping, "needs a share of 0 or more")
        _positive(self.calibration_tokens, f"{at}.calibration_tokens")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Continued training of a checkpoint, with a fresh optimiser and linear decay to 0.

    Betas, eps and clipping are OptimizerConfig's defaults; z-loss and what is decayed are as in the run's training.
    Models, learning rates and seeds are the members of one cohort.

    Attributes:
      targets: what is trained on, one after another: a domain of the data, or "task:NAME", the training items of a
        multiple-choice or classification task (its answers' tokens alone bear loss); () leaves fine-tuning out.
      learning_rates: peaks. seeds: of the order of the text, and of dropout; their mean and spread are reported.
      tokens: of each target, an item counted with its padding. batch_size: sequences, or items, a step.
      warmup_fraction, weight_decay: as in OptimizerConfig.
      points: times along the way, evenly spaced and with the end, at which losses and geometry are measured.
      train_items: items of a task that are trained on, drawn once for all models; 0 for all. task_items: validation
        items of a task that are scored. item_tokens: an item's length, cut on the left.
      most_members: models x learning rates x seeds that are trained at a time.
    """

    targets: tuple[str, ...] = ()
    learning_rates: tuple[float, ...] = (1e-4, 1e-3)
    seeds: tuple[int, ...] = (0,)
    tokens: int = 1_000_000
    batch_size: int = 32
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    points: int = 4
    train_items: int = 0
    task_items: int = 500
    item_tokens: int = 128
    most_members: int = 64

    @property
    def domains(self) -> tuple[str, ...]:
        """The targets that are domains of the data."""
        return tuple(target for target in self.targets if not target.startswith("task:"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the targets that are tasks."""
        return tuple(target.removeprefix("task:") for target in self.targets if target.startswith("task:"))

    def check(self, at: str) -> None:
        rates = self.learning_rates
        require(all(rate > 0 for rate in rates), f"{at}.learning_rates", rates, "needs positive numbers")
        # The name of a result holds the rate to six digits.
        unique = len({f"{rate:g}" for rate in rates}) == len(rates)
        require(unique, f"{at}.learning_rates", rates, "names a rate twice (to six digits)")
        require(bool(rates) or not self.targets, f"{at}.learning_rates", rates, "needs one at least")
        require(bool(self.seeds), f"{at}.seeds", self.seeds, "needs one at least")
        require(all(0 <= s < 2**32 for s in self.seeds), f"{at}.seeds", self.seeds, "needs numbers in [0, 2^32)")
        _unique(self.seeds, f"{at}.seeds")
        # A domain may be named as a task is in a file's name.
        _unique(tuple(target.replace("task:", "task_", 1) for target in self.targets), f"{at}.targets")
        for name in ("tokens", "batch_size", "points", "task_items", "item_tokens", "most_members"):
            _positive(getattr(self, name), f"{at}.{name}")
        require(self.train_items >= 0, f"{at}.train_items", self.train_items, "needs a number of items, or 0 for all")
        require(self.weight_decay >= 0, f"{at}.weight_decay", self.weight_decay, "needs a number of 0 or more")
        require(
            0 <= self.warmup_fraction <= 1, f"{at}.warmup_fraction", self.warmup_fraction, "needs a number in [0, 1]"
        )


@dataclasses.dataclass(frozen=True)
class PerturbConfig:
    """How the loss takes damage that no training made: noise on the weights, and an unembedding of lower rank.

    Attributes:
      absolute: standard deviations of Gaussian noise, in units of weights; () for none.
      relative: standard deviations over the root mean square of the matrix that the noise is added to.
      pattern: regular expression that the whole of a matrix's path has to match for it to get noise.
      draws: of the noise, the same for every model; mean and standard error are over these. seed: of the draws.
      kept_ranks: shares of its dimensions that the unembedding keeps, by descending singular value; () for none.
    """

    absolute: tuple[float, ...] = ()
    relative: tuple[float, ...] = ()
    pattern: str = ".*"
    draws: int = 3
    seed: int = 0
    kept_ranks: tuple[float, ...] = ()

    def check(self, at: str) -> None:
        for name in ("absolute", "relative"):
            scales = getattr(self, name)
            require(all(0 < s < math.inf for s in scales), f"{at}.{name}", scales, "needs positive numbers")
            _unique(tuple(f"{s:g}" for s in scales), f"{at}.{name}")
        shares = self.kept_ranks
        require(all(0 < s <= 1 for s in shares), f"{at}.kept_ranks", shares, "needs shares in (0, 1]")
        _unique(tuple(f"{s:g}" for s in shares), f"{at}.kept_ranks")
        _positive(self.draws, f"{at}.draws")
        require(0 <= self.seed < 2**32, f"{at}.seed", self.seed, "needs a number in [0, 2^32)")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(f"{at}.pattern = {self.pattern!r}: is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class TasksConfig:
    """Multiple choice by rank classification, and LAMBADA.

    Attributes:
      names: of tasks, see olmo_jax/data/sources/task_items.py, or paths of .jsonl files of your own; () for none.
      most_items: of each task's validation set, drawn once for all models; 0 for all.
      tokens: longest context with its answer, cut on the left; 0: as long as the training's sequences.
    """

    names: tuple[str, ...] = ()
    most_items: int = 1000
    tokens: int = 0

    def check(self, at: str) -> None:
        _unique(self.names, f"{at}.names")
        for name in ("most_items", "tokens"):
            require(getattr(self, name) >= 0, f"{at}.{name}", getattr(self, name), "needs a number of 0 or more")


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """What happened over a run's checkpoints.

    Attributes:
      saturation: whether the loss rose after its best, and when the unembedding's rank fell; at the last checkpoint.
      collapse: the rank has collapsed once it is lower than this share of the highest before; collapse_after: of what
        was measured after this share of the steps, since every rank falls from that of its random beginning.
      cka: linear CKA of each layer's states to those of the last checkpoint, at every checkpoint. cka_tokens: states.
    """

    saturation: bool = True
    collapse: float = 0.8
    collapse_after: float = 0.2
    cka: bool = False
    cka_tokens: int = 1024

    def check(self, at: str) -> None:
        require(0 < self.collapse < 1, f"{at}.collapse", self.collapse, "needs a share between 0 and 1")
        require(0 <= self.collapse_after < 1, f"{at}.collapse_after", self.collapse_after, "needs a share in [0, 1)")
        require(self.cka_tokens > 1, f"{at}.cka_tokens", self.cka_tokens, "needs at least 2")


@dataclasses.dataclass(frozen=True)
class DimensionConfig:
    """How local dimension depends on how it is measured: of the texts and states of config.train.probe.texts.

    Attributes:
      points: numbers N of states. neighbors: sizes L of neighbourhoods; all pairs are measured, at the last checkpoint;
        () for none.
    """

    points: tuple[int, ...] = ()
    neighbors: tuple[int, ...] = (32, 64, 128)

    def check(self, at: str) -> None:
        for name in ("points", "neighbors"):
            _unique(getattr(self, name), f"{at}.{name}")
        require(bool(self.neighbors) or not self.points, f"{at}.neighbors", self.neighbors, "needs one at least")
        require(all(n > 2 for n in self.neighbors), f"{at}.neighbors", self.neighbors, "needs numbers of at least 3")
        require(
            not self.points or min(self.points) > max(self.neighbors),
            f"{at}.points",
            self.points,
            f"a point among {min(self.points, default=0)} has fewer than {max(self.neighbors, default=0)} others; "
            f"raise it, or lower {at}.neighbors",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """The evaluations of a sweep.

    Attributes:
      tokens_per_domain: validation tokens of each domain that losses are taken over.
      domains: those that losses are taken of; () for all that there are.
      batch_size: windows that go through the models at a time.
      all_checkpoints: take the loss by domain at every checkpoint, or else at the last; the rest is at the last only.
    """

    tokens_per_domain: int = 16384
    domains: tuple[str, ...] = ()
    batch_size: int = 32
    all_checkpoints: bool = True
    quantize: QuantizeConfig = QuantizeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    perturb: PerturbConfig = PerturbConfig()
    tasks: TasksConfig = TasksConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    dimension: DimensionConfig = DimensionConfig()

    def check(self, at: str) -> None:
        for name in ("tokens_per_domain", "batch_size"):
            _positive(getattr(self, name), f"{at}.{name}")
        _unique(self.domains, f"{at}.domains")


def _positive(value: int, key: str) -> None:
    require(value > 0, key, value, "needs a positive whole number")


def _unique(values: tuple, key: str) -> None:
    require(len(set(values)) == len(values), key, values, "names something twice")
