"""The plan: a sweep resolved into cohorts, checked and shown before anything runs."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from eval.config import EvalConfig
from olmo_jax.cohort import Cohort, Run, member_structs, shape_of
from olmo_jax.config import ConfigError, TrainConfig, from_config_dict, unknown_key
from olmo_jax.data.prepare import fingerprint
from olmo_jax.identity import run_id
from olmo_jax.metrics import write_json
from olmo_jax.model import parameter_count
from olmo_jax.optimizer import weight_decay_dose
from olmo_jax.probe import check_probe
from sweeps.grid import Grid

# Of the working directory's layout; a later layout gets a higher number, and older code refuses it.
LAYOUT = 1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep's configuration says: the run that all are variations of, the variations, the evaluations."""

    train: ConfigDict
    grid: Grid
    evaluation: EvalConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cohorts of a sweep, the fingerprint of each of its data sets (by data.name), and its evaluations."""

    cohorts: tuple[Cohort, ...]
    fingerprints: dict[str, str]
    evaluation: EvalConfig

    @property
    def runs(self) -> list[Run]:
        return [run for cohort in self.cohorts for run in cohort.runs]

    @property
    def data(self) -> dict[str, TrainConfig]:
        """For each data set the configuration of one run that uses it."""
        return {run.config.data.name: run.config for run in reversed(self.runs)}


def read_sweep(config: ConfigDict) -> Sweep:
    """A sweep from the ConfigDict of a file: `train`, `grid` and `evaluation`, or one run's configuration alone."""
    known = ("train", "grid", "evaluation")
    if not any(key in config for key in known):
        return Sweep(config, [{}], EvalConfig())
    for key in ("train", "grid"):
        if key not in config:
            raise ConfigError(f"config has no '{key}'; a sweep has train and grid, and may have evaluation")
    for key in config:
        if key not in known:
            raise ConfigError(unknown_key("config", key, known))
    if not config.grid:
        raise ConfigError("config.grid has no points; give it at least one, such as [{}]")
    evaluation = from_config_dict(EvalConfig, config.get("evaluation", {}), "config.evaluation")
    return Sweep(config.train, [dict(point) for point in config.grid], evaluation)


def resolve(sweep: Sweep) -> Plan:
    """Every point as a checked run, the runs grouped into cohorts in the order of the grid.

    Raises ConfigError for an unknown key or a bad value (with the grid point), a run that is there twice, and two data
    sets under one name.
    """
    configs = [point_config(sweep, i) for i in range(len(sweep.grid))]
    prints: dict[str, str] = {}
    sets: dict[str, Any] = {}
    for config in configs:
        data = dataclasses.replace(config.data, batch_size=1, sequence_length=1)
        if sets.setdefault(data.name, data) != data:
            raise ConfigError(f"two different data sets are named '{data.name}'; give each its own config.data.name")
        if data.name not in prints:
            prints[data.name] = str(fingerprint(config.data))
    groups: dict[Any, list[Run]] = collections.defaultdict(list)
    seen: dict[str, int] = {}
    for i, config in enumerate(configs):
        run = Run(run_id(config, prints[config.data.name]), config)
        if run.id in seen:
            raise ConfigError(f"grid points {seen[run.id]} and {i} are the same run ({run.id}); drop one")
        seen[run.id] = i
        groups[shape_of(config, prints[config.data.name])].append(run)
    cohorts = tuple(Cohort(shape, tuple(runs)) for shape, runs in groups.items())
    for cohort in cohorts:
        check_probe(cohort.shape.probe, member_structs(cohort.shape).params)
    return Plan(cohorts, prints, sweep.evaluation)


def point_config(sweep: Sweep, i: int) -> TrainConfig:
    """The checked configuration of grid point `i`."""
    config = ConfigDict(sweep.train)
    point = sweep.grid[i]
    for key in point:
        at: Any = config
        for place, part in enumerate(key.split(".")):
            if not isinstance(at, ConfigDict) or part not in at:
                where = ".".join(["config", "train", *key.split(".")[:place]])
                known = at if isinstance(at, ConfigDict) else ()
                raise ConfigError(f"grid point {i}: {unknown_key(where, part, known)}")
            at = at[part]
    try:
        config.update_from_flattened_dict(point)
        return from_config_dict(TrainConfig, config, "config.train" if sweep.grid != [{}] else "config")
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"grid point {i} {point}: {error}" if point else str(error)) from error


def as_json(plan: Plan) -> dict[str, Any]:
    """What `olmo-jax plan --json` prints."""
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


def lines(plan: Plan) -> list[str]:
    """What `olmo-jax plan` prints: each cohort with its runs, then the totals."""
    shown = []
    for cohort in plan.cohorts:
        total, inner = parameter_count(cohort.shape.model)
        shown.append(
            f"cohort {cohort.id}: {len(cohort.runs)} runs in {len(cohort.segment_ends)} segment(s), "
            f"{total:,} parameters each ({inner:,} without embeddings)"
        )
        for run in cohort.runs:
            c = run.config
            dose = weight_decay_dose(c, c.total_steps)
            shown.append(
                f"  {run.id}  {c.total_steps:,} steps  {c.tokens:,} tokens  "
                f"learning rate {c.optimizer.learning_rate:g}  "
                f"weight decay {c.optimizer.weight_decay:g} (dose {dose:.3g})  seeds {c.init_seed}/{c.data_seed}"
            )
    tokens = sum(run.config.total_steps * run.config.tokens_per_step for run in plan.runs)
    shown.append(f"{len(plan.runs)} runs in {len(plan.cohorts)} cohort(s), {tokens:,} tokens")
    return shown


