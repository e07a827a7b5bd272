"""Score multiple-choice and cloze tasks; see eval/tasks.py."""

import dataclasses
import functools

import numpy as np

from eval import tasks
from eval.columns import Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from olmo_jax.config import ConfigError, require
from olmo_jax.config.field import NOT_NEGATIVE, Role, setting
from olmo_jax.config.validation import Settings, unique
from olmo_jax.data import DataError
from olmo_jax.data.sources import task_items
from olmo_jax.storage.names import file_name


@dataclasses.dataclass(frozen=True)
class TasksConfig(Settings):
    """Multiple choice by rank classification, and LAMBADA."""

    names: tuple[str, ...] = setting(
        (),
        Role.OBSERVATION,
        "Names of tasks (see olmo_jax/data/sources/task_items.py), or paths of your own .jsonl files; () for none.",
    )
    most_items: int = setting(
        1000,
        Role.OBSERVATION,
        "Number of items of each task's validation set, drawn once for all models; 0 for all.",
        bound=NOT_NEGATIVE,
    )
    tokens: int = setting(
        0,
        Role.OBSERVATION,
        "Most tokens of a context with its answer; longer ones are truncated on the left. 0: as in training sequences.",
        bound=NOT_NEGATIVE,
        unit="tokens",
    )

    def check_fields(self, at: str) -> None:
        unique(self.names, f"{at}.names")


@evaluator
class Tasks(Evaluator[TasksConfig]):
    """Accuracy of each task, with its standard error, and bits per byte of the correct answers."""

    kind = "tasks"
    section = "tasks"
    config_type = TasksConfig
    refused_without_text = "names"
    names = r"task_(?P<task>.+)"
    words = "On the task {task}"
    results = (
        Result(
            r"(?P<name>\w+)_standard_error",
            "Standard error of {name}",
            "",
            "evaluation",
            {"statistic": "standard_error"},
        ),
        Result(r"accuracy(?P<how>\w*)", "Share of items answered correctly, by log-likelihood{how}", "share", "task"),
        Result("bits_per_byte", "Loss per byte of the correct answer", "bits per byte", "task"),
        Result("nats", "Loss on the correct answer", "nats", "task"),
        Result("chance", "Accuracy of guessing", "share", "evaluation"),
        Result("items", "Number of items that were scored", "items", "count"),
    )

    def evaluations(self) -> list[Evaluation]:
        settings = {"items": self.config.most_items, "tokens": self.config.tokens}
        return [
            Evaluation(self.kind, f"task_{file_name(name)}", {"task": name} | settings) for name in self.config.names
        ]

    def check(self, data: EvalData) -> None:
        for name in self.config.names:
            check_task(f"{self.key}.names", name, "validation")
        check_context(f"{self.key}.tokens", self.config.tokens, data, bool(self.config.names))

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        settings, data = evaluation.settings, models.eval_data
        tokens = settings["tokens"] or data.shape.sequence_length
        rows = data.once(validation_rows, settings["task"], settings["items"], tokens)
        scores = tasks.score(data.shape.model, models.params_M, rows, data.config.batch_size)
        sources = task_items.sources(settings["task"])
        return [Measured(row, {"sources": sources}) for row in tasks.metrics(rows, scores)]


def validation_rows(data: EvalData, task: str, most: int, tokens: int) -> tasks.Rows:
    """Return `most` validation items of a task (0: all), laid out in rows of at most `tokens` tokens."""
    return tasks.prepare(drawn_items(task, most), data.tokenizer, tokens)


def drawn_items(task: str, most: int) -> list[task_items.Item]:
    """Return `most` validation items of a task (0: all), in a fixed random order, the same for all models."""
    items = _validation_items(task)
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))[: most or None]]


def check_task(key: str, name: str, split: str) -> None:
    """Raise ConfigError for a task that is unknown, can't be read, or has no such split."""
    try:
        task_items.sources(name)
        if name not in task_items.TASKS:
            task_items.items(name, split)  # the name is a user's file
    except DataError as error:
        raise ConfigError(f"{key}: {error}") from None
    known = task_items.TASKS.get(name)
    has_split = known is None or split in known.folders
    having = ", ".join(other for other, task in task_items.TASKS.items() if split in task.folders)
    require(has_split, key, name, f"has no {split} items; these tasks have: {having}")


def check_context(key: str, tokens: int, data: EvalData, used: bool) -> None:
    """Raise ConfigError for rows that are longer than the models' context, if they are used."""
    most = data.shape.model.context_length
    require(not used or tokens <= most, key, tokens, f"is more than the model's context of {most} tokens; lower it")


def _validation_items(task: str) -> list[task_items.Item]:
    """Return `task_items.items`; those of a published package don't change and are read once for all cohorts."""
    return _published_items(task) if task in task_items.TASKS else task_items.items(task, "validation")


@functools.cache
def _published_items(task: str) -> list[task_items.Item]:
    return task_items.items(task, "validation")
