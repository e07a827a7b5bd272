"""Measure the local dimension of a checkpoint for several numbers of points and neighbours.

It shows how much the result depends on these settings of the method.
"""

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
    """Return one evaluation if any numbers of points are configured, else none."""
    settings = {k: list(v) for k, v in identity_fields(config.dimension).items()}
    return [Evaluation("local_dimension", "local_dimension", settings)] if config.dimension.points else []


def measure(stack: ModelBatch, evaluation: Evaluation) -> list[Measured]:
    """Return each model's metrics `<states>.<text>/n<N>_l<L>/<metric>`: mean, SD over points, and number of points."""
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
                prefix = f"{name}.{text}/n{points}_l{neighbors}"
                for m, row in enumerate(rows):
                    row |= {f"{prefix}/{metric}": float(x_M[m]) for metric, x_M in values.items()}
    return [Measured(row, {}) for row in rows]


class Mapping(NamedTuple):
    """How members are mapped over the device: arguments of members.over_members."""

    mapping: str
    at_once: int

    def over(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Return `f`, a function of one member, mapped over a stack."""
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
    """Return the states `[M, K, T, D]` of the tokens drawn from an evaluation set, by name."""
    read = functools.partial(read_states, texts, architecture, evaluation_set)
    return mapping.over(read)(params_M, points_MKT)


@functools.partial(jax.jit, static_argnames=("texts", "mapping"))
def _geometry(texts: TextsConfig, mapping: Mapping, states_MTD: Array) -> dict[str, Array]:
    """Return each metric `[M]` of the states of one text."""
    return mapping.over(functools.partial(states_geometry, texts))(states_MTD)
