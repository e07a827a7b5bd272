"""Fine-tune a stack of models, with all learning rates and seeds as members of one cohort; make their batches."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval import task_rows
from eval.eval_data import EvalData, StoppedError
from olmo_jax import optimizer
from olmo_jax.cohort import Shape
from olmo_jax.config import CheckpointConfig, OptimizerConfig, TrainConfig, require
from olmo_jax.config.field import NOT_NEGATIVE, POSITIVE_WHOLE, POSITIVES, SEEDS, SHARE, Role, at_least, setting
from olmo_jax.config.model import parameter_count
from olmo_jax.config.validation import Settings, unique
from olmo_jax.console import progress
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import task_items
from olmo_jax.data.windows import in_order, train_windows
from olmo_jax.execution import memory
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution.members import over_members
from olmo_jax.probes.texts import EvaluationSet, scored_set, text_sets, texts_by_name
from olmo_jax.step import State, init_member, member_step


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(Settings):
    """Continued training of a checkpoint by AdamW, whatever it was trained by, with linear decay to 0.

    Betas, eps and clipping are OptimizerConfig's defaults; z-loss and the set of decayed parameters are
    those of the run's training. Models, learning rates and seeds are the members of one cohort.
    """

    targets: tuple[str, ...] = setting(
        (),
        Role.OBSERVATION,
        'What to fine-tune on, each separately: a domain of the data, or "task:NAME", the training items of a '
        "multiple-choice or classification task (only tokens of answers count in the loss); () for no fine-tuning.",
    )
    learning_rates: tuple[float, ...] = setting((1e-4, 1e-3), Role.OBSERVATION, "Peak learning rates.", bound=POSITIVES)
    seeds: tuple[int, ...] = setting(
        (0,),
        Role.OBSERVATION,
        "Seeds of the order of the text, and of dropout; the mean and the spread over them are reported.",
        bound=SEEDS,
    )
    tokens: int = setting(
        1_000_000,
        Role.OBSERVATION,
        "Training tokens per target; an item counts with its padding.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    batch_size: int = setting(
        32, Role.OBSERVATION, "Sequences, or items, per step.", bound=POSITIVE_WHOLE, unit="sequences"
    )
    warmup_fraction: float = setting(
        0.1, Role.OBSERVATION, "Share of the steps over which the learning rate rises.", bound=SHARE, unit="share"
    )
    weight_decay: float = setting(0.0, Role.OBSERVATION, "Decoupled weight decay.", bound=NOT_NEGATIVE)
    points: int = setting(
        4,
        Role.OBSERVATION,
        "Number of evenly spaced steps, the last one included, at which losses and geometry are measured.",
        bound=POSITIVE_WHOLE,
    )
    train_items: int = setting(
        0,
        Role.OBSERVATION,
        "Number of a task's items to train on, drawn once for all models; 0 for all.",
        bound=at_least(0, "needs a number of items, or 0 for all"),
    )
    task_items: int = setting(
        500, Role.OBSERVATION, "Number of validation items of a task that are scored.", bound=POSITIVE_WHOLE
    )
    item_tokens: int = setting(
        128,
        Role.OBSERVATION,
        "Length of an item; longer ones are truncated on the left.",
        bound=POSITIVE_WHOLE,
        unit="tokens",
    )
    most_members: int = setting(
        64,
        Role.OBSERVATION,
        "Most models x learning rates x seeds that are trained together.",
        bound=POSITIVE_WHOLE,
    )

    @property
    def domains(self) -> tuple[str, ...]:
        """Return the targets that are domains of the data."""
        return tuple(target for target in self.targets if not target.startswith("task:"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the names of the targets that are tasks."""
        return tuple(target.removeprefix("task:") for target in self.targets if target.startswith("task:"))

    def check_fields(self, at: str) -> None:
        rates = self.learning_rates
        # The name of a result holds the rate to six digits.
        distinct = len({f"{rate:g}" for rate in rates}) == len(rates)
        require(distinct, f"{at}.learning_rates", rates, "names a rate twice (to six digits)")
        require(bool(rates) or not self.targets, f"{at}.learning_rates", rates, "needs at least one")
        require(bool(self.seeds), f"{at}.seeds", self.seeds, "needs at least one")
        unique(self.seeds, f"{at}.seeds")
        # In file names a task is called task_NAME, which may also be the name of a domain.
        unique(tuple(target.replace("task:", "task_", 1) for target in self.targets), f"{at}.targets")


Row = dict[str, float]
# From a step to its tokens `[S, B, L + 1]`, one batch per seed, and the weights `[S, B, L]` of predictions or None.
Batches = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


class Curve(NamedTuple):
    """The fine-tuning curve of one model at one learning rate and seed.

    Attributes:
      rows: one row of numbers per measured step.
      diverged_at: the step at which the model became non-finite, or -1. It then keeps its last finite parameters, and
        later rows say nothing about fine-tuning: leave the curve out.
    """

    rows: list[Row]
    diverged_at: int


