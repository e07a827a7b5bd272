"""Read the states that a probe would, and compute columns of it that a sweep was trained without, after training."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array

from eval.eval_data import EvalData
from geometry.dimension import first_distinct
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort
from olmo_jax.config import ConfigError, ModelConfig, ProbeConfig
from olmo_jax.config.probe import TextsConfig
from olmo_jax.console import progress, say
from olmo_jax.data.prepare import prepare
from olmo_jax.data.shards import TokenIndex
from olmo_jax.errors import UserError
from olmo_jax.execution.members import over_members
from olmo_jax.probes.geometry import Documents, Probe, make_probes, most_directions, take_states
from olmo_jax.probes.texts import EvaluationSet, evaluation_sets, read_states
from olmo_jax.storage.run_files import data_root
from olmo_jax.train import probe_documents
from sweeps.judge.matrices import UNEMBEDDING, Matrix, is_of_text, source_of
from sweeps.judge.probe_configs import probe_configs
from sweeps.planning.record import recorded_plan

_MEMBERS = 8  # read at a time


def measure(
    workdir: epath.Path, columns: Sequence[str], runs: Collection[str]
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the columns by run, a few runs at a time, at the last checkpoints, with the documents of the runs' probes.

    A column that a run's probe has nothing to measure by, such as a layer that it lacks or a text that is too short, is
    left out.

    Raises CheckpointError for a run without its last checkpoint, and what `prepare` raises.
    """
    done, said = 0, _Said()
    with progress("judge", len(runs)) as show:
        for stack, models, data, index in _stacks(workdir, runs):
            probes: list[Probe] = []
            for reading in _readings(stack, columns, index, said):
                config = reading.config
                if reading.documents is not None:
                    _say_if_too_few(columns, stack.shape.config.probe, reading.documents, said)
                    most = most_directions(data.shape.model.d_model, index.vocab_size, reading.documents)
                    config = dataclasses.replace(config, alignment=min(config.alignment, most))
                probes += make_probes(
                    config, data.shape.model, index.vocab_size, reading.documents, evaluation_sets=reading.texts
                ).values()
            places = _places(stack)
            for portion, params_M in _loaded(data, models):
                found: dict[str, Any] = {}
                for probe in probes:
                    found |= jax.device_get(probe(params_M, [places[run] for run in portion]))
                yield {
                    run: {column: float(found[column][m]) for column in columns if column in found}
                    for m, run in enumerate(portion)
                }
                done += len(portion)
                show(done, "runs")


class _Said(set[str]):
    """Messages, each of which is printed once."""

    def once(self, message: str) -> None:
        if message not in self:
            say(message)
            self.add(message)


def _say_if_too_few(columns: Sequence[str], probe: ProbeConfig, documents: Documents, said: _Said) -> None:
    """Say which local dimensions are of fewer states than a neighbourhood takes."""
    states = documents.points_SP.shape[1]
    for column in columns if states <= probe.neighbors else ():
        target, _, name = column.rpartition("/")
        is_of_documents = source_of(column) == target != UNEMBEDDING and not is_of_text(target)
        if name.startswith("local_") and is_of_documents:
            said.once(
                f"{column}: a set of documents has {states} states, too few for {probe.neighbors} neighbours of each, "
                f"so all others are used; {target}.validation/{name} is of {probe.texts.points} states"
            )


def states(workdir: epath.Path, sources: Sequence[str], runs: Collection[str]) -> list[Matrix]:
    """Return states at the last checkpoints of runs, by `source_of`: of a text, or of the probe's first documents.

    What can't be read is left out, and a message says why.
    """
    matrices: list[Matrix] = []
    columns, said = [f"{source}/effective_rank" for source in sources], _Said()
    try:
        for stack, models, data, index in _stacks(workdir, runs, saved=True):
            shape, places = data.shape.model, _places(stack)
            readings = _readings(stack, columns, index, said)
            for portion, params_M in _loaded(data, models):
                for m, run in enumerate(portion):
                    one = jax.tree.map(lambda x_M, m=m: x_M[m : m + 1], params_M)
                    for reading in readings:
                        found = _states(reading, shape, places[run], one)
                        matrices += [
                            Matrix(run, found[source][0], shape.norm, source, shape.norm_at, reading.neighbors)
                            for source in sources
                            if source in found
                        ]
    except UserError as error:
        say(f"states aren't recomputed: {error}")
    return matrices


