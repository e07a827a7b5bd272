"""Fine-tune a stack of models, with all learning rates and seeds as members of one cohort."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from eval import results, task_rows, tasks
from eval.config import EvalConfig, FinetuneConfig
from eval.eval_data import EvalData, ModelBatch, StoppedError
from eval.results import Evaluation, Measured
from olmo_jax import optimizer
from olmo_jax.cohort import Shape
from olmo_jax.config import OptimizerConfig, TrainConfig
from olmo_jax.config.identity import identity_fields
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import task_items
from olmo_jax.data.windows import in_order, train_windows
from olmo_jax.execution import plan as execution_plan
from olmo_jax.execution.members import over_members
from olmo_jax.probes.geometry import make_probes
from olmo_jax.probes.texts import EvaluationSet, scored_set, text_sets, texts_by_name
from olmo_jax.step import State, init_member, member_step
from olmo_jax.storage.names import file_name
from olmo_jax.train import probe_documents

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

    Args:
      shape: that of the models' cohort, but with the batch size and sequence length of `batches`.
      params_M: the stacked parameters. batches: function of the step, counted from 0.
      measure: function of stacked parameters that returns one row per member; called at `config.points` steps.
      stop: whether to stop, called at each step.

    Returns:
      The curve of each model, by (learning rate, seed). Raises StoppedError if `stop` returns True.
    """
    models = len(jax.tree.leaves(params_M)[0])
    places = [(rate, seed) for rate in config.learning_rates for seed in config.seeds]
    runs = [_run(config, shape, rate, seed) for rate, seed in places]
    hyper = jax.tree.map(lambda *xs: jnp.repeat(jnp.stack(xs), models), *map(optimizer.hyper, runs))
    start = jax.tree.map(lambda x: jnp.concatenate([x] * len(places)), params_M)
    state = _initial(start)
    # The other execution settings of the training depend on its machine and batch size.
    compute = execution_plan.forward(shape.model)._replace(
        remat=shape.config.compute.remat, members=models * len(places)
    )
    seed_M = np.repeat([config.seeds.index(seed) for _, seed in places], models)

    rows: list[list[Row]] = [[] for _ in seed_M]
    total = runs[0].total_steps
    due = {round(total * (k + 1) / config.points) for k in range(config.points)} - {0}
    for i in range(total):
        if stop():
            raise StoppedError
        tokens_SBL, weights_SBl = batches(i)
        weights_MBl = None if weights_SBl is None else weights_SBl[seed_M]
        state, metrics = _step(shape, compute, state, hyper, tokens_SBL[seed_M], weights_MBl)
        if i + 1 in due:
            progress = {"step": float(i + 1), "tokens": float((i + 1) * shape.tokens_per_step)}
            trained_M = np.asarray(metrics.loss)
            for m, row in enumerate(measure(state.params)):
                rows[m].append(progress | {"train_loss": float(trained_M[m])} | row)
    diverged_M = np.asarray(state.diverged_at).tolist()
    curves = [Curve(points, diverged_at) for points, diverged_at in zip(rows, diverged_M, strict=True)]
    return {place: curves[p * models : (p + 1) * models] for p, place in enumerate(places)}


@jax.jit
def _initial(params_M: Any) -> State:
    return jax.vmap(init_member)(params_M)


@functools.partial(jax.jit, static_argnames=("shape", "compute"), donate_argnames="state")
def _step(shape: Shape, compute: Any, state: Any, hyper: Any, tokens_MBL: Any, weights_MBl: Any) -> Any:
    def one(state: Any, h: Any, tokens_BL: Any, *weights_Bl: Any) -> Any:
        return member_step(shape, state, h, tokens_BL, None, compute, *weights_Bl)

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


def evaluations(config: EvalConfig, text: dict[str, Any]) -> list[Evaluation]:
    """Return one evaluation per target and learning rate and, per target, one for the best of its rates."""
    tuning = config.finetune
    shared = {
        k: list(v) if isinstance(v, tuple) else v
        for k, v in identity_fields(tuning).items()
        if k not in ("targets", "learning_rates", "most_members") and (k != "train_items" or v)
    }
    chosen = []
    for target in tuning.targets:
        settings = text | shared | {"target": target}
        for rate in tuning.learning_rates:
            chosen.append(Evaluation("finetune", f"{_name(target)}_lr{rate:g}", settings | {"learning_rate": rate}))
        rates = {"learning_rates": list(tuning.learning_rates)}
        chosen.append(Evaluation("finetune_best", f"{_name(target)}_best", settings | rates))
    return chosen


def measure(stack: ModelBatch, chosen: Sequence[Evaluation]) -> Iterator[list[Measured]]:
    """Yield the results of each evaluation in `chosen`, one per model; the learning rates of a target train together.

    The metrics are losses by domain after fine-tuning, averaged over seeds, and:
      target: nats per token on the target's validation text or, for a task, of the correct answers.
      target_accuracy: accuracy on a task.
      forgetting: the in-domain loss minus that before fine-tuning.
      best/...: step, target, forgetting and averages at the measured step with the lowest target loss.
      spread/...: standard deviation over seeds, if there are several.
      geometry/...: the metrics of the run's probe.
    They are NaN if a seed diverged. The best step is chosen on the same validation text as its loss is reported on, so
    that the best of several steps and rates is slightly too low.
    """
    for target in dict.fromkeys(e.settings["target"] for e in chosen):
        rates = tuple(e.settings["learning_rate"] for e in chosen if e.settings["target"] == target)
        before, curves = _curves(stack, target, rates)
        for rate in rates:
            by_seed = [curves[rate, seed] for seed in stack.eval_data.config.finetune.seeds]
            yield [_summary(stack, before[m], [curves_M[m] for curves_M in by_seed]) for m in range(len(stack.models))]