def finetune(
    config: FinetuneConfig,
    shape: Shape,
    params_M: Any,
    batches: Batches,
    measure: Callable[[Any], list[Row]],
    stop: Callable[[], bool] = lambda: False,
) -> dict[tuple[float, int], list[Curve]]:
    """Fine-tune every model of a stack at every learning rate and seed, as one cohort of rates x seeds x models.

    If they don't fit into memory together, they are trained in groups of as many rates and seeds as fit.

    Args:
      shape: that of the models' cohort, but with the batch size and sequence length of `batches`.
      params_M: the stacked parameters. batches: function of the step, counted from 0.
      measure: function of stacked parameters that returns one row per member; called at `config.points` steps.
      stop: whether to stop, called at each step.

    Returns:
      The curve of each model, by (learning rate, seed). Raises StoppedError if `stop` returns True.
    """
    optimizer_config = dataclasses.replace(shape.config.optimizer, name="adamw")
    shape = shape.with_config(optimizer=optimizer_config, checkpoint=CheckpointConfig())
    places = [(rate, seed) for rate in config.learning_rates for seed in config.seeds]
    at_once = _places_at_once(shape, len(jax.tree.leaves(params_M)[0]), len(places))
    groups = [places[first : first + at_once] for first in range(0, len(places), at_once)]
    curves: dict[tuple[float, int], list[Curve]] = {}
    steps = _run(config, shape, *places[0]).total_steps
    with progress("  steps of fine-tuning", len(groups) * steps, within=True) as show:
        for number, group in enumerate(groups):

            def taken(step: int, before: int = number * steps) -> None:
                show(before + step, "")

            curves |= _together(config, shape, group, params_M, batches, measure, stop, taken)
    return curves


# Share of a device's memory to fill, by an estimate that is right within a factor of two.
_FILLED = 0.5


def _places_at_once(shape: Shape, models: int, places: int) -> int:
    """Return how many learning rates and seeds of all models fit into memory together; at least one."""
    tokens, parameters = shape.tokens_per_step, parameter_count(shape.model)[0]
    side_by_side = jax.default_backend() != "cpu"

    def needed(count: int) -> float:
        members = models * count
        plan = _plan(shape, members if side_by_side else 1)
        return execution_plan.rough_bytes(shape.model, tokens, shape.sequence_length, parameters, members, plan)

    return max([1, *(n for n in range(1, places + 1) if needed(n) <= _FILLED * memory.device_memory())])


def _plan(shape: Shape, members: int) -> execution_plan.ExecutionPlan:
    # The other execution settings of the training depend on its machine and batch size.
    return execution_plan.forward(shape.model)._replace(remat=shape.config.compute.remat, members=members)


def _together(
    config: FinetuneConfig,
    shape: Shape,
    places: Sequence[tuple[float, int]],
    params_M: Any,
    batches: Batches,
    measure: Callable[[Any], list[Row]],
    stop: Callable[[], bool],
    taken: Callable[[int], None],
) -> dict[tuple[float, int], list[Curve]]:
    """Return the curves of every model at these learning rates and seeds, which train as one cohort."""
    models = len(jax.tree.leaves(params_M)[0])
    runs = [_run(config, shape, rate, seed) for rate, seed in places]
    hyper = jax.tree.map(lambda *xs: jnp.repeat(jnp.stack(xs), models), *map(optimizer.hyper, runs))
    state = _initial(jax.tree.map(lambda x: jnp.concatenate([x] * len(places)), params_M), shape.config.optimizer)
    plan = _plan(shape, models * len(places))
    seed_M = np.repeat([config.seeds.index(seed) for _, seed in places], models)

    rows: list[list[Row]] = [[] for _ in seed_M]
    total = runs[0].total_steps
    due = {round(total * (k + 1) / config.points) for k in range(config.points)} - {0}
    metrics = None
    for i in range(total):
        if stop():
            raise StoppedError
        tokens_SBL, weights_SBl = batches(i)
        weights_MBl = None if weights_SBl is None else weights_SBl[seed_M]
        jax.block_until_ready(metrics)  # stay at most one step ahead: a step of a large model may take minutes
        state, metrics = _step(shape, plan, state, hyper, tokens_SBL[seed_M], weights_MBl)
        if i + 1 in due:
            at = {"step": float(i + 1), "tokens": float((i + 1) * shape.tokens_per_step)}
            trained_M = np.asarray(metrics.loss)
            for m, row in enumerate(measure(state.params)):
                rows[m].append(at | {"train_loss": float(trained_M[m])} | row)
        taken(i + 1)
    diverged_M = np.asarray(state.diverged_at).tolist()
    curves = [Curve(points, diverged_at) for points, diverged_at in zip(rows, diverged_M, strict=True)]
    return {place: curves[p * models : (p + 1) * models] for p, place in enumerate(places)}


@functools.partial(jax.jit, static_argnums=1)
def _initial(params_M: Any, settings: OptimizerConfig) -> State:
    return jax.vmap(lambda params: init_member(params, settings))(params_M)


