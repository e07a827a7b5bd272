"""Resolve a sweep into runs and cohorts, and check all of it before anything runs."""

import collections
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from eval.config import EvalConfig
from olmo_jax.cohort import Cohort, Run, Shape, shape_of
from olmo_jax.config import ConfigError, DataConfig, TrainConfig, from_config_dict, to_config_dict, unknown_key
from olmo_jax.config.identity import digest, identity, run_id
from olmo_jax.data.prepare import fingerprint
from olmo_jax.intervention import check_penalty
from olmo_jax.probes.geometry import check_probe
from olmo_jax.probes.texts import check_texts
from olmo_jax.step import member_structs
from sweeps.planning import branches
from sweeps.planning.grid import Grid
from sweeps.planning.stack_config import StackConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep as its configuration describes it.

    Attributes:
      train: the run that all runs are variations of. grid: the variations.
      notes: the author's remarks, one line each, such as what the sweep can't answer; shown with the plan.
    """

    train: ConfigDict
    grid: Grid
    evaluation: EvalConfig = EvalConfig()
    parts: StackConfig = StackConfig()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, resolved.

    Attributes:
      cohorts: groups of runs that share every static setting, in the order of the grid.
      fingerprints: the fingerprint of each data set, by data.name.
      stacks: the stacks that the cohorts are trained in (record.with_stacks); () before they are chosen.
    """

    cohorts: tuple[Cohort, ...]
    fingerprints: dict[str, str]
    evaluation: EvalConfig
    parts: StackConfig = StackConfig()
    notes: tuple[str, ...] = ()
    stacks: tuple[Cohort, ...] = ()

    @property
    def runs(self) -> list[Run]:
        return [run for cohort in self.cohorts for run in cohort.runs]

    @property
    def data(self) -> dict[str, TrainConfig]:
        """Return, for each data set, the configuration of one run that uses it."""
        return {run.config.data.name: run.config for run in reversed(self.runs)}


def sweep_config(
    train: TrainConfig,
    grid: Grid,
    evaluation: EvalConfig = Sweep.evaluation,
    parts: StackConfig = Sweep.parts,
    notes: Sequence[str] = (),
) -> ConfigDict:
    """Return a sweep as a file's `get_config` returns it; the arguments are the fields of Sweep."""
    sections = {"train": train, "evaluation": evaluation, "parts": parts}
    return ConfigDict({k: to_config_dict(v) for k, v in sections.items()} | {"grid": grid, "notes": tuple(notes)})


def read_sweep(config: ConfigDict) -> Sweep:
    """Return the sweep that a file's ConfigDict describes: the sections of Sweep, or the configuration of one run."""
    known = tuple(field.name for field in dataclasses.fields(Sweep))
    if not any(key in config for key in ("train", "grid", "evaluation")):
        return Sweep(config, [{}])
    for key in ("train", "grid"):
        if key not in config:
            raise ConfigError(f"config has no '{key}'; a sweep has train and grid, and may have {', '.join(known[2:])}")
    for key in config:
        if key not in known:
            raise ConfigError(unknown_key("config", key, known))
    if not config.grid:
        raise ConfigError("config.grid has no points; give it at least one, such as [{}]")
    return Sweep(
        config.train,
        [dict(point) for point in config.grid],
        from_config_dict(EvalConfig, config.get("evaluation", {}), "config.evaluation"),
        from_config_dict(StackConfig, config.get("parts", {}), "config.parts"),
        tuple(config.get("notes", ())),
    )