def _curves(
    stack: ModelBatch, target: str, rates: tuple[float, ...]
) -> tuple[list[Row], dict[tuple[float, int], list[Curve]]]:
    """Return one row per model before fine-tuning, and the curves of all models by (learning rate, seed)."""
    eval_data = stack.eval_data
    config = dataclasses.replace(eval_data.config.finetune, learning_rates=rates)
    task = target.removeprefix("task:") if target.startswith("task:") else ""
    length = config.item_tokens if task else eval_data.shape.sequence_length
    batches = item_batches(eval_data, task, config) if task else text_batches(eval_data, target, config)
    windows = dataclasses.replace(eval_data.shape.config.data, batch_size=config.batch_size, sequence_length=length)
    shape = eval_data.shape.with_config(data=windows)
    documents = probe_documents(eval_data.cohort, eval_data.index)
    sets = item_sets(eval_data, task, config) if task else domain_sets(shape, eval_data.index, target)
    vocabulary = eval_data.index.vocab_size
    probes = make_probes(
        shape.config.probe, shape.model, vocabulary, documents, shape.config.mapping, evaluation_sets=sets
    )

    def measure_all(params: Any) -> list[Row]:
        losses = stack.losses if params is stack.params_M else stack.losses_of(params)
        rows: list[Row] = [dict(row) for row in stack.summaries(losses.by_domain)]
        if task:
            rows_of_task = eval_data.rows(task, config.task_items, config.item_tokens)
            scores = tasks.score(shape.model, params, rows_of_task, eval_data.config.batch_size)
            right_C = rows_of_task.place_C == rows_of_task.gold_I[rows_of_task.item_C]
            nats_M = -scores.log_likelihood_MC[:, right_C].sum(axis=1) / rows_of_task.tokens_C[right_C].sum()
            for row, of_task, nats in zip(rows, tasks.metrics(rows_of_task, scores), nats_M, strict=True):
                row |= {"target": float(nats), "target_accuracy": of_task["accuracy"]}
        else:
            for row in rows:
                row["target"] = row[target]
        for probe in probes.values():
            values_M = {k: np.asarray(v) for k, v in probe(params).items()}
            for m, row in enumerate(rows):
                row |= {f"geometry/{name}": float(x_M[m]) for name, x_M in values_M.items()}
        return rows

    return measure_all(stack.params_M), finetune(config, shape, stack.params_M, batches, measure_all, eval_data.stop)


def _summary(stack: ModelBatch, before: Row, curves: Sequence[Curve]) -> Measured:
    """Return the results of one model at one learning rate from its curves, one per seed."""
    along, ends, bests = [], [], []
    for seed, curve in zip(stack.eval_data.config.finetune.seeds, curves, strict=True):
        rows = [row | {"forgetting": row["in_domain"] - before["in_domain"]} for row in curve.rows]
        if curve.diverged_at >= 0:  # the last finite parameters would look like a gentle fine-tuning
            rows = [row | dict.fromkeys(row.keys() - {"step", "tokens"}, math.nan) for row in rows]
        along += [{"seed": float(seed)} | row for row in rows]
        ends.append(rows[-1])
        bests.append(min(rows, key=lambda row: row["target"] if math.isfinite(row["target"]) else math.inf))
    shown = ("target", "target_accuracy", "forgetting", *stack.averages)
    metrics = {name: float(np.mean([row[name] for row in ends])) for name in ends[0] if name not in ("step", "tokens")}
    metrics |= {f"best/{n}": float(np.mean([row[n] for row in bests])) for n in ("step", *shown) if n in bests[0]}
    if len(curves) > 1:
        metrics |= {f"spread/{n}": float(np.std([row[n] for row in ends], ddof=1)) for n in shown if n in ends[0]}
    if not math.isfinite(metrics.get("best/target", math.nan)):
        metrics["best/step"] = math.nan
    metrics["diverged"] = float(sum(curve.diverged_at >= 0 for curve in curves))
    return Measured(metrics, {"before": before, "along": along})


def best(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return, per model, the learning rate with the lowest target loss at its best step, from stored results."""
    return [_best(stack.eval_data.workdir, run, step, evaluation) for run, step in stack.models]


def _best(workdir: epath.Path, run: str, step: int, evaluation: Evaluation) -> Measured:
    shared = {k: v for k, v in evaluation.settings.items() if k != "learning_rates"}
    by_rate = {}
    for rate in evaluation.settings["learning_rates"]:
        name = f"{_name(evaluation.settings['target'])}_lr{rate:g}"
        stored = results.read(workdir, run, step, Evaluation("finetune", name, shared | {"learning_rate": rate}))
        if stored is not None and stored["metrics"]["best/target"] is not None:
            by_rate[rate] = stored["metrics"]
    if not by_rate:
        return Measured({"learning_rate": math.nan}, {})
    rate = min(by_rate, key=lambda r: by_rate[r]["best/target"])
    at_best = {k.removeprefix("best/"): v for k, v in by_rate[rate].items() if k.startswith("best/")}
    return Measured({"learning_rate": rate} | at_best, {})


def _name(target: str) -> str:
    """Return the beginning of the names of a target's results."""
    return "finetune_" + file_name(target.replace("task:", "task_", 1))
