"""The evaluators of a configuration, and the evaluations that they ask for."""

import contextlib
import dataclasses
import graphlib
import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import eval.evaluators
from eval.config import EvalConfig
from eval.eval_data import EvalData
from eval.evaluator import BUILT_IN, OWN, Evaluation, Evaluator, in_one_line
from olmo_jax.columns import Column
from olmo_jax.config import ConfigError, from_config_dict, require
from olmo_jax.errors import UserError

for _module in pkgutil.iter_modules(eval.evaluators.__path__):
    importlib.import_module(f"eval.evaluators.{_module.name}")


def evaluators(config: EvalConfig) -> list[Evaluator[Any]]:
    """Return one evaluator per kind: all that come with the library, and those of your own that `config.own` names.

    Those that `config.own` names but nobody has defined in this process are left out; `check` refuses them.
    """
    sections = ["", *(field.name for field in dataclasses.fields(config))]
    built_in = sorted(BUILT_IN.values(), key=lambda kind: sections.index(kind.section))
    chosen = [kind(getattr(config, kind.section) if kind.section else config, config) for kind in built_in]
    return chosen + [OWN[kind](_own_section(config, kind), config) for kind in config.own if kind in OWN]


def evaluations(config: EvalConfig) -> list[Evaluation]:
    """Return every evaluation of a configuration, each after those that it requires.

    Raises ConfigError where two have the same name, and where an evaluator of your own raises an error.
    """
    by_name: dict[str, Evaluation] = {}
    for evaluator in evaluators(config):
        for evaluation in _evaluations_of(evaluator):
            if other := by_name.get(evaluation.name):
                raise ConfigError(f"config.evaluation: {evaluation.name!r} is the name of two evaluations, of "
                                  f"{other.kind} and {evaluation.kind}; rename one")  # fmt: skip
            by_name[evaluation.name] = evaluation
    required = {name: sorted(one.required & by_name.keys()) for name, one in by_name.items()}
    return [by_name[name] for name in graphlib.TopologicalSorter(required).static_order()]


def check(config: EvalConfig, data: EvalData) -> None:
    """Raise ConfigError for a setting that the cohort or its data don't allow, before anything is trained.

    Such as domains that don't exist or have no documents, patterns that match no matrix, group sizes that don't divide
    a matrix's inputs, and tasks that are unknown or can't be fine-tuned on.
    """
    for kind in config.own:
        require(kind in OWN, "config.evaluation.own", kind, "isn't defined; name the --config=FILE that defines it "
                "with @evaluator, or remove it")  # fmt: skip
    evaluations(config)
    for evaluator in evaluators(config):
        if evaluator.needs_text and data.shape.arithmetic:
            field = evaluator.refused_without_text
            asked_for = getattr(evaluator.config, field) if field else ()
            problem = "needs text, and the data have only equations; set it to ()"
            require(not asked_for, f"{evaluator.key}.{field}", asked_for, problem)
        else:
            with _errors_of(evaluator):
                evaluator.check(data)


def describe(name: str) -> Column | None:
    """Return the column of an evaluation's result by its name, `<evaluation>/<result>`; None if no evaluator has it."""
    evaluation, _, result = name.partition("/")
    kinds = [kind for kind in (*BUILT_IN.values(), *OWN.values()) if result and kind.has(evaluation)]
    return kinds[0].describe(evaluation, result) if kinds else None


def _evaluations_of(evaluator: Evaluator[Any]) -> list[Evaluation]:
    with _errors_of(evaluator):
        return [_as_stored(evaluation) for evaluation in evaluator.evaluations()]


def _as_stored(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose settings are as they are read again: without tuples."""
    requires = tuple(map(_as_stored, evaluation.requires))
    return evaluation._replace(settings=json.loads(json.dumps(evaluation.settings)), requires=requires)


@contextlib.contextmanager
def _errors_of(evaluator: Evaluator[Any]) -> Iterator[None]:
    """Turn what an evaluator of the user's own raises into a ConfigError in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(evaluator) not in OWN.values():
            raise
        raise ConfigError(f"{evaluator.key}: {in_one_line(error)}; correct it") from error


def _own_section(config: EvalConfig, kind: str) -> Any:
    section = config.own[kind]
    if dataclasses.is_dataclass(section):
        return section
    return from_config_dict(OWN[kind].config_type, section, f"config.evaluation.own.{kind}")
