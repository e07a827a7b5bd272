"""Find the parents of a sweep's branches, check that each branch can start from its own, and draw the tree."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from etils import epath

from olmo_jax.checkpoint import run_steps
from olmo_jax.cohort import Cohort, Run, checkpoint_steps, shape_of
from olmo_jax.config import ConfigError, TrainConfig
from olmo_jax.config.branch import check_branch
from olmo_jax.errors import CheckpointError
from olmo_jax.storage.run_files import run_config
from olmo_jax.storage.run_status import read_status

_KEY = "config.train.branch.parent"
# Fields of a model that a branch may set anew, since they change no parameter.
_FREE = ("dropout", "compute_dtype", "context_length")


def with_parents(
    configs: Sequence[TrainConfig],
    run_id_of: Callable[[TrainConfig], str],
    configuration_of: Callable[[TrainConfig], str],
) -> list[Run]:
    """Return the runs of a grid's points, with `branch` of each filled in: the parent's id, and where it starts.

    A parent is given by its id or its name. Of several runs with a name, that with the seeds of the branch is meant,
    and of several of these the one that isn't a branch.

    Raises ConfigError for a parent that isn't there, isn't unique, diverged, or has another model or no such
    checkpoint; for branches that go in a circle; and for a budget that ends before the branch starts.
    """
    runs: dict[int, Run] = {}
    while len(runs) < len(configs):
        pending = [i for i in range(len(configs)) if i not in runs]
        for i in pending:
            config = configs[i]
            try:
                parent = _parent(config, configs, runs)
                if parent is None and config.branch.parent:
                    continue
                if parent is not None:
                    config = _started(config, parent, configuration_of)
            except ConfigError as error:
                raise ConfigError(f"grid point {i}: {error}" if len(configs) > 1 else str(error)) from error
            runs[i] = Run(run_id_of(config), config)
        if all(i not in runs for i in pending):
            raise ConfigError(_why_not_found(configs, runs, pending))
    return [runs[i] for i in range(len(configs))]


def _parent(config: TrainConfig, configs: Sequence[TrainConfig], runs: dict[int, Run]) -> Run | None:
    """Return the parent of a run; None if it has none, or if it isn't resolved yet."""
    branch = config.branch
    if not branch.parent:
        return None
    if branch.workdir:
        return _recorded(branch.workdir, branch.run)
    for run in runs.values():
        if run.id == branch.run:
            return run
    places = _named(config, configs)
    if len(places) > 1:
        known = ", ".join(runs[i].id if i in runs else f"grid point {i}" for i in places)
        raise ConfigError(
            f"{_KEY} = {branch.parent!r}: {len(places)} runs have this name and the seeds of the branch ({known}); "
            "give them names of their own, or use the id"
        )
    return runs.get(places[0]) if places else None


def _named(config: TrainConfig, configs: Sequence[TrainConfig]) -> list[int]:
    """Return the grid points that the name of a branch's parent may stand for."""
    places = [i for i, other in enumerate(configs) if other.name == config.branch.run and other is not config]
    for narrower in (
        lambda other: (other.init_seed, other.data_seed) == (config.init_seed, config.data_seed),
        lambda other: not other.branch.parent,
    ):
        if len(places) > 1:
            places = [i for i in places if narrower(configs[i])] or places
    return places


def _why_not_found(configs: Sequence[TrainConfig], runs: dict[int, Run], pending: Sequence[int]) -> str:
    for i in pending:
        chain = [i]
        while (places := _named(configs[chain[-1]], configs)) and places[0] not in chain:
            chain.append(places[0])
        if places:
            circle = [*chain[chain.index(places[0]) :], places[0]]
            names = " <- ".join(f"'{configs[j].name}' (grid point {j})" for j in circle)
            return f"{_KEY}: branches go in a circle: {names}; one of them has to start from random parameters"
    first = next(i for i in pending if not _named(configs[i], configs))
    wanted = configs[first].branch.run
    known = sorted({config.name for config in configs} | {run.id for run in runs.values()})
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"its runs are named {', '.join(known[:8])}."
    return (
        f"grid point {first}: {_KEY} = {configs[first].branch.parent!r}: this sweep has no run '{wanted}'; {hint} For "
        "a run of another working directory, set config.train.branch.workdir"
    )


