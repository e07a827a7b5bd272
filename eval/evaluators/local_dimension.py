"""Local dimension of a checkpoint by number of points and size of neighbourhoods: how far it is the method's."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from eval.config import EvalConfig
from eval.eval_data import ModelBatch
from eval.results import Evaluation, Measured
from olmo_jax.config import ModelConfig, TextsConfig
from olmo_jax.config.identity import identity_fields
from olmo_jax.execution.members import over_members
from olmo_jax.probes.texts import EvaluationSet, evaluation_sets, members_at_once, read_states, states_geometry

METRICS = ("local_two_nn", "local_two_nn_std", "points")


def evaluations(config: EvalConfig) -> list[Evaluation]:
    """One, if any points are asked for."""
    asked = {k: list(v) for k, v in identity_fields(config.dimension).items()}
    return [Evaluation("local_dimension", "local_dimension", asked)] if config.dimension.points else []


def measure(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Of each model, by `<states>.<text>/n<N>_l<L>/<metric>`: mean, standard deviation over points, and points."""
    cohort, settings = stack.eval_data.cohort, evaluation.settings
    texts = dataclasses.replace(cohort.shape.config.probe.texts, points=max(settings["points"]), metrics=METRICS)
    configs = [
        dataclasses.replace(run.config, probe=dataclasses.replace(run.config.probe, texts=texts)) for run in cohort.runs
    ]
    ids = [run.id for run in cohort.runs]
    places = [ids.index(run) for run, _ in stack.models]
    rows: list[dict[str, float]] = [{} for _ in places]
    for evaluation_set in evaluation_sets(configs, stack.eval_data.index):
        at_once = members_at_once(texts, cohort.shape.model, [evaluation_set])
        mapping = Mapping(cohort.shape.config.mapping, at_once)
        states = _states(
            texts, cohort.shape.model, mapping, evaluation_set, stack.params_M, evaluation_set.of(places)[1]
        )
        for (name, states_MKTD), (k, text) in itertools.product(states.items(), enumerate(evaluation_set.names)):
            for points, neighbors in itertools.product(settings["points"], settings["neighbors"]):
                sized = dataclasses.replace(texts, points=points, neighbors=neighbors)
                values = _geometry(sized, mapping, states_MKTD[:, k])
                at = f"{name}.{text}/n{points}_l{neighbors}"
                for m, row in enumerate(rows):
                    row |= {f"{at}/{metric}": float(x_M[m]) for metric, x_M in values.items()}
    return [Measured(row, {}) for row in rows]


class Mapping(NamedTuple):
    """How members go through the device, as members.over_members takes it."""

    mapping: str
    at_once: int

    def over(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f` of one member over a stack."""
        return over_members(f, self.mapping, at_once=self.at_once)


@functools.partial(jax.jit, static_argnames=("texts", "architecture", "mapping"))
def _states(
    texts: TextsConfig,
    architecture: ModelConfig,
    mapping: Mapping,
    evaluation_set: EvaluationSet,
    params_M: Any,
    points_MKT: Any,
) -> dict[str, Array]:
    """States `[M, K, T, D]` of the tokens drawn from an evaluation set, by name."""
    read = functools.partial(read_states, texts, architecture, evaluation_set)
    return mapping.over(read)(params_M, points_MKT)


@functools.partial(jax.jit, static_argnames=("texts", "mapping"))
def _geometry(texts: TextsConfig, mapping: Mapping, states_MTD: Array) -> dict[str, Array]:
    """Each metric `[M]` of the states of one text."""
    return mapping.over(functools.partial(states_geometry, texts))(states_MTD)
