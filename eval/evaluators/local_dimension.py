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

from eval.columns import Result
from eval.eval_data import EvalData, ModelBatch
from eval.evaluator import Evaluation, Evaluator, Measured, evaluator
from olmo_jax.config import ConfigError, ModelConfig, TextsConfig, TrainConfig, require
from olmo_jax.config.field import Role, at_least, each, setting
from olmo_jax.config.identity import identity_fields
from olmo_jax.config.validation import Settings, unique
from olmo_jax.execution.members import over_members
from olmo_jax.probes.texts import EvaluationSet, evaluation_sets, members_at_once, read_states, states_geometry

METRICS = ("local_two_nn", "local_two_nn_std", "points")
_OF = r"(?P<states>[^./]+)\.(?P<text>.+)/n(?P<points>\d+)_l(?P<neighbors>\d+)"


@dataclasses.dataclass(frozen=True)
class DimensionConfig(Settings):
    """How local dimension, on the texts and states of config.train.probe.texts, depends on how it is measured."""

    points: tuple[int, ...] = setting(
        (),
        Role.OBSERVATION,
        "Numbers N of states. All pairs of these and `neighbors` are measured, at the last checkpoint; () for none.",
    )
    neighbors: tuple[int, ...] = setting(
        (32, 64, 128),
        Role.OBSERVATION,
        "Sizes L of neighbourhoods.",
        bound=each(at_least(3, ""), "needs numbers of at least 3"),
    )

    def check_fields(self, at: str) -> None:
        for name in ("points", "neighbors"):
            unique(getattr(self, name), f"{at}.{name}")
        require(bool(self.neighbors) or not self.points, f"{at}.neighbors", self.neighbors, "needs one at least")
        require(
            not self.points or min(self.points) > max(self.neighbors),
            f"{at}.points",
            self.points,
            f"among {min(self.points, default=0)} points, none has {max(self.neighbors, default=0)} neighbours; "
            f"raise it, or lower {at}.neighbors",
        )


@evaluator
class LocalDimension(Evaluator[DimensionConfig]):
    """Mean and standard deviation over points, and the number of points, `<states>.<text>/n<N>_l<L>/<metric>`."""

    kind = "local_dimension"
    names = "local_dimension"
    section = "dimension"
    config_type = DimensionConfig
    needs_text = False
    results = (
        Result(
            f"{_OF}/(?P<metric>local_two_nn)",
            "Mean TwoNN dimension of {states}.{text} around {points} points in neighbourhoods of {neighbors}",
            "",
            "evaluation",
        ),
        Result(
            f"{_OF}/(?P<metric>local_two_nn_std)",
            "Standard deviation over points of the TwoNN dimension of {states}.{text}, for {points} points and "
            "neighbourhoods of {neighbors}",
            "",
            "evaluation",
        ),
        Result(f"{_OF}/(?P<metric>points)", "Number of points that were measured", "rows", "count"),
    )

    def evaluations(self) -> list[Evaluation]:
        settings = {k: list(v) for k, v in identity_fields(self.config).items()}
        return [Evaluation(self.kind, self.kind, settings)] if self.config.points else []

    def check(self, data: EvalData) -> None:
        """Check that there are texts, with enough states, for the configured numbers of points and neighbours."""
        value = self.config.points
        if not value:
            return
        texts = dataclasses.replace(
            data.shape.config.probe.texts, points=max(value), neighbors=max(self.config.neighbors)
        )
        require(bool(texts.names), f"{self.key}.points", value, "needs texts; name some in config.train.probe.texts")
        try:
            evaluation_sets(_with_texts(data, texts), data.index)
        except ConfigError as error:
            raise ConfigError(f"{self.key}.points = {value!r}: {error}") from error

    def measure(self, models: ModelBatch, evaluation: Evaluation) -> list[Measured]:
        data, settings = models.eval_data, evaluation.settings
        shape = data.shape
        texts = dataclasses.replace(shape.config.probe.texts, points=max(settings["points"]), metrics=METRICS)
        ids = [run.id for run in data.cohort.runs]
        places = [ids.index(run) for run, _ in models.models]
        rows: list[dict[str, float]] = [{} for _ in places]
        for evaluation_set in evaluation_sets(_with_texts(data, texts), data.index):
            mapping = Mapping(shape.config.mapping, members_at_once(texts, shape.model, [evaluation_set]))
            points_MKT = evaluation_set.of(places)[1]
            states = _states(texts, shape.model, mapping, evaluation_set, models.params_M, points_MKT)
            for (name, states_MKTD), (k, text) in itertools.product(states.items(), enumerate(evaluation_set.names)):
                for points, neighbors in itertools.product(settings["points"], settings["neighbors"]):
                    sized = dataclasses.replace(texts, points=points, neighbors=neighbors)
                    values = _geometry(sized, mapping, states_MKTD[:, k])
                    prefix = f"{name}.{text}/n{points}_l{neighbors}"
                    for m, row in enumerate(rows):
                        row |= {f"{prefix}/{metric}": float(x_M[m]) for metric, x_M in values.items()}
        return [Measured(row, {}) for row in rows]


def _with_texts(data: EvalData, texts: TextsConfig) -> list[TrainConfig]:
    """Return the configurations of the cohort's runs, with these texts in their probe."""
    configs = [run.config for run in data.cohort.runs]
    return [dataclasses.replace(config, probe=dataclasses.replace(config.probe, texts=texts)) for config in configs]


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