def record(plan: Plan, versions: Mapping[str, str]) -> dict[str, Any]:
    """The contents of sweep.json."""
    return {
        "layout": LAYOUT,
        "versions": dict(versions),
        "evaluation": dataclasses.asdict(plan.evaluation),
        "fingerprints": plan.fingerprints,
        **as_json(plan),
    }


def check_record(workdir: epath.Path, plan: Plan) -> None:
    """Raises ConfigError if the directory holds another sweep (saying how they differ), or was written by newer code.

    A directory without a sweep.json passes, unless there are runs in it. Other evaluations of the same runs, another
    mesh or mapping make no other sweep; other steps of probes or checkpoints would leave a mixture of both.
    """
    if not (workdir / "sweep.json").exists():
        if workdir.exists() and any(p.name in ("runs", "cohorts") for p in workdir.iterdir()):
            raise ConfigError(f"{workdir} has runs but no sweep.json; put it back, or choose another --workdir")
        return
    old = recorded_plan(workdir)
    have, want = {run.id: run.config for run in old.runs}, {run.id: run.config for run in plan.runs}
    if have.keys() != want.keys():
        gone, new = have.keys() - want.keys(), want.keys() - have.keys()
        raise ConfigError(
            f"{workdir} holds another sweep: {len(gone)} of its runs aren't in this one ({_some(gone)}), "
            f"{len(new)} of this one's aren't in it ({_some(new)}). {_difference(old, plan)}"
            "Choose another --workdir, or the configuration it was made with"
        )
    for name, config in want.items():
        if (config.probe, config.checkpoint) != (have[name].probe, have[name].checkpoint):
            raise ConfigError(
                f"{workdir} was begun with other steps for probes or checkpoints. {_difference(old, plan)}"
                "Choose another --workdir, or set them back"
            )


def write_record(workdir: epath.Path, plan: Plan, versions: Mapping[str, str]) -> None:
    """Writes sweep.json where there is none; other evaluations of the same runs replace the recorded ones."""
    check_record(workdir, plan)
    path = workdir / "sweep.json"
    new = json.loads(json.dumps(record(plan, versions)))
    if path.exists():
        old = read_record(workdir)
        new = old | {"evaluation": new["evaluation"]}
        if new == old:
            return
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, new)


def read_record(workdir: epath.Path) -> dict[str, Any]:
    """sweep.json of a working directory; raises ConfigError if it isn't there, isn't whole, or is of newer code."""
    path = workdir / "sweep.json"
    if not path.exists():
        raise ConfigError(f"{workdir} is not the working directory of a sweep (no sweep.json); check --workdir")
    try:
        old = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); put it back from a copy") from error
    if not isinstance(old, dict) or old.get("layout", LAYOUT + 1) > LAYOUT:
        raise ConfigError(f"{path} was written by newer code (its layout isn't {LAYOUT} or older); update olmo-jax")
    return old


def recorded_plan(workdir: epath.Path) -> Plan:
    """The plan that a sweep.json records, whatever has become of the configuration file and the sources since."""
    old = read_record(workdir)
    cohorts = []
    for cohort in old["cohorts"]:
        runs = [
            Run(run["run_id"], from_config_dict(TrainConfig, run["config"], run["run_id"])) for run in cohort["runs"]
        ]
        shape = shape_of(runs[0].config, old["fingerprints"][runs[0].config.data.name])
        cohorts.append(Cohort(shape, tuple(runs)))
    evaluation = from_config_dict(EvalConfig, old["evaluation"], "evaluation")
    return Plan(tuple(cohorts), old["fingerprints"], evaluation)


def _some(ids: Iterable[str]) -> str:
    found = sorted(ids)
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "") or "none"


def _difference(old: Plan, new: Plan) -> str:
    """A word on why two sweeps differ: the data, or the values that a key takes over their runs."""
    if old.fingerprints != new.fingerprints:
        return f"Its data are {old.fingerprints}, this sweep's {new.fingerprints}. "
    there, here = _values(old), _values(new)
    changed = [f"{k}: {_several(there[k])} there, {_several(here[k])} here" for k in here if there[k] != here[k]]
    return f"Changed: {'; '.join(changed[:5])}. " if changed else ""


def _values(plan: Plan) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for run in plan.runs:
        for key, value in leaves(dataclasses.asdict(run.config)).items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return values


def _several(values: list[Any]) -> str:
    return " and ".join(map(repr, values))


def leaves(tree: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """The values of a nested mapping by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{at}{key}.") if isinstance(value, Mapping) else {f"{at}{key}": value}
    return found
