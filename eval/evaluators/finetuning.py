"""Measure the effect of fine-tuning: losses, forgetting and geometry, along the way and at the best learning rate."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from eval import results, tasks
from eval.columns import LOSSES, Result
from eval.eval_data import EvalData, Model, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from eval.evaluators.loss import check_domain
from eval.evaluators.tasks import check_context, check_task, validation_rows
from eval.finetuning import (
    Curve,
    FinetuneConfig,
    Row,
    domain_sets,
    finetune,
    item_batches,
    item_sets,
    text_batches,
)
from olmo_jax.columns import NATS, Column, sentence
from olmo_jax.config import require
from olmo_jax.config.identity import identity_fields
from olmo_jax.config.probe import SharpnessConfig
from olmo_jax.data.windows import too_few_tokens
from olmo_jax.probes.geometry import make_probes
from olmo_jax.storage.names import file_name
from olmo_jax.train import probe_documents

# What a number about a result is, by the prefix of its name.
_PARTS = {"spread": "standard deviation over seeds", "best": "at the step of the lowest target loss"}


class _Finetuning(Evaluator[FinetuneConfig]):
    """The names and settings that both evaluations share."""

    section = "finetune"
    config_type = FinetuneConfig
    refused_without_text = "targets"
    across_checkpoints = True
    results = (
        Result("diverged", "Seeds whose fine-tuning diverged", "seeds", "evaluation"),
        Result("learning_rate", "That learning rate", "", "evaluation"),
        Result("step", "That step", "steps", "evaluation"),
        Result("train_loss", "Training loss of the last step", NATS, "evaluation"),
        Result("target_accuracy", "Accuracy on the task that was trained on", "share", "task"),
        Result("(?P<domain>target)", "Loss on the target of the fine-tuning", NATS, "loss"),
        Result("forgetting", "Rise of the in-domain loss", NATS, "change", {"measure": "forgetting"}),
        *LOSSES,
    )

    @classmethod
    def column(cls, name: str, result: str, groups: Mapping[str, str | None]) -> Column:
        part, _, rest = result.partition("/")
        if part in _PARTS and rest:
            inner = super().column(name, rest, groups)
            before, _, meaning = inner.meaning.partition(": ")
            text = sentence(f"{before}, {_PARTS[part]}", meaning) if meaning else inner.meaning
            return Column(name, "evaluation", inner.unit, text, {**inner.of, "statistic": part})
        return super().column(name, result, groups)

    def portions(self, models: list[Model]) -> Iterator[tuple[Model, ...]]:
        members_per_model = len(self.config.learning_rates) * len(self.config.seeds)
        size = max(1, self.config.most_members // members_per_model)
        return (tuple(models[i : i + size]) for i in range(0, len(models), size))

    def at_rate(self, target: str, rate: float) -> Evaluation:
        """Return the evaluation of a target at one learning rate."""
        settings = self.settings(target) | {"learning_rate": rate}
        return Evaluation(Finetune.kind, f"{_name(target)}_lr{rate:g}", settings)

    def settings(self, target: str) -> dict[str, Any]:
        """Return the settings that all learning rates of a target share."""
        shared = {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in identity_fields(self.config).items()
            if k not in ("targets", "learning_rates", "most_members") and (k != "train_items" or v)
        }
        return self.text.text_settings | shared | {"target": target}


@evaluator
class Finetune(_Finetuning):
    """Losses by domain after fine-tuning at one learning rate, averaged over seeds, and:

    target: nats per token on the target's validation text or, for a task, of the correct answers.
    target_accuracy: accuracy on a task.
    forgetting: the in-domain loss minus that before fine-tuning.
    best/...: step, target, forgetting and averages at the measured step with the lowest target loss.
    spread/...: standard deviation over seeds, if there are several.
    geometry/...: the metrics of the run's probe.

    They are NaN if a seed diverged. The best step is chosen on the same validation text as its loss is reported on, so
    that the best of several steps and rates is slightly too low.
    """

    kind = "finetune"
    names = r"finetune_(?P<target>.+)_lr(?P<rate>[^_]+)"
    words = "After fine-tuning on {target} at learning rate {rate}"
    of = {"after": "finetune"}

    def evaluations(self) -> list[Evaluation]:
        config = self.config
        return [self.at_rate(target, rate) for target in config.targets for rate in config.learning_rates]

    def check(self, data: EvalData) -> None:
        config, index = self.config, data.index
        key = f"{self.key}.targets"
        for domain in config.domains:
            check_domain(key, domain, data)
            lack = too_few_tokens(index, (domain,), data.shape.sequence_length)
            require(not lack, key, domain, lack)
            remedy = "has no validation document; raise data.validation_fraction or add documents"
            require(index.shard("validation", domain).documents > 0, key, domain, remedy)
            measured, remedy = self.text.domains, f"doesn't contain the fine-tuning target {domain!r}; add it"
            require(not measured or domain in measured, "config.evaluation.domains", measured, remedy)
            domain_sets(data.shape, index, domain)
        for task in config.tasks:
            check_task(key, task, "train")
            check_task(key, task, "validation")
            item_sets(data, task, config)
        check_context(f"{self.key}.item_tokens", config.item_tokens, data, bool(config.tasks))

    def measure_all(self, models: ModelBatch, evaluations: Sequence[Evaluation]) -> Iterator[list[Measured]]:
        """Yield the results of each evaluation; the learning rates of a target train together."""
        for target in dict.fromkeys(e.settings["target"] for e in evaluations):
            rates = tuple(e.settings["learning_rate"] for e in evaluations if e.settings["target"] == target)
            before, curves = _curves(models, dataclasses.replace(self.config, learning_rates=rates), target)
            for rate in rates:
                by_seed = {seed: curves[rate, seed] for seed in self.config.seeds}
                yield [
                    _summary(models, before[m], {seed: curves_M[m] for seed, curves_M in by_seed.items()})
                    for m in range(len(models.models))
                ]


@evaluator
class FinetuneBest(_Finetuning):
    """The learning rate with the lowest target loss at its best step, and the results at that step."""

    kind = "finetune_best"
    names = r"finetune_(?P<target>.+)_best"
    words = "After fine-tuning on {target} at the rate and step of the lowest target loss"
    of = {"after": "finetune", "rate": "best"}
    chosen_with = ("finetune",)

    def evaluations(self) -> list[Evaluation]:
        rates = self.config.learning_rates
        return [
            Evaluation(
                self.kind,
                f"{_name(target)}_best",
                self.settings(target) | {"learning_rates": list(rates)},
                requires=tuple(self.at_rate(target, rate) for rate in rates),
            )
            for target in self.config.targets
        ]

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        return [_best(models.eval_data.workdir, run, step, evaluation) for run, step in models.models]


def _curves(
    stack: ModelBatch, config: FinetuneConfig, target: str
) -> tuple[list[Row], dict[tuple[float, int], list[Curve]]]:
    """Return one row per model before fine-tuning, and the curves of all models by (learning rate, seed)."""
    eval_data = stack.eval_data
    task = target.removeprefix("task:") if target.startswith("task:") else ""
    length = config.item_tokens if task else eval_data.shape.sequence_length
    batches = item_batches(eval_data, task, config) if task else text_batches(eval_data, target, config)
    windows = dataclasses.replace(eval_data.shape.config.data, batch_size=config.batch_size, sequence_length=length)
    shape = eval_data.shape.with_config(data=windows)
    documents = probe_documents(eval_data.cohort, eval_data.index)
    sets = item_sets(eval_data, task, config) if task else domain_sets(shape, eval_data.index, target)
    vocabulary = eval_data.index.vocab_size
    # Measuring sharpness costs more than a step of fine-tuning.
    probe_config = dataclasses.replace(shape.config.probe, sharpness=SharpnessConfig())
    probes = make_probes(probe_config, shape.model, vocabulary, documents, shape.config.mapping, evaluation_sets=sets)

    def measure_all(params: Any) -> list[Row]:
        losses = stack.losses if params is stack.params_M else stack.losses_of(params)
        rows: list[Row] = [dict(row) for row in stack.summaries(losses.by_domain)]
        if task:
            rows_of_task = eval_data.once(validation_rows, task, config.task_items, config.item_tokens)
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


def _summary(stack: ModelBatch, before: Row, curves: Mapping[int, Curve]) -> Measured:
    """Return the results of one model at one learning rate from its curves, one per seed."""
    along, ends, bests = [], [], []
    for seed, curve in curves.items():
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
    metrics["diverged"] = float(sum(curve.diverged_at >= 0 for curve in curves.values()))
    return Measured(metrics, {"before": before, "along": along})


def _best(workdir: epath.Path, run: str, step: int, evaluation: Evaluation) -> Measured:
    by_rate = {}
    for at_rate in evaluation.requires:
        stored = results.read(workdir, run, step, at_rate)
        if stored is not None and stored["metrics"]["best/target"] is not None:
            by_rate[at_rate.settings["learning_rate"]] = stored["metrics"]
    if not by_rate:
        return Measured({"learning_rate": math.nan}, {})
    rate = min(by_rate, key=lambda r: by_rate[r]["best/target"])
    at_best = {k.removeprefix("best/"): v for k, v in by_rate[rate].items() if k.startswith("best/")}
    return Measured({"learning_rate": rate} | at_best, {})


def _name(target: str) -> str:
    """Return the prefix of the names of a target's results."""
    return "finetune_" + file_name(target.replace("task:", "task_", 1))
