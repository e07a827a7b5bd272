"""Write and read sweep.json, the record of what a working directory holds, and check what may be added to it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from eval.config import EvalConfig
from olmo_jax.cohort import Cohort, Run, shape_of
from olmo_jax.config import ConfigError, TrainConfig, from_config_dict
from olmo_jax.config.identity import canonical_json, identity
from olmo_jax.files import DamagedFileError, read_json, write_json
from olmo_jax.train import write_run_files
from sweeps.planning import upgrades
from sweeps.planning.plan import Plan, as_json, leaves
from sweeps.planning.stack_config import StackConfig
from sweeps.planning.stacks import cut, runs_of
from sweeps.planning.upgrades import upgraded

_REMEDY = "put it back from a copy"


def record(plan: Plan, versions: Mapping[str, str]) -> dict[str, Any]:
    """Return the contents of sweep.json: the plan as in `olmo-jax plan --json`, with its stacks and versions."""
    cohorts = as_json(plan)["cohorts"]
    for cohort in cohorts:
        cohort["parts"] = runs_of([stack for stack in plan.stacks if stack.id == cohort["cohort"]])
    return {
        "layout": upgrades.LAYOUT,
        "versions": dict(versions),
        "later_versions": [],
        "evaluation": dataclasses.asdict(plan.evaluation),
        "fingerprints": plan.fingerprints,
        "cohorts": cohorts,
    }


def pin(workdir: epath.Path, plan: Plan, versions: Mapping[str, str]) -> Plan:
    """Write sweep.json, or add the plan's further runs to it; return the plan with its stacks.

    Recorded stacks stay as they are; further runs form stacks of their own, sized for this machine. Evaluations that
    differ from the recorded ones replace them. Only one process may call this at a time. Raises what `join` raises, and
    ConfigError for a model that doesn't fit into memory.
    """
    plan = with_stacks(workdir, join(workdir, plan))
    path = workdir / "sweep.json"
    new = json.loads(json.dumps(record(plan, versions)))
    old = read_record(workdir) if path.exists() else None
    if old is not None:
        versions_used = [old["versions"], *old["later_versions"]]
        added = {run["run_id"] for cohort in new["cohorts"] for run in cohort["runs"]} - {
            run["run_id"] for cohort in old["cohorts"] for run in cohort["runs"]
        }
        if added and new["versions"] not in versions_used:
            versions_used.append(new["versions"])
        new["versions"], new["later_versions"] = versions_used[0], versions_used[1:]
    if new != old:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
    return plan


def with_stacks(workdir: epath.Path, plan: Plan) -> Plan:
    """Return the plan with the stacks that sweep.json records, and further ones sized for this machine."""
    recorded = read_record(workdir)["cohorts"] if (workdir / "sweep.json").exists() else []
    pinned = {cohort["cohort"]: cohort["parts"] for cohort in recorded}
    stacks = [s for cohort in plan.cohorts for s in cut(cohort, plan.parts, pinned.get(cohort.id, ()))]
    return dataclasses.replace(plan, stacks=tuple(stacks))


def restore_run_files(workdir: epath.Path) -> None:
    """Rewrite the config.json of recorded runs from sweep.json where it is missing or damaged."""
    for stack in recorded_plan(workdir).stacks:
        write_run_files(workdir, stack)


def read_record(workdir: epath.Path) -> dict[str, Any]:
    """Return sweep.json of a working directory, upgraded to the current layout (see upgrades.py).

    Raises ConfigError if it is missing or damaged, or was written by newer code.
    """
    path = workdir / "sweep.json"
    if not path.exists():
        raise ConfigError(f"{workdir} is not the working directory of a sweep (no sweep.json); check --workdir")
    try:
        return upgraded(workdir, read_json(path, _REMEDY))
    except DamagedFileError as error:
        raise ConfigError(str(error)) from error


def recorded_plan(workdir: epath.Path) -> Plan:
    """Return the plan that sweep.json records, independently of the configuration file and the data's sources.

    Ids are the recorded ones, even if this version would compute others.
    """
    old, path = read_record(workdir), workdir / "sweep.json"
    cohorts, stacks = [], []
    try:
        for cohort in old["cohorts"]:
            runs = [
                Run(run["run_id"], from_config_dict(TrainConfig, run["config"], run["run_id"]))
                for run in cohort["runs"]
            ]
            shape = shape_of(runs[0].config, old["fingerprints"][runs[0].config.data.name])
            cohorts.append(Cohort(shape, tuple(runs), recorded_id=cohort["cohort"]))
            stacks += cut(cohorts[-1], StackConfig(), cohort["parts"])
        evaluation = from_config_dict(EvalConfig, old["evaluation"], "evaluation")
        if not cohorts or not all(isinstance(cohort.id, str) for cohort in cohorts):
            raise TypeError("cohorts")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; {_REMEDY}, or update olmo-jax if newer code wrote it") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: isn't a sweep's record ({type(error).__name__}: {error}); {_REMEDY}") from error
    return Plan(tuple(cohorts), old["fingerprints"], evaluation, stacks=tuple(stacks))


def join(workdir: epath.Path, plan: Plan) -> Plan:
    """Return the plan with the ids that this directory records for the runs and cohorts that it holds.

    Runs and cohorts are recognised by the settings and data that determine their results, so the plan may have other
    evaluations, another mesh or another mapping. It may have more runs than the directory holds. A directory without a
    sweep.json is accepted if it has no runs.

    Raises ConfigError if the directory holds runs that the plan lacks (saying how they differ), if its layout can't be
    read, or if it was begun with other probes or checkpoints, which would leave a mixture of both.
    """
    if not (workdir / "sweep.json").exists():
        if workdir.exists() and any(p.name in ("runs", "cohorts") for p in workdir.iterdir()):
            raise ConfigError(f"{workdir} has runs but no sweep.json; put it back, or choose another --workdir")
        return plan
    old = recorded_plan(workdir)
    plan = _with_recorded_ids(plan, old)
    recorded, planned = {run.id: run.config for run in old.runs}, {run.id: run.config for run in plan.runs}
    if lacking := recorded.keys() - planned.keys():
        new = planned.keys() - recorded.keys()
        raise ConfigError(
            f"{workdir} holds a sweep that this one doesn't contain: {len(lacking)} of its {len(recorded)} runs aren't "
            f"in this sweep ({_some(lacking)}), and {len(new)} of this sweep's runs aren't in the directory "
            f"({_some(new)}). {_difference(old, plan)}"
            "Choose another --workdir, or a configuration whose grid contains those runs too"
        )
    for name, config in recorded.items():
        if (config.probe, config.checkpoint) != (planned[name].probe, planned[name].checkpoint):
            raise ConfigError(
                f"{workdir} was begun with other settings for probes or checkpoints. {_difference(old, plan)}"
                "Choose another --workdir, or set them back"
            )
    return plan


def _with_recorded_ids(plan: Plan, old: Plan) -> Plan:
    def identity_of(run: Run, plan: Plan) -> tuple[str, str]:
        fingerprint = plan.fingerprints.get(run.config.data.name, "")
        return run.config.name, canonical_json(identity(run.config, fingerprint))

    runs = {identity_of(run, old): run.id for run in old.runs}
    cohorts = {cohort.shape.cohort_key: cohort.id for cohort in old.cohorts}

    def recorded(cohort: Cohort) -> Cohort:
        members = tuple(Run(runs.get(identity_of(run, plan), run.id), run.config) for run in cohort.runs)
        return dataclasses.replace(cohort, runs=members, recorded_id=cohorts.get(cohort.shape.cohort_key, ""))

    return dataclasses.replace(
        plan, cohorts=tuple(map(recorded, plan.cohorts)), stacks=tuple(map(recorded, plan.stacks))
    )


def _some(ids: Iterable[str]) -> str:
    names = sorted(ids)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"


def _difference(old: Plan, new: Plan) -> str:
    """Return a sentence on how two sweeps differ: in their data, or in the values of some settings."""
    if changed := {k: v for k, v in old.fingerprints.items() if new.fingerprints.get(k) != v}:
        return f"Its data have the fingerprints {changed}, this sweep's have {new.fingerprints}. "
    old_values, new_values = _values(old), _values(new)
    keys = [key for key in new_values if old_values[key] != new_values[key]]
    changes = [
        f"{key}: {_several(old_values[key])} in the directory, {_several(new_values[key])} in this sweep"
        for key in keys[:5]
    ]
    return f"Changed: {'; '.join(changes)}. " if changes else ""


def _values(plan: Plan) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for run in plan.runs:
        for key, value in leaves(dataclasses.asdict(run.config)).items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return values


def _several(values: list[Any]) -> str:
    return " and ".join(map(repr, values))
