"""List the evaluators of a configuration, and the evaluations that they request."""

import contextlib
import dataclasses
import graphlib
import importlib
import json
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import eval.evaluators
from eval.config import EvalConfig
from eval.eval_data import EvalData
from eval.evaluator import BUILT_IN, OWN, Evaluation, Evaluator, in_one_line
from olmo_jax.columns import Column
from olmo_jax.config import ConfigError, from_config_dict, require
from olmo_jax.errors import UserError
from olmo_jax.probes import columns as probe_columns
from olmo_jax.storage.names import file_name

for _module in pkgutil.iter_modules(eval.evaluators.__path__):
    importlib.import_module(f"eval.evaluators.{_module.name}")


def evaluators(config: EvalConfig) -> list[Evaluator[Any]]:
    """Return one evaluator per kind: all built-in ones, and the user-defined ones that `config.own` names.

    Those that `config.own` names but that aren't defined in this process are left out; `check` refuses them.
    """
    sections = ["", *(field.name for field in dataclasses.fields(config))]
    built_in = sorted(BUILT_IN.values(), key=lambda kind: sections.index(kind.section))
    chosen = [kind(getattr(config, kind.section) if kind.section else config, config) for kind in built_in]
    return chosen + [OWN[kind](_own_section(config, kind), config) for kind in config.own if kind in OWN]


def evaluations(config: EvalConfig) -> list[Evaluation]:
    """Return every evaluation of a configuration, each after those that it requires.

    Raises ConfigError for names that can't be used, for requirements that no evaluation fulfils, and if a user-defined
    evaluator raises an error.
    """
    by_name: dict[str, Evaluation] = {}
    for evaluator in evaluators(config):
        for evaluation in _evaluations_of(evaluator):
            if other := by_name.get(evaluation.name):
                raise ConfigError(f"config.evaluation: {evaluation.name!r} is the name of two evaluations, of "
                                  f"{other.kind} and {evaluation.kind}; rename one")  # fmt: skip
            by_name[evaluation.name] = evaluation
    for evaluation in by_name.values():
        for required in evaluation.requires:
            asked_for = by_name.get(required.name)
            if asked_for is None or (asked_for.kind, asked_for.settings) != (required.kind, required.settings):
                raise ConfigError(f"config.evaluation: {evaluation.name} requires {required.name}, which isn't "
                                  "requested with these settings; request it, or remove both")  # fmt: skip
    try:
        order = [
            *graphlib.TopologicalSorter({name: sorted(one.required) for name, one in by_name.items()}).static_order()
        ]
    except graphlib.CycleError as error:
        raise ConfigError(
            f"config.evaluation: {', '.join(error.args[1])} require each other; remove one of these requirements"
        ) from error
    return [by_name[name] for name in order]


def check(config: EvalConfig, data: EvalData) -> None:
    """Raise ConfigError for a setting that the cohort or its data don't allow, before anything is trained.

    Examples are domains that don't exist or have no documents, patterns that match no matrix, group sizes that don't
    divide a matrix's inputs, and tasks that are unknown or can't be fine-tuned on.
    """
    for kind in config.own:
        require(kind in OWN, "config.evaluation.own", kind, "isn't defined; name the --config=FILE that defines it "
                "with @evaluator, or remove it")  # fmt: skip
    evaluations(config)
    for evaluator in evaluators(config):
        if evaluator.needs_text and data.shape.arithmetic:
            field = evaluator.refused_without_text
            asked_for = getattr(evaluator.config, field) if field else type(evaluator) in OWN.values()
            problem = "needs text, and the data have only equations; leave it out"
            require(not asked_for, f"{evaluator.key}.{field}".removesuffix("."), asked_for, problem)
        else:
            with errors_of(evaluator):
                evaluator.check(data)


@contextlib.contextmanager
def errors_of(evaluator: Evaluator[Any]) -> Iterator[None]:
    """Turn an error that a user-defined evaluator raises into a ConfigError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(evaluator) not in OWN.values():
            raise
        raise ConfigError(f"{evaluator.key}: {in_one_line(error, type(evaluator))}; correct it") from error


def describe(name: str) -> Column | None:
    """Return the column of an evaluation's result by its name, `<evaluation>/<result>`; None if no evaluator has it."""
    evaluation, _, result = name.partition("/")
    kinds = [kind for kind in (*BUILT_IN.values(), *OWN.values()) if result and kind.has(evaluation)]
    return kinds[0].describe(evaluation, result) if kinds else None


def _evaluations_of(evaluator: Evaluator[Any]) -> list[Evaluation]:
    kind = type(evaluator)
    if kind not in OWN.values():
        return evaluator.evaluations()
    with errors_of(evaluator):
        chosen = [_as_stored(evaluation) for evaluation in evaluator.evaluations()]
        for evaluation in chosen:
            kind.describe(evaluation.name, "")  # raises if `words` has a group that `names` lacks
    for evaluation in chosen:
        name = evaluation.name
        require(
            evaluation.kind == kind.kind,
            f"{evaluator.key}: {name}: kind",
            evaluation.kind,
            f"needs to be {kind.kind!r}",
        )
        problem = "has to be a short file name, without '/', '@' or a leading '.'"
        usable = isinstance(name, str) and file_name(name) == name and "@" not in name and not name.startswith(".")
        require(usable, f"{evaluator.key}: name", name, problem)
        others = [other.kind for other in BUILT_IN.values() if other.has(name)]
        others += ["probe"] if probe_columns.describe(f"{name}/stable_rank") else []
        require(
            not others,
            f"{evaluator.key}: name",
            name,
            f"would be read as a result of {', '.join(others)}; choose another",
        )
    return chosen


def _as_stored(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation with its settings as JSON returns them: without tuples."""
    settings = json.loads(json.dumps(evaluation.settings, allow_nan=False))
    return evaluation._replace(settings=settings, requires=tuple(map(_as_stored, evaluation.requires)))


def _own_section(config: EvalConfig, kind: str) -> Any:
    section = config.own[kind]
    if dataclasses.is_dataclass(section):
        return section
    require(isinstance(section, Mapping), f"config.evaluation.own.{kind}", section, "needs a section with keys")
    return from_config_dict(OWN[kind].config_type, section, f"config.evaluation.own.{kind}")