def _recorded(workdir: str, run_id: str) -> Run:
    """Return a run of another working directory."""
    try:
        return Run(run_id, run_config(epath.Path(workdir), run_id))
    except CheckpointError as error:
        raise ConfigError(f"{_KEY}: {error}") from error


def _started(config: TrainConfig, parent: Run, configuration_of: Callable[[TrainConfig], str]) -> TrainConfig:
    """Return the configuration of a branch with its parent's id, and the step that it starts after."""
    branch = config.branch
    _check_fits(config, parent)
    steps = _steps_of(branch.workdir, parent)
    if branch.step not in steps:
        known = ", ".join(map(str, steps))
        possible = not branch.workdir and 0 < branch.step < parent.config.total_steps
        add = f", or add {branch.step} to config.train.checkpoint.at before the parent is trained" if possible else ""
        raise ConfigError(
            f"{_KEY} = {branch.parent!r}: {parent.id} has no checkpoint at step {branch.step}, but at {known}; choose "
            f"one of these{add}"
        )
    earlier = [step for step in steps if step <= branch.step]
    if len(earlier) < branch.average_last:
        raise ConfigError(
            f"config.train.branch.average_last = {branch.average_last}: {parent.id} has {len(earlier)} checkpoints "
            f"up to step {branch.step}; lower it, or write more with config.train.checkpoint"
        )
    # What was trained on before an import isn't known in detail, so an imported parent is a root.
    tokens = 0 if parent.config.imported else branch.step * parent.config.tokens_per_step
    if tokens % config.tokens_per_step:
        raise ConfigError(
            f"config.train.data.batch_size = {config.data.batch_size}: the parent's {tokens} tokens at step "
            f"{branch.step} aren't a whole number of steps of {config.tokens_per_step}; choose a batch size for which "
            "they are, or another step"
        )
    started = dataclasses.replace(
        config,
        branch=dataclasses.replace(
            branch,
            parent=f"{parent.id}@{branch.step}",
            workdir=_absolute(branch.workdir),
            start_step=tokens // config.tokens_per_step,
            averaged_steps=tuple(earlier[-branch.average_last :]) if branch.average_last else (),
            ema_decay=parent.config.checkpoint.ema_decay if branch.ema else 0.0,
            parent_configuration=configuration_of(parent.config),
        ),
    )
    check_branch(started, "config.train")
    return started


def _steps_of(workdir: str, parent: Run) -> list[int]:
    """Return the steps of the parent's checkpoints: those that are due, or of an imported run, that exist."""
    if parent.config.imported:
        return run_steps(workdir, parent.id)
    return sorted(checkpoint_steps(Cohort(shape_of(parent.config, ""), (parent,))))


def _absolute(workdir: str) -> str:
    """Return a working directory as found from any folder; "" for none."""
    return str(Path(workdir).absolute()) if workdir and "://" not in workdir else workdir