def _states(reading: "_Reading", architecture: ModelConfig, place: int, params_M: Any) -> dict[str, np.ndarray]:
    """Return the states `[1, P, D]` that the probe measures of a stack of one model, by name, as "layer_1.train"."""
    found: dict[str, np.ndarray] = {}
    config, documents = reading.config, reading.documents
    if documents is not None:
        targets = tuple(name for name in ("final_states", "layers") if getattr(config, name).metrics)
        batch = documents.tokens_SNL[0], documents.points_SP[0]
        found |= jax.device_get(_take(config, targets, architecture, batch, params_M))
    for text in reading.texts:
        found |= jax.device_get(_take_drawn(config.texts, architecture, text, text.of([place])[1], params_M))
    return found


@functools.partial(jax.jit, static_argnames=("config", "targets", "architecture"))
def _take(
    config: ProbeConfig, targets: tuple[str, ...], architecture: ModelConfig, batch: Any, params_M: Any
) -> dict[str, Array]:
    return over_members(lambda params: take_states(config, targets, architecture, batch, params))(params_M)


def _stacks(
    workdir: epath.Path, runs: Collection[str], saved: bool = False
) -> Iterator[tuple[Cohort, list[tuple[str, int]], EvalData, TokenIndex]]:
    """Yield each stack that has some of the runs, with these and their last steps, and what reads models and text.

    Args:
      saved: leave out runs whose last checkpoint isn't there.
    """
    plan = recorded_plan(workdir)
    for stack in plan.stacks:
        folder = checkpoint.directory(workdir, stack.folder)
        models = [(run.id, run.config.total_steps) for run in stack.runs if run.id in runs]
        if saved:
            models = [(run, step) for run, step in models if (folder / str(step)).exists()]
        if models:
            config = plan.data[stack.shape.data_name]
            index = prepare(config.data, data_root(workdir, config), say)
            yield stack, models, EvalData(workdir, stack, index, plan.evaluation), index


def _loaded(data: EvalData, models: Sequence[tuple[str, int]]) -> Iterator[tuple[list[str], Any]]:
    """Yield the models of a stack, a few at a time: their runs, and their parameters."""
    for start in range(0, len(models), _MEMBERS):
        portion = models[start : start + _MEMBERS]
        yield [run for run, _ in portion], data.load(portion)


@functools.partial(jax.jit, static_argnames=("config", "architecture"))
def _take_drawn(
    config: TextsConfig, architecture: ModelConfig, texts: EvaluationSet, points_MKT: Array, params_M: Any
) -> dict[str, Array]:
    def take(params: Any, points_KT: Array) -> dict[str, Array]:
        states = read_states(config, architecture, texts, params, points_KT)
        return {
            f"{name}.{text}": first_distinct(states_KTD[k], config.points)[0]
            for name, states_KTD in states.items()
            for k, text in enumerate(texts.names)
        }

    return over_members(take)(params_M, points_MKT)


def _places(stack: Cohort) -> dict[str, int]:
    """Return the place of each run among the members that an evaluation set has documents for."""
    return {run.id: place for place, run in enumerate(stack.runs)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """A probe, and what it reads: documents, or a named text, or neither."""

    config: ProbeConfig
    documents: Documents | None
    texts: list[EvaluationSet]

    @property
    def neighbors(self) -> int:
        return self.config.texts.neighbors if self.texts else self.config.neighbors


def _readings(stack: Cohort, columns: Sequence[str], index: TokenIndex, said: _Said) -> list[_Reading]:
    """Return the probes that measure the columns of a stack's runs; a text that is missing or too short is left out."""
    readings = []
    for config in probe_configs(stack.shape.config.probe, columns, stack.shape.model):
        try:
            texts = evaluation_sets([dataclasses.replace(run.config, probe=config) for run in stack.runs], index)
        except ConfigError as error:
            said.once(f"no states are measured on {config.texts.names[0]}: {error}")
            continue
        documents = probe_documents(Cohort(stack.shape.with_config(probe=config), stack.runs), index)
        readings.append(_Reading(config, documents, texts))
    return readings
