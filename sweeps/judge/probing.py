"""Compute a probe's columns at the last checkpoints of a sweep that was trained without them."""

import dataclasses
import re
from collections.abc import Collection, Sequence

import jax
import pandas as pd
from etils import epath

from eval.eval_data import EvalData
from geometry.probe import METRICS
from olmo_jax.cohort import Cohort
from olmo_jax.config import ProbeConfig, TargetConfig
from olmo_jax.config.probe import ParametersConfig, TextsConfig
from olmo_jax.console import progress, say
from olmo_jax.data.prepare import prepare
from olmo_jax.probes.columns import ALIGNMENT
from olmo_jax.probes.geometry import make_probes, most_directions
from olmo_jax.storage.run_files import data_root
from olmo_jax.train import probe_documents
from sweeps.planning.record import recorded_plan

_CENTRED = "_centred"
_TARGETS = r"unembedding_gauge_fixed|(unembedding|embedding|final_states|layer_\d+)(_centred)?"
_DIRECTIONS = 8  # compared by alignment, if the run's probe says nothing
_MEMBERS = 8  # read at a time


def can_probe(column: str) -> bool:
    """Return whether a probe could measure this column of any run."""
    target, _, name = column.rpartition("/")
    if target == "alignment":
        return name in ALIGNMENT
    return name in METRICS and re.fullmatch(_TARGETS, target) is not None


def values(workdir: epath.Path, columns: Sequence[str], runs: Collection[str]) -> pd.DataFrame:
    """Return the columns, one row per run, measured at the last checkpoints with the documents of the runs' probes.

    Raises CheckpointError for a run without its last checkpoint, and what `prepare` raises.
    """
    plan = recorded_plan(workdir)
    indexes = {name: prepare(config.data, data_root(workdir, config), say) for name, config in plan.data.items()}
    rows: dict[str, dict[str, float]] = {}
    with progress("judge", len(runs)) as show:
        for stack in plan.stacks:
            models = [(run.id, run.config.total_steps) for run in stack.runs if run.id in runs]
            index = indexes[stack.shape.data_name]
            data = EvalData(workdir, stack, index, plan.evaluation)
            config = _config(stack.shape.config.probe, columns)
            documents = probe_documents(Cohort(stack.shape.with_config(probe=config), stack.runs), index)
            if documents is not None and config.alignment:
                most = most_directions(data.shape.model.d_model, index.vocab_size, documents)
                config = dataclasses.replace(config, alignment=min(config.alignment, most))
            (probe,) = make_probes(config, data.shape.model, index.vocab_size, documents).values()
            for start in range(0, len(models), _MEMBERS):
                portion = models[start : start + _MEMBERS]
                found = jax.device_get(probe(data.load(portion)))
                for m, (run, _) in enumerate(portion):
                    rows[run] = {column: float(found[column][m]) for column in columns if column in found}
                show(len(rows), "runs")
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))


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
    )
