"""Define what an evaluation consists of: one class, in a file of eval/evaluators or in your own configuration file.

For example, with a section of settings `WeightNormConfig`:

    @evaluator
    class WeightNorm(Evaluator[WeightNormConfig]):
        kind = "weight_norm"
        config_type = WeightNormConfig

        def evaluations(self):
            return [Evaluation(self.kind, self.kind, {"pattern": self.config.pattern})]

        def measure(self, models, evaluation):
            return [Measured({"mean": norm}, {}) for norm in norms(models.params_M, evaluation.settings["pattern"])]
"""

import dataclasses
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

from eval.columns import Result, describe_result, in_words, numbers
from eval.eval_data import EvalData, Model, ModelBatch, TextConfig
from eval.results import Evaluation as Evaluation
from eval.results import Measured as Measured
from olmo_jax.columns import NOT_DESCRIBED, Column, sentence
from olmo_jax.config.validation import Settings
from olmo_jax.errors import brief
from olmo_jax.probes import columns as probe_columns

Config = TypeVar("Config", bound=Settings)
AnyEvaluator = TypeVar("AnyEvaluator", bound="type[Evaluator[Any]]")


class Evaluator(Generic[Config]):
    """One kind of evaluation; subclasses say which results a configuration asks for, and measure them.

    Class attributes:
      kind: the name by which `--only` chooses it, and with which the names of its results begin.
      section: field of EvalConfig with its configuration; "" for one that needs only that of the text. User-defined
        evaluations have the section `own.<kind>`, an instance of `config_type`.
      chosen_with: further names by which `--only` chooses it.
      needs_text: whether it needs text; models that were trained on equations are then skipped.
      refused_without_text: the field of the section that must be empty for such models.
      across_checkpoints: whether models of several checkpoints are measured together, after all evaluations of single
        checkpoints.
      of_whole_runs: whether a result depends on a run's other checkpoints; it is then left out for a run of which not
        all were kept.
      names: regular expression of the names of its evaluations; "" for its kind, optionally followed by
        "_" and more.
      words: what was done, the beginning of the meanings of its columns; groups of `names` are inserted as {group}.
      of: entries of `of` in its columns, besides the groups of `names`; see columns.Column.
      results: its results, such as columns.LOSSES, besides the probe's, `geometry/...`.
    """

    kind: ClassVar[str]
    section: ClassVar[str] = ""
    config_type: ClassVar[type[Settings]] = Settings
    chosen_with: ClassVar[tuple[str, ...]] = ()
    needs_text: ClassVar[bool] = True
    refused_without_text: ClassVar[str] = ""
    across_checkpoints: ClassVar[bool] = False
    of_whole_runs: ClassVar[bool] = False
    names: ClassVar[str] = ""
    words: ClassVar[str] = ""
    of: ClassVar[Mapping[str, Any]] = {}
    results: ClassVar[Sequence[Result]] = ()

    def __init__(self, config: Config, text: TextConfig):
        self.config, self.text = config, text

    @property
    def key(self) -> str:
        """Return the dotted key of the section, for messages."""
        return f"config.evaluation.{self.section}" if self.section else "config.evaluation"

    @property
    def section_settings(self) -> dict[str, Any]:
        """Return all fields of the section as a result's settings hold them, with lists for tuples."""
        return {
            k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(cast(Any, self.config)).items()
        }

    def evaluations(self) -> list[Evaluation]:
        """Return what the configuration asks for: one entry per result that each model gets, with distinct names."""
        raise NotImplementedError

    @classmethod
    def has(cls, evaluation: str) -> bool:
        """Return whether an evaluation of this name is of this kind."""
        return cls._match(evaluation) is not None

    @classmethod
    def describe(cls, evaluation: str, result: str) -> Column:
        """Return the column of a result by its name and the evaluation's."""
        match = cls._match(evaluation)
        return cls.column(f"{evaluation}/{result}", result, match.groupdict() if match else {})

    @classmethod
    def _match(cls, evaluation: str) -> re.Match[str] | None:
        return re.fullmatch(cls.names or rf"{re.escape(cls.kind)}(?:_.*)?", evaluation)

    @classmethod
    def column(cls, name: str, result: str, groups: Mapping[str, str | None]) -> Column:
        """Return the column `name` of a result; `groups` are those of `names`, in the evaluation's name."""
        known = {key: value for key, value in groups.items() if value is not None}
        words, of = cls.words.format(**in_words(groups)), {**cls.of, **numbers(known)}
        if result.startswith("geometry/"):
            inner = probe_columns.describe(result.removeprefix("geometry/"))
            if inner is not None:
                return Column(name, "evaluation", inner.unit, sentence(words, inner.meaning), {**of, **inner.of})
        return describe_result(name, result, words, of, cls.results) or Column(name, "evaluation", "", NOT_DESCRIBED)

    def check(self, data: EvalData) -> None:
        """Raise ConfigError for a setting that the cohort or its data don't allow; called before anything is trained.

        `data.cohort` and `data.index` are available; no model is.
        """

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        """Return one result per model."""
        raise NotImplementedError

    def measure_all(self, models: ModelBatch, evaluations: Sequence[Evaluation]) -> Iterator[list[Measured]]:
        """Yield what `measure` returns for each evaluation; override it to measure several at once."""
        return (self.measure(models, evaluation) for evaluation in evaluations)

    def is_current(self, result: dict[str, Any], steps: list[int]) -> bool:
        """Return whether a stored result is still valid, given the steps of the run's present checkpoints."""
        return True

    def is_ready(self, steps: list[int], end: int) -> bool:
        """Return whether a run that ends at step `end`, with checkpoints at `steps`, can be measured."""
        return True

    def portions(self, models: list[Model]) -> Iterator[tuple[Model, ...]]:
        """Yield groups of models that are measured together, for evaluations across checkpoints."""
        yield tuple(models)


BUILT_IN: dict[str, type[Evaluator[Any]]] = {}
OWN: dict[str, type[Evaluator[Any]]] = {}


def evaluator(cls: AnyEvaluator) -> AnyEvaluator:
    """Register a class of evaluators under its kind.

    Raises ValueError if another class has that kind, or it has no `config_type`. The same class defined again, for
    example by a configuration file that is read twice, replaces the earlier one.
    """
    registry = BUILT_IN if cls.__module__.startswith("eval.evaluators.") else OWN
    known = BUILT_IN.get(cls.kind) or OWN.get(cls.kind)
    if known is not None and (known.__qualname__, _file(known)) != (cls.__qualname__, _file(cls)):
        raise ValueError(f"evaluation {cls.kind!r} of {_file(cls)} is already defined in {_file(known)}; rename it")
    if registry is OWN:
        if cls.config_type is Settings:
            raise ValueError(
                f"evaluation {cls.kind!r} of {_file(cls)} has no config_type; set it to the class of its section"
            )
        re.compile(cls.names)
        cls.section = f"own.{cls.kind}"
        cls.words = cls.words or cls.kind.replace("_", " ")
        cls.of = {"after": cls.kind, **cls.of}
    registry[cls.kind] = cls
    return cls


def in_one_line(error: Exception, kind: type[Evaluator[Any]]) -> str:
    """Return an evaluator's error, with the place in its file, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename == _file(kind)), frames[-1])
    return f"{type(error).__name__}: {brief(error)} ({Path(frame.filename).name}, line {frame.lineno})"


def _file(cls: type[Evaluator[Any]]) -> str:
    return inspect.getfile(cls.evaluations)