@functools.partial(jax.jit, static_argnames=("shape", "plan"), donate_argnames="state")
def _step(shape: Shape, plan: Any, state: Any, hyper: Any, tokens_MBL: Any, weights_MBl: Any) -> Any:
    def one(state: Any, h: Any, tokens_BL: Any, *weights_Bl: Any) -> Any:
        return member_step(shape, state, h, tokens_BL, None, plan, *weights_Bl)

    optional = () if weights_MBl is None else (weights_MBl,)
    return over_members(one, shape.config.mapping)(state, hyper, tokens_MBL, *optional)


def _run(config: FinetuneConfig, shape: Shape, rate: float, seed: int) -> TrainConfig:
    """Return the training configuration of the fine-tuning at one learning rate and seed."""
    adamw = OptimizerConfig(
        learning_rate=rate,
        weight_decay=config.weight_decay,
        warmup_fraction=config.warmup_fraction,
        final_fraction=0.0,
        schedule="linear",
    )
    base = TrainConfig(tokens=max(config.tokens, shape.tokens_per_step), data_seed=seed, optimizer=adamw)
    data = dataclasses.replace(base.data, batch_size=shape.batch_size, sequence_length=shape.sequence_length)
    return dataclasses.replace(base, data=data)


def text_batches(eval_data: EvalData, domain: str, config: FinetuneConfig) -> Batches:
    """Return batches of windows of a domain's training text, in the order of each seed."""
    length = eval_data.shape.sequence_length
    streams = [train_windows(eval_data.index, (domain,), length, config.batch_size, seed) for seed in config.seeds]
    return lambda step: (np.stack([stream[step] for stream in streams]), None)


def domain_sets(shape: Shape, index: TokenIndex, domain: str) -> list[EvaluationSet]:
    """Return the evaluation sets of config.probe.texts, with "train" and "validation" taken from the given domain.

    Raises ConfigError for a text that doesn't exist or is too short.
    """
    config = shape.config.probe.texts
    return text_sets(config, texts_by_name(config, index, (domain,), (domain,)), index.eos_id)


def item_sets(eval_data: EvalData, task: str, config: FinetuneConfig) -> list[EvaluationSet]:
    """Return the evaluation sets for a task: "train" and "validation" are its items with their correct answers."""
    texts, index = eval_data.shape.config.probe.texts, eval_data.index
    sets: list[EvaluationSet] = []
    for name in texts.names:
        if name in ("train", "validation"):
            tokens_Nl, weights_NL = _right_answers(eval_data, task, config, name)
            drawn = np.random.default_rng(0).permutation(len(tokens_Nl))[: texts.documents]  # they are sorted by length
            sets.append(scored_set(texts, name, tokens_Nl[drawn], weights_NL[drawn] > 0))
        else:
            sets += text_sets(texts, {name: index.documents("validation", name)}, index.eos_id)
    return sets


def _right_answers(eval_data: EvalData, task: str, config: FinetuneConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return items with their correct answers: tokens `[N, L + 1]`, and weights `[N, L]` of the predictions."""
    items = task_items.items(task, split)
    if split == "train" and config.train_items:
        drawn = np.random.default_rng(0).permutation(len(items))[: config.train_items]
        items = [items[i] for i in sorted(drawn)]
    right = [item._replace(contexts=(item.context,), choices=(item.choices[item.gold],), gold=0) for item in items]
    return _in_one_length(task_rows.pieces(right, eval_data.tokenizer, config.item_tokens), config.item_tokens)


def item_batches(eval_data: EvalData, task: str, config: FinetuneConfig) -> Batches:
    """Return batches of training items with their correct answers, by seed; only answers count in the loss."""
    tokens_Nl, weights_NL = _right_answers(eval_data, task, config, "train")
    orders = [in_order(range(len(tokens_Nl)), config.batch_size, seed) for seed in config.seeds]

    def of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen_SB = np.stack([order[step] for order in orders])
        return tokens_Nl[chosen_SB], weights_NL[chosen_SB]

    return of_step


def _in_one_length(pieces: Sequence[task_rows.Piece], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pieces, sorted by length, one per row: tokens `[N, L + 1]`, and weights `[N, L]` of the predictions."""

    def sizes(piece: task_rows.Piece) -> tuple[int, int]:
        """Return the rounded lengths to sort by. The order matters: a seed draws rows by their index."""
        read = min(_doubled(32, len(piece.before) + len(piece.targets) - 1), length)
        return read, min(_doubled(8, len(piece.targets)), read)

    tokens_Nl = np.zeros((len(pieces), length + 1), np.int32)
    weights_NL = np.zeros((len(pieces), length), np.float32)
    for n, piece in enumerate(sorted(pieces, key=sizes)):
        start, stop = len(piece.before), len(piece.before) + len(piece.targets)
        tokens_Nl[n, :stop] = np.concatenate([piece.before, piece.targets])
        weights_NL[n, start - 1 : stop - 1] = 1
    return tokens_Nl, weights_NL


def _doubled(number: int, least: int) -> int:
    """Return the first of number, 2 number, 4 number, ... that isn't below `least`."""
    while number < least:
        number *= 2
    return number