def resolve(sweep: Sweep, fingerprint: Callable[[DataConfig], Any] = fingerprint) -> Plan:
    """Return the plan: every grid point as a checked run, grouped into cohorts in the order of the grid.

    Args:
      fingerprint: returns what identifies a data set.

    Raises ConfigError for an unknown key or an invalid value (naming the grid point), duplicate runs, two data sets
    with the same name, members of one cohort that differ in mesh, mapping or compute, and what branches.with_parents
    refuses.
    """
    configs = [point_config(sweep, i) for i in range(len(sweep.grid))]
    prints: dict[str, str] = {}
    sets: dict[str, Any] = {}
    for config in configs:
        data = config.data.source
        if sets.setdefault(data.name, data) != data:
            raise ConfigError(f"two different data sets are named '{data.name}'; give each its own config.data.name")
        if data.name not in prints:
            prints[data.name] = str(fingerprint(config.data))
    groups: dict[Shape, list[tuple[int, Run]]] = collections.defaultdict(list)
    seen: dict[str, int] = {}
    runs = branches.with_parents(configs, lambda config: run_id(config, prints[config.data.name]), configuration)
    for i, run in enumerate(runs):
        if run.id in seen:
            raise ConfigError(f"grid points {seen[run.id]} and {i} are the same run ({run.id}); drop one")
        seen[run.id] = i
        groups[shape_of(run.config, prints[run.config.data.name]).cohort_key].append((i, run))
    cohorts = tuple(_cohort(numbered, prints) for numbered in groups.values())
    for cohort in cohorts:
        # Only patterns of parameters need the parameters' paths, which take a trace of the model.
        patterns = bool(cohort.shape.config.probe.parameters.metrics)
        check_probe(cohort.shape.config.probe, member_structs(cohort.shape).params if patterns else None)
        check_texts(cohort.shape.config.probe.texts, cohort.shape.model)
        check_penalty(cohort.shape.config)
    return Plan(cohorts, prints, sweep.evaluation, sweep.parts, sweep.notes)


def _cohort(numbered: list[tuple[int, Run]], prints: Mapping[str, str]) -> Cohort:
    """Return the cohort of grid points that share a cohort key."""
    shapes = {i: shape_of(run.config, prints[run.config.data.name]) for i, run in numbered}
    (first, shape), *others = shapes.items()
    for i, other in others:
        for name in ("mesh", "mapping", "compute"):
            first_value, value = getattr(shape.config, name), getattr(other.config, name)
            if first_value != value:
                raise ConfigError(
                    f"grid points {first} and {i} are members of one cohort, which is one program, but differ in "
                    f"config.train.{name} ({first_value} and {value}); give both the same value"
                )
    return Cohort(shape, tuple(run for _, run in numbered))


def point_config(sweep: Sweep, i: int) -> TrainConfig:
    """Return the checked configuration of grid point `i`."""
    config = copy.deepcopy(sweep.train)  # ConfigDict(...) would share its sections and lose references between them
    point = sweep.grid[i]
    for key in point:
        section: Any = config
        for place, part in enumerate(key.split(".")):
            if not isinstance(section, ConfigDict) or part not in section:
                where = ".".join(["config", "train", *key.split(".")[:place]])
                known = section if isinstance(section, ConfigDict) else ()
                raise ConfigError(f"grid point {i}: {unknown_key(where, part, known)}")
            section = section[part]
    try:
        config.update_from_flattened_dict({key: _as_whole(config, key, value) for key, value in point.items()})
        resolved = from_config_dict(TrainConfig, config, "config.train" if sweep.grid != [{}] else "config")
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"grid point {i} {point}: {error}" if point else str(error)) from error
    values = leaves(dataclasses.asdict(resolved))
    for key, value in point.items():
        if key in values and values[key] != (tuple(value) if isinstance(value, list) else value):
            raise ConfigError(f"grid point {i}: config.train.{key} = {value!r} became {values[key]!r}")
    return resolved


def _as_whole(config: ConfigDict, key: str, value: Any) -> Any:
    """Return a whole float such as 1e6 as an int if the field holds an int; any other value as it is."""
    current = config
    for part in key.split("."):
        current = current[part]
    return int(value) if type(current) is int and isinstance(value, float) and value.is_integer() else value


def configuration(config: TrainConfig) -> str:
    """Return the name of a run's configuration, which its replicates share: a hash of its identity without seeds."""
    values = identity(config, config.data.name)
    if config.branch.parent:
        values["branch"]["parent"] = f"@{config.branch.step}"  # the run itself would bring in its seeds
    return f"{config.name}-{digest({k: v for k, v in values.items() if k not in ('init_seed', 'data_seed')})}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Return what `olmo-jax plan --json` prints."""
    return {
        "cohorts": [
            {
                "cohort": cohort.id,
                "segments": len(cohort.segment_ends),
                "runs": [{"run_id": run.id, "config": dataclasses.asdict(run.config)} for run in cohort.runs],
            }
            for cohort in plan.cohorts
        ]
    }


def leaves(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted key."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        result |= leaves(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
    return result
