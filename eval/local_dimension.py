"""Local dimension of a checkpoint by number of points and size of neighbourhoods: how far it is the method's."""

import dataclasses
import functools
import itertools
from typing import Any

import jax

from eval.config import EvalConfig
from eval.material import Stack
from eval.results import Evaluation, Measured
from olmo_jax.cohort import over_members
from olmo_jax.config import ModelConfig, TextsConfig
from olmo_jax.identity import identity_fields
from olmo_jax.texts import Passage, members_at_once, passages, read_states, states_geometry

METRICS = ("local_two_nn", "local_two_nn_std", "points")


def evaluations(config: EvalConfig) -> list[Evaluation]:
    """One, if any points are asked for."""
    asked = {k: list(v) for k, v in identity_fields(config.dimension).items()}
    return [Evaluation("local_dimension", "local_dimension", asked)] if config.dimension.points else []


def measure(stack: Stack, evaluation: Evaluation) -> list[Measured]:
    """Of each model, by `<states>.<text>/n<N>_l<L>/<metric>`: mean, standard deviation over points, and points."""
    cohort, settings = stack.material.cohort, evaluation.settings
    texts = dataclasses.replace(cohort.shape.probe.texts, points=max(settings["points"]), metrics=METRICS)
    configs = [
        dataclasses.replace(run.config, probe=dataclasses.replace(run.config.probe, texts=texts)) for run in cohort.runs
    ]
    ids = [run.id for run in cohort.runs]
    places = [ids.index(run) for run, _ in stack.models]
    found: list[dict[str, float]] = [{} for _ in places]
    for passage in passages(configs, stack.material.index):
        at_once = members_at_once(texts, cohort.shape.model, [passage])
        how = functools.partial(over_members, mapping=cohort.shape.mapping, at_once=at_once)
        read = functools.partial(_read, texts, cohort.shape.model, passage)
        states = jax.jit(how(read))(stack.params_M, passage.of(places)[1])
        for (name, states_MKTD), (k, text) in itertools.product(states.items(), enumerate(passage.names)):
            for points, neighbors in itertools.product(settings["points"], settings["neighbors"]):
                of = dataclasses.replace(texts, points=points, neighbors=neighbors)
                values = jax.jit(how(functools.partial(states_geometry, of)))(states_MKTD[:, k])
                at = f"{name}.{text}/n{points}_l{neighbors}"
                for m, row in enumerate(found):
                    row |= {f"{at}/{metric}": float(x_M[m]) for metric, x_M in values.items()}
    return [Measured(row, {}) for row in found]


def _read(texts: TextsConfig, architecture: ModelConfig, passage: Passage, params: Any, points_KT: Any) -> Any:
    return read_states(texts, architecture, passage, params, points_KT)
