"""Read the states that a probe would, and compute columns of it that a sweep was trained without, after training."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import Array

from eval.eval_data import EvalData
from geometry.dimension import first_distinct
from geometry.probe import METRICS
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort
from olmo_jax.config import ModelConfig, ProbeConfig, TargetConfig
from olmo_jax.config.probe import ParametersConfig, SharpnessConfig, TextsConfig
from olmo_jax.console import progress, say
from olmo_jax.data.prepare import prepare
from olmo_jax.data.shards import TokenIndex
from olmo_jax.errors import UserError
from olmo_jax.execution.members import over_members
from olmo_jax.probes.columns import ALIGNMENT, SHARPNESS
from olmo_jax.probes.geometry import Documents, make_probes, most_directions, take_states
from olmo_jax.probes.texts import EvaluationSet, evaluation_sets, read_states
from olmo_jax.storage.run_files import data_root
from olmo_jax.train import probe_documents
from sweeps.judge.matrices import Matrix, is_of_text
from sweeps.planning.record import recorded_plan

_CENTRED = "_centred"
_TARGETS = r"unembedding_gauge_fixed|(unembedding|embedding|final_states|layer_\d+)(_centred)?"
_DIRECTIONS = 8  # compared by alignment, if the run's probe says nothing
# Of sharpness, if the run's probe says nothing: documents of the loss, and vectors of the trace or eigenvalue.
_DOCUMENTS, _VECTORS = 32, 8
_MEMBERS = 8  # read at a time


def can_probe(column: str) -> bool:
    """Return whether a probe could measure this column of any run."""
    target, _, name = column.rpartition("/")
    if target == "alignment":
        return name in ALIGNMENT
    if target == "sharpness":
        return name in SHARPNESS
    return name in METRICS and (is_of_text(target) or re.fullmatch(_TARGETS, target) is not None)


def measure(
    workdir: epath.Path, columns: Sequence[str], runs: Collection[str]
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the columns by run, a few runs at a time, at the last checkpoints, with the documents of the runs' probes.

    A column that a run's probe has nothing to measure by, such as a layer that it lacks, is left out.

    Raises CheckpointError for a run without its last checkpoint, and what `prepare` raises.
    """
    done, said = 0, set[str]()
    with progress("judge", len(runs)) as show:
        for stack, models, data, index in _stacks(workdir, runs):
            config = _config(stack.shape.config.probe, columns, data.shape.model)
            documents = _documents(stack, config, index)
            if documents is not None:
                for message in _too_few(columns, config, documents) - said:
                    say(message)
                    said.add(message)
                most = most_directions(data.shape.model.d_model, index.vocab_size, documents)
                config = dataclasses.replace(config, alignment=min(config.alignment, most))
            texts, places = _evaluation_sets(stack, config, index), _places(stack)
            probes = make_probes(config, data.shape.model, index.vocab_size, documents, evaluation_sets=texts)
            for portion, params_M in _loaded(data, models):
                found: dict[str, Any] = {}
                for probe in probes.values():
                    found |= jax.device_get(probe(params_M, [places[run] for run in portion]))
                yield {
                    run: {column: float(found[column][m]) for column in columns if column in found}
                    for m, run in enumerate(portion)
                }
                done += len(portion)
                show(done, "runs")


def _too_few(columns: Sequence[str], config: ProbeConfig, documents: Documents) -> set[str]:
    """Return messages about local dimensions of fewer states than a neighbourhood takes."""
    states = documents.points_SP.shape[1]
    if states > config.neighbors:
        return set()
    return {
        f"{target}/{name}: a set of documents has {states} states, too few for {config.neighbors} neighbours of each, "
        f"so all others are used; judge {target}.validation/{name}, of {config.texts.points} states, instead"
        for target, name in (column.rpartition("/")[::2] for column in columns)
        if name.startswith("local_") and not is_of_text(target)
    }


def states(workdir: epath.Path, sources: Sequence[str], runs: Collection[str]) -> list[Matrix]:
    """Return states at the last checkpoints of runs, on the first set of documents of their probes; see `source_of`.

    Runs whose checkpoint is gone are left out. If plan or text can't be read, there are none, and a message says why.
    """
    matrices: list[Matrix] = []
    try:
        for stack, models, data, index in _stacks(workdir, runs, saved=True):
            shape, places = data.shape.model, _places(stack)
            config = _config(stack.shape.config.probe, [f"{source}/effective_rank" for source in sources], shape)
            documents, texts = _documents(stack, config, index), _evaluation_sets(stack, config, index)
            for portion, params_M in _loaded(data, models):
                for m, run in enumerate(portion):
                    one = jax.tree.map(lambda x_M, m=m: x_M[m : m + 1], params_M)
                    found = _states(config, shape, documents, texts, places[run], one)
                    matrices += [
                        Matrix(run, found[source][0], shape.norm, source, shape.norm_at, _neighbors(config, source))
                        for source in sources
                        if source in found
                    ]
    except UserError as error:
        say(f"states aren't recomputed: {error}")
    return matrices