def _check_fits(config: TrainConfig, parent: Run) -> None:
    """Raise ConfigError unless a branch's model, optimiser and seed are those that its parent's checkpoint implies."""
    branch, other = config.branch, parent.config
    for field in dataclasses.fields(config.model):
        value, expected = getattr(config.model, field.name), getattr(other.model, field.name)
        if value != expected and (field.name not in _FREE or config.model.positions == "learned"):
            raise ConfigError(
                f"config.train.model.{field.name} = {value!r}: the parent, {parent.id}, has {expected!r}; a branch has "
                "the parameters of its parent, so set it to that"
            )
    if config.init_seed != other.init_seed:
        raise ConfigError(
            f"config.train.init_seed = {config.init_seed}: the parent, {parent.id}, has {other.init_seed}; a branch "
            "has the parameters of its parent, so set it to that"
        )
    if branch.moments and (other.imported or other.optimizer.name != config.optimizer.name):
        why = "was imported without any" if other.imported else f"was trained by {other.optimizer.name}"
        raise ConfigError(f"config.train.branch.moments = True: the parent, {parent.id}, {why}; set it to False")
    if branch.ema and not other.checkpoint.ema_decay:
        raise ConfigError(
            f"config.train.branch.ema = True: the parent, {parent.id}, keeps no moving average; set "
            "config.train.checkpoint.ema_decay for it"
        )
    if other.branch.parent and other.total_steps == other.branch.start_step:
        raise ConfigError(
            f"{_KEY} = {branch.parent!r}: {parent.id} takes no step of its own; start from its parent, "
            f"{other.branch.parent}, and average in the same way"
        )
    if branch.workdir:
        diverged_at = read_status(epath.Path(branch.workdir), parent.id).get("diverged_at")
        if diverged_at is not None and diverged_at <= branch.step:
            raise ConfigError(
                f"{_KEY} = {branch.parent!r}: {parent.id} diverged at step {diverged_at}; choose an earlier step"
            )


def in_order(stacks: Sequence[Cohort]) -> tuple[Cohort, ...]:
    """Return stacks in an order in which parents come before their branches, which start after more tokens."""
    return tuple(sorted(stacks, key=lambda stack: stack.shape.start_step * stack.shape.tokens_per_step))


def depths(cohorts: Sequence[Cohort]) -> list[int]:
    """Return how many other cohorts of the plan each has to wait for, one after another: 0 without branches."""
    place = {run.id: i for i, cohort in enumerate(cohorts) for run in cohort.runs}
    result = [0] * len(cohorts)
    for cohort in in_order(cohorts):
        parents = {place[run.config.branch.run] for run in cohort.runs if run.config.branch.run in place}
        result[cohorts.index(cohort)] = max((result[i] + 1 for i in parents), default=0)
    return result


def tokens_of_text(config: TrainConfig, planned: Mapping[str, TrainConfig]) -> int:
    """Return the tokens of a run's own text that it and its ancestors read, as far as these are among the planned."""
    branch = config.branch
    own = (config.total_steps - branch.start_step) * config.tokens_per_step
    parent = planned.get(branch.run) if branch.parent else None
    text = config.data.source, config.data.train_domains
    if parent is None or (parent.data.source, parent.data.train_domains) != text:
        return own
    later = (parent.total_steps - branch.step) * parent.tokens_per_step
    return own + tokens_of_text(parent, planned) - later


def tree(runs: Sequence[Run]) -> list[str]:
    """Return the lines of a drawing of the runs that have branches, or are some; [] if there are none."""
    known = {run.id for run in runs}
    children: dict[str, list[Run]] = {}
    for run in runs:
        if run.config.branch.parent:
            children.setdefault(run.config.branch.run, []).append(run)

    def lines(run: Run, first: str, rest: str) -> list[str]:
        branch, total = run.config.branch, run.config.total_steps
        start = f"from step {branch.start_step:,} to {total:,}" if branch.parent else f"to step {total:,}"
        mean = f", from the mean of {branch.average_last} checkpoints" if branch.average_last > 1 else ""
        mean = ", from the moving average" if branch.ema else mean
        drawn = [f"{first}{run.id}  {start}{mean}"]
        below = children.get(run.id, [])
        for i, child in enumerate(below):
            last = i == len(below) - 1
            drawn += lines(child, f"{rest}{'└─' if last else '├─'} ", f"{rest}{'   ' if last else '│  '}")
        return drawn

    drawn: list[str] = []
    for run in runs:
        branch = run.config.branch
        if branch.parent and branch.run not in known:
            drawn += [f"  {branch.parent} of {branch.workdir}", *lines(run, "  └─ ", "     ")]
        elif not branch.parent and run.id in children:
            drawn += lines(run, "  ", "  ")
    return ["branches, with steps counted from the root:", *drawn] if drawn else []
