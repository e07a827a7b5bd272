"""Read the states that a probe would, and compute columns of it that a sweep was trained without, after training."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
from etils import epath
from jax import Array

from eval.eval_data import EvalData
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
from olmo_jax.storage.run_files import data_root
from olmo_jax.train import probe_documents
from sweeps.judge.matrices import Matrix
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
    return name in METRICS and re.fullmatch(_TARGETS, target) is not None


def measure(
    workdir: epath.Path, columns: Sequence[str], runs: Collection[str]
) -> Iterator[dict[str, dict[str, float]]]:
    """Yield the columns by run, a few runs at a time, at the last checkpoints, with the documents of the runs' probes.

    A column that a run's probe has nothing to measure by, such as a layer that it lacks, is left out.

    Raises CheckpointError for a run without its last checkpoint, and what `prepare` raises.
    """
    done = 0
    with progress("judge", len(runs)) as show:
        for stack, models, data, index in _stacks(workdir, runs):
            config, documents = _documents(stack, columns, index)
            if documents is not None and config.alignment:
                most = most_directions(data.shape.model.d_model, index.vocab_size, documents)
                config = dataclasses.replace(config, alignment=min(config.alignment, most))
            (probe,) = make_probes(config, data.shape.model, index.vocab_size, documents).values()
            for portion, params_M in _loaded(data, models):
                found = jax.device_get(probe(params_M))
                yield {
                    run: {column: float(found[column][m]) for column in columns if column in found}
                    for m, run in enumerate(portion)
                }
                done += len(portion)
                show(done, "runs")


def states(workdir: epath.Path, sources: Sequence[str], runs: Collection[str]) -> list[Matrix]:
    """Return states at the last checkpoints of runs, on the first set of documents of their probes; see `source_of`.

    Runs whose checkpoint is gone are left out. If plan or text can't be read, there are none, and a message says why.
    """
    matrices: list[Matrix] = []
    targets = tuple(sorted({"final_states" if source == "final_states" else "layers" for source in sources}))
    try:
        for stack, models, data, index in _stacks(workdir, runs, saved=True):
            config, documents = _documents(stack, [f"{source}/effective_rank" for source in sources], index)
            assert documents is not None
            batch, shape = (documents.tokens_SNL[0], documents.points_SP[0]), data.shape.model
            for portion, params_M in _loaded(data, models):
                for m, run in enumerate(portion):
                    one = jax.tree.map(lambda x_M, m=m: x_M[m : m + 1], params_M)
                    found = jax.device_get(_take(config, targets, shape, batch, one))
                    matrices += [
                        Matrix(run, found[source][0], shape.norm, source, shape.norm_at, config.neighbors)
                        for source in sources
                        if source in found
                    ]
    except UserError as error:
        say(f"states aren't recomputed: {error}")
    return matrices


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


def _documents(stack: Cohort, columns: Sequence[str], index: TokenIndex) -> tuple[ProbeConfig, Documents | None]:
    """Return the probe that measures these columns of a stack's runs, and the documents that it reads."""
    config = _config(stack.shape.config.probe, columns)
    return config, probe_documents(Cohort(stack.shape.with_config(probe=config), stack.runs), index)


def _config(probe: ProbeConfig, columns: Sequence[str]) -> ProbeConfig:
    """Return the probe that measures these columns, and nothing else."""
    names: dict[str, set[str]] = {}
    centred: set[str] = set()
    for column in columns:
        target, _, name = column.rpartition("/")
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
        texts=TextsConfig(),
        alignment=alignment,
        sharpness=sharpness,
    )