def _neighbors(config: ProbeConfig, source: str) -> int:
    return config.texts.neighbors if is_of_text(source) else config.neighbors


def _states(
    config: ProbeConfig,
    architecture: ModelConfig,
    documents: Documents | None,
    texts: Sequence[EvaluationSet],
    place: int,
    params_M: Any,
) -> dict[str, np.ndarray]:
    """Return the states `[1, P, D]` that the probe measures of a stack of one model, by name, as "layer_1.train"."""
    found: dict[str, np.ndarray] = {}
    if documents is not None:
        targets = tuple(name for name in ("final_states", "layers") if getattr(config, name).metrics)
        batch = documents.tokens_SNL[0], documents.points_SP[0]
        found |= jax.device_get(_take(config, targets, architecture, batch, params_M))
    for text in texts:
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
    return {run.id: place for place, run in enumerate(stack.runs)}


def _documents(stack: Cohort, config: ProbeConfig, index: TokenIndex) -> Documents | None:
    """Return the documents that a probe of a stack's runs reads."""
    return probe_documents(Cohort(stack.shape.with_config(probe=config), stack.runs), index)


def _evaluation_sets(stack: Cohort, config: ProbeConfig, index: TokenIndex) -> list[EvaluationSet]:
    """Return the named texts that a probe of a stack's runs reads."""
    return evaluation_sets([dataclasses.replace(run.config, probe=config) for run in stack.runs], index)


def _config(probe: ProbeConfig, columns: Sequence[str], architecture: ModelConfig) -> ProbeConfig:
    """Return the probe that measures these columns, and nothing else."""
    names: dict[str, set[str]] = {}
    centred: set[str] = set()
    of_texts: list[tuple[str, str, str]] = []
    for column in columns:
        target, _, name = column.rpartition("/")
        if is_of_text(target):
            source, _, text = target.partition(".")
            of_texts.append((source, text, name))
            continue
        plain = target.removesuffix(_CENTRED).removesuffix("_gauge_fixed")
        plain = "layers" if plain.startswith("layer_") else plain
        names.setdefault(plain, set()).add(name)
        centred |= {plain} if target.endswith(_CENTRED) else set()
    sharpness = SharpnessConfig()
    if found := names.pop("sharpness", None):
        sharpness = SharpnessConfig(
            documents=probe.sharpness.documents or min(_DOCUMENTS, probe.documents),
            draws=(probe.sharpness.draws or _VECTORS) if found & {"trace", "trace_standard_error"} else 0,
            lanczos_steps=(probe.sharpness.lanczos_steps or _VECTORS) if "top_eigenvalue" in found else 0,
        )
    alignment = 0
    if names.pop("alignment", None):
        names.setdefault("final_states", {"points"})
        alignment = probe.alignment or _DIRECTIONS

    def chosen(name: str) -> TargetConfig:
        return TargetConfig(tuple(sorted(names.get(name, ()))), centred=name in centred)

    return dataclasses.replace(
        probe,
        every=1,
        unembedding=chosen("unembedding"),
        embedding=chosen("embedding"),
        parameters=ParametersConfig(),
        final_states=chosen("final_states"),
        layers=chosen("layers"),
        texts=_texts(probe, of_texts, architecture),
        alignment=alignment,
        sharpness=sharpness,
    )


def _texts(probe: ProbeConfig, columns: Sequence[tuple[str, str, str]], architecture: ModelConfig) -> TextsConfig:
    """Return what measures metrics of states on texts, given as (states, text, metric), of those that a model has."""
    layers = {f"layer_{i}" for i in range(architecture.n_layers)}
    found = [column for column in columns if column[0] in layers | {"final_states"}]
    if not found:
        return TextsConfig()
    states, names, metrics = (tuple(dict.fromkeys(values)) for values in zip(*found, strict=True))
    tokens = (probe.texts if probe.texts.names else probe).document_tokens
    return dataclasses.replace(
        probe.texts, every=0, names=names, states=states, metrics=metrics, document_tokens=tokens
    )
