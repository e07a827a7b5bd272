"""What evaluations read: a stack of models, and the text, tokens and items that all stacks of a cohort share."""

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
    """`Material.stop` answered True in the middle of an evaluation."""


def _validation_items(task: str) -> list[task_items.Item]:
    """As `task_items.items`; those of a published package, which doesn't change, are read once for all cohorts."""
    return _published_items(task) if task in task_items.TASKS else task_items.items(task, "validation")


def drawn_items(task: str, most: int) -> list[task_items.Item]:
    """So many validation items of a task in the order drawn, the same for all models; all of them for 0."""
    items = _validation_items(task)
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))[: most or None]]


@functools.cache
def _published_items(task: str) -> list[task_items.Item]:
    return task_items.items(task, "validation")


@dataclasses.dataclass(frozen=True, eq=False)
class EvalData:
    """Of one cohort, read when first asked for. `stop`: whether to leave, asked in the middle of long work."""

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
        """Validation documents by domain; of domains that this cohort wasn't trained on, any."""
        return read_documents(self.index, self.config.tokens_per_domain, self._learnt, self.config.domains)

    @property
    def _learnt(self) -> tuple[str, ...]:
        trained = self.shape.config.data.train_domains
        return (*trained, *self.config.finetune.domains) if trained else ()

    @functools.cached_property
    def text(self) -> Text:
        if single := [domain for domain, of in self.documents.items() if len(of) == 1]:
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
        """Training windows `[N, L]`, the same for every run; says so where they are few."""
        wanted = self.config.quantize.calibration_tokens
        length, domains = self.shape.sequence_length, self.shape.config.data.train_domains
        count = max(1, wanted // length)
        tokens = sum(self.index.shard("train", d).tokens for d in domains or self.index.domains)
        count = min(count, (tokens - 1) // length)
        widest = max(self.shape.model.d_model, self.shape.model.d_ff)
        if count * length < widest:
            say(
                f"calibration has {count * length} tokens, fewer than the {widest} inputs of a matrix, so GPTQ's "
                "Hessians are singular but for the damping; raise config.evaluation.quantize.calibration_tokens"
            )
        return np.asarray(train_windows(self.index, domains, length, count, 0)[0])[:, :-1]

    @functools.cached_property
    def rows(self) -> Callable[[str, int, int], tasks.Rows]:
        """Validation items of a task as rows, `rows(task, most, tokens)`: so many, drawn once for all, or all for 0."""

        @functools.cache
        def rows(task: str, most: int, tokens: int) -> tasks.Rows:
            return tasks.prepare(drawn_items(task, most), self.tokenizer, tokens)

        return rows

    def load(self, models: Sequence[Model]) -> Any:
        """The parameters of some models, stacked. Raises CheckpointError where one doesn't fit its configuration."""
        parts, order = [], []
        for step in dict.fromkeys(step for _, step in models):
            members, params_M = checkpoint.load_stack(self.workdir, self.cohort.folder, step)
            place = checkpoint.directory(self.workdir, self.cohort.folder) / str(step)
            checkpoint.check_fits(place, params_M, self.shape.model, stacked=True)
            places = [m for m, (_, at) in enumerate(models) if at == step]
            order += places
            taken = np.array([members.index(models[m][0]) for m in places])
            parts.append(jax.tree.map(lambda x, taken=taken: x[taken], params_M))
        back = np.argsort(order)
        return jax.tree.map(lambda *xs: jax.numpy.asarray(np.concatenate(xs)[back]), *parts)

    @functools.cached_property
    def load_last(self) -> Callable[[tuple[str, ...]], Any]:
        """As `load`, of the last checkpoints of some runs; kept, for CKA needs them at each step."""
        ends = {run.id: run.config.total_steps for run in self.cohort.runs}
        return functools.lru_cache(maxsize=1)(lambda runs: self.load([(run, ends[run]) for run in runs]))


@dataclasses.dataclass(frozen=True, eq=False)
class ModelBatch:
    """M models of a cohort, (run, step) by place, and their parameters once they are asked for."""

    eval_data: EvalData
    models: tuple[Model, ...]

    @functools.cached_property
    def params_M(self) -> Any:
        return self.eval_data.load(self.models)

    @functools.cached_property
    def losses(self) -> Losses:
        """Of the models as they are."""
        return self.losses_of(self.params_M)

    def losses_of(self, params_M: Any) -> Losses:
        """Of models of this architecture on the cohort's text."""
        return lm_loss(self.eval_data.shape.model, params_M, self.eval_data.text, self.eval_data.config.batch_size)

    def told(self, losses: Losses) -> list[Measured]:
        """Of each model: loss in nats per token, averages first, and the tokens behind it."""
        return [Measured(of, {"tokens": losses.tokens}) for of in self.summaries(losses.by_domain)]

    def told_with_rise(self, losses: Losses) -> list[Measured]:
        """The same and, of the averages, the rise above the losses of the models as they are, with paired errors."""
        errors = self.summaries(losses.standard_errors(self.losses), errors=True)
        found = []
        for after, before, error in zip(self.told(losses), self.summaries(self.losses.by_domain), errors, strict=True):
            for name in self.averages:
                after.metrics[f"rise/{name}"] = after.metrics[name] - before[name]
                after.metrics[f"rise_standard_error/{name}"] = error[name]
            found.append(after)
        return found

    def summaries(self, by_domain: dict[str, np.ndarray], errors: bool = False) -> list[dict[str, float]]:
        """Of each model: averages, then domains; of standard errors as such."""
        summarize = summary_of_errors if errors else summary
        rows = [{d: float(v[m]) for d, v in by_domain.items()} for m in range(len(next(iter(by_domain.values()))))]
        return [summarize(row, *self._division) for row in rows]

    @property
    def averages(self) -> list[str]:
        """Names of the averages over domains that there are."""
        return list(averages(self.eval_data.text.domains, *self._division))

    @property
    def _division(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self.eval_data.shape.config.data.train_domains, self.eval_data.config.finetune.domains
