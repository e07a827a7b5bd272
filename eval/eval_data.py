"""Load what evaluations read: stacks of models, and the text, tokens and items that a cohort's stacks share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from eval import tasks
from eval.config import EvalConfig
from eval.lm_loss import (
    Losses,
    Text,
    averages,
    lay_out,
    lm_loss,
    read_bytes,
    read_documents,
    summary,
    summary_of_errors,
)
from eval.results import Measured
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort, Shape
from olmo_jax.console import say
from olmo_jax.data import tokenizer
from olmo_jax.data.shards import TokenIndex
from olmo_jax.data.sources import task_items
from olmo_jax.data.windows import train_windows

Model = tuple[str, int]  # run id and step


class StoppedError(Exception):
    """`EvalData.stop` returned True in the middle of an evaluation."""


def _validation_items(task: str) -> list[task_items.Item]:
    """Return `task_items.items`; those of a published package don't change and are read once for all cohorts."""
    return _published_items(task) if task in task_items.TASKS else task_items.items(task, "validation")


def drawn_items(task: str, most: int) -> list[task_items.Item]:
    """Return `most` validation items of a task (0: all), in a fixed random order, the same for all models."""
    items = _validation_items(task)
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))[: most or None]]


@functools.cache
def _published_items(task: str) -> list[task_items.Item]:
    return task_items.items(task, "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class EvalData:
    """The data of one cohort, read when first used. `stop` says whether to stop, and is called during long work."""

    workdir: epath.Path
    cohort: Cohort
    index: TokenIndex
    config: EvalConfig
    stop: Callable[[], bool] = lambda: False

    @property
    def shape(self) -> Shape:
        return self.cohort.shape

    @functools.cached_property
    def documents(self) -> dict[str, list[np.ndarray]]:
        """Return validation documents by domain; for domains that weren't trained on, documents of any split."""
        return read_documents(self.index, self.config.tokens_per_domain, self._learnt, self.config.domains)

    @property
    def _learnt(self) -> tuple[str, ...]:
        trained = self.shape.config.data.train_domains
        return (*trained, *self.config.finetune.domains) if trained else ()

    @functools.cached_property
    def text(self) -> Text:
        if single := [domain for domain, documents in self.documents.items() if len(documents) == 1]:
            say(
                f"{', '.join(single)}: one document fills config.evaluation.tokens_per_domain = "
                f"{self.config.tokens_per_domain}, so these losses have no standard error; raise it"
            )
        bytes_K = read_bytes(self.index, self.documents, self._learnt, self.tokenizer)
        return lay_out(self.documents, self.index.eos_id, self.shape.sequence_length, bytes_K=bytes_K)

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.of_prepared(self.index.directory, self.index.eos_id)

    @functools.cached_property
    def calibration(self) -> np.ndarray:
        """Return training windows `[N, L]`, the same for every run; prints a notice if they are few."""
        length, domains = self.shape.sequence_length, self.shape.config.data.train_domains
        count = max(1, self.config.quantize.calibration_tokens // length)
        tokens = sum(self.index.shard("train", d).tokens for d in domains or self.index.domains)
        count = min(count, (tokens - 1) // length)
        widest = max(self.shape.model.d_model, self.shape.model.d_ff)
        if count * length < widest:
            say(
                f"calibration has {count * length} tokens, fewer than the {widest} inputs of a matrix, so GPTQ's "
                "Hessians are singular without damping; raise config.evaluation.quantize.calibration_tokens"
            )
        return np.asarray(train_windows(self.index, domains, length, count, 0)[0])[:, :-1]

    @functools.cached_property
    def rows(self) -> Callable[[str, int, int], tasks.Rows]:
        """Return `rows(task, most, tokens)`, which lays out `most` validation items of a task (0: all) in rows."""

        @functools.cache
        def rows(task: str, most: int, tokens: int) -> tasks.Rows:
            return tasks.prepare(drawn_items(task, most), self.tokenizer, tokens)

        return rows

    def load(self, models: Sequence[Model]) -> Any:
        """Return the stacked parameters of models. Raises CheckpointError if one doesn't fit its configuration."""
        parts, order = [], []
        for step in dict.fromkeys(step for _, step in models):
            members, params_M = checkpoint.load_stack(self.workdir, self.cohort.folder, step)
            place = checkpoint.directory(self.workdir, self.cohort.folder) / str(step)
            checkpoint.check_fits(place, params_M, self.shape.model, stacked=True)
            places = [m for m, (_, model_step) in enumerate(models) if model_step == step]
            order += places
            taken = np.array([members.index(models[m][0]) for m in places])
            parts.append(jax.tree.map(lambda x, taken=taken: x[taken], params_M))
        back = np.argsort(order)
        return jax.tree.map(lambda *xs: jax.numpy.asarray(np.concatenate(xs)[back]), *parts)

    @functools.cached_property
    def load_last(self) -> Callable[[tuple[str, ...]], Any]:
        """Return a function that loads runs' last checkpoints; cached, since CKA uses them at each step."""
        ends = {run.id: run.config.total_steps for run in self.cohort.runs}
        return functools.lru_cache(maxsize=1)(lambda runs: self.load([(run, ends[run]) for run in runs]))


@dataclasses.dataclass(frozen=True, eq=False)
class ModelBatch:
    """M models of a cohort, each (run, step), and their parameters, loaded when first used."""

    eval_data: EvalData
    models: tuple[Model, ...]

    @functools.cached_property
    def params_M(self) -> Any:
        return self.eval_data.load(self.models)

    @functools.cached_property
    def losses(self) -> Losses:
        """Return the losses of the models unchanged."""
        return self.losses_of(self.params_M)

    def losses_of(self, params_M: Any) -> Losses:
        """Return the losses of stacked parameters of this architecture on the cohort's text."""
        return lm_loss(self.eval_data.shape.model, params_M, self.eval_data.text, self.eval_data.config.batch_size)

    def measured(self, losses: Losses) -> list[Measured]:
        """Return the results of each model: losses in nats per token, averages first, and the tokens by domain."""
        return [Measured(row, {"tokens": losses.tokens}) for row in self.summaries(losses.by_domain)]

    def measured_with_rise(self, losses: Losses) -> list[Measured]:
        """Return the same with the rise of each average over the unchanged models, and its paired standard error."""
        errors = self.summaries(losses.standard_errors(self.losses), errors=True)
        results = []
        for after, before, error in zip(
            self.measured(losses), self.summaries(self.losses.by_domain), errors, strict=True
        ):
            for name in self.averages:
                after.metrics[f"rise/{name}"] = after.metrics[name] - before[name]
                after.metrics[f"rise_standard_error/{name}"] = error[name]
            results.append(after)
        return results

    def summaries(self, by_domain: dict[str, np.ndarray], errors: bool = False) -> list[dict[str, float]]:
        """Return one row per model: averages, then domains; `errors` says that the values are standard errors."""
        summarize = summary_of_errors if errors else summary
        rows = [{d: float(v[m]) for d, v in by_domain.items()} for m in range(len(next(iter(by_domain.values()))))]
        return [summarize(row, *self._division) for row in rows]

    @property
    def averages(self) -> list[str]:
        """Return the names of the averages that are over at least one domain."""
        return list(averages(self.eval_data.text.domains, *self._division))

    @property
    def _division(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.eval_data.shape.config.data.train_domains, self.eval_data.config.finetune.domains
