"""Train one cohort: from token windows to checkpoints and metrics, resumable at any point by the same call."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from olmo_jax import branch
from olmo_jax import cohort as cohorts
from olmo_jax.checkpoint import CheckpointError, Checkpoints, directory, open_checkpoints
from olmo_jax.cohort import Cohort, Run, Shape
from olmo_jax.config import ConfigError, require
from olmo_jax.config.identity import identity_fields
from olmo_jax.console import progress, say
from olmo_jax.data.batches import BatchLoader
from olmo_jax.data.shards import TokenIndex
from olmo_jax.execution import memory, processes, sharding
from olmo_jax.execution import program as programs
from olmo_jax.execution.plan import ExecutionPlan
from olmo_jax.files import DamagedFileError, read_json, write_json
from olmo_jax.logs.metrics import MetricsError, MetricsLog, check_rows, resume_at
from olmo_jax.logs.timing import Clock, Trace
from olmo_jax.logs.writers import check_writers, writers
from olmo_jax.probes.geometry import Documents, Probe, choose_documents, make_probes
from olmo_jax.probes.texts import evaluation_sets
from olmo_jax.step import State, member_structs
from olmo_jax.storage.run_files import run_config
from olmo_jax.storage.run_status import has_ended, restore_statuses, write_statuses


def train_cohort(
    workdir: epath.Path,
    cohort: Cohort,
    index: TokenIndex,
    stop: Callable[[], bool],
    traced: Sequence[int] = (),
    owned: Callable[[], object] = lambda: None,
) -> bool:
    """Train the cohort from its last checkpoint, or from the start, to its end.

    Args:
      workdir: the sweep's working directory. index: the prepared data.
      stop: called after each call of several steps; if it returns True, a checkpoint is written and training ends.
      traced: first and last step of a profiler trace, written to profile/ in the working directory.
      owned: called before a checkpoint or status is written; raises if another process has taken the cohort over.

    Returns:
      True if every member is done, False if `stop` ended the training.
    """
    shape, runs = cohort.shape, cohort.runs
    if processes.broadcast(all(has_ended(workdir, run.id) for run in runs)):
        return True
    check_vocabulary(shape.model.vocab_size, index)
    mesh = sharding.make_mesh(shape.config.mesh, len(runs))
    plan = _load_or_choose_plan(workdir, cohort, mesh)
    say(f"{cohort.folder}: {plan}")
    load_batches = BatchLoader(index, [run.config for run in runs], mesh, plan.steps_per_call)
    probes = cohort_probes(cohort, index, plan.mapping, mesh)
    due, total = cohorts.checkpoint_steps(cohort), cohort.segment_ends[-1]
    trace = Trace(workdir / "profile" / cohort.folder, traced)

    with open_checkpoints(directory(workdir, cohort.folder)) as checkpoints:
        # Resume from the last valid checkpoint. The last one of a segment still holds the members that end there.
        step, state, fresh = _resume(workdir, cohort, checkpoints, mesh)
        places = cohort.active(step)
        _tidy(checkpoints, cohort, step, due)
        if not (fresh and step in due):  # then some are done, but have no checkpoint yet
            write_statuses(workdir, [runs[i] for i in places], state, step)
        restore_statuses(workdir, [run for run in runs if run.config.total_steps < step])
        stopped = False

        with progress(f"train {cohort.folder} ({len(runs)} runs)", total, step) as report:
            for end in (e for e in cohort.segment_ends if e > step or fresh):
                remaining = cohort.active(end)
                state = programs.pick(state, [places.index(i) for i in remaining], mesh, shape.config.mesh.fsdp)
                places = remaining
                members = [runs[i] for i in places]
                padded = sharding.pad(places, mesh)
                with _open_log(workdir, members, step, shape.start_step, fresh) as log:
                    clock = Clock(log, shape, members, mesh.size, step)
                    if step < end:
                        program = programs.compile_steps(shape, members, mesh, plan, load_batches.table)
                        clock.event("compile", step)
                    if fresh:
                        log.later([{"step": step, "tokens": step * shape.tokens_per_step}], {})
                        for probe in probes.values():
                            log.also(jax.block_until_ready(probe(state.params, padded)))
                        clock.event("probe", step)
                        if step in due:  # branches that take no step end where they start
                            _save(workdir, cohort, checkpoints, log, members, state, step, due, owned)
                        fresh = False
                    while step < end and not stopped:
                        trace.at(step)
                        last = _next_stop(step, plan.steps_per_call, {end, *due, *trace.steps}, probes)
                        with clock.waiting():
                            batches = load_batches(step, last - step, places)
                        state, metrics = program.steps(
                            state, program.hyper, load_batches.table, batches, np.int32(last - step)
                        )
                        log.later(_rows(shape, step, last), metrics._asdict())
                        step = last
                        to_probe = [probe for k, probe in probes.items() if step % k == 0 or step in due]
                        if to_probe or step in trace.steps:
                            jax.block_until_ready(state)
                            clock.event("steps", step)
                        for probe in to_probe:
                            log.also(jax.block_until_ready(probe(state.params, padded)))
                            clock.event("probe", step)
                        stopped = processes.any_process(stop())
                        if step in due or stopped:
                            jax.block_until_ready(state)
                            clock.event("steps", step)
                            _save(workdir, cohort, checkpoints, log, members, state, step, due, owned)
                            clock.event("checkpoint", step)
                        report(step, clock.note)
                if stopped and step < total:
                    trace.end()
                    return False
        trace.end()
    return True


def _resume(
    workdir: epath.Path, cohort: Cohort, checkpoints: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[int, State, bool]:
    """Return step and state of the last valid checkpoint that the members' metrics reach, or of the start and True.

    Later checkpoints are set aside with a warning. Raises CheckpointError if there are checkpoints and none is valid:
    starting over would lose the whole training, and the user may have a copy.
    """
    shape, broken = cohort.shape, {}
    for step in reversed(checkpoints.steps()):
        try:
            _check_metrics(workdir, cohort, step)
            state = checkpoints.restore(step, member_structs(shape), mesh, shape.config.mesh.fsdp)
        except (CheckpointError, MetricsError) as error:
            broken[step] = error
            continue
        for later, reason in broken.items():
            say(f"{reason}; set aside as {checkpoints.set_aside(later)}; training resumes from step {step}")
        return step, state, False
    if broken:
        folder = directory(workdir, cohort.folder).parent
        raise CheckpointError(
            f"none of {len(broken)} checkpoints can be resumed from: {broken[max(broken)]}; put it back from a copy, "
            f"or move {folder} away to train these runs from the start"
        )
    state = programs.initial_state(shape, cohort.runs, mesh)
    return shape.start_step, branch.with_parents(workdir, cohort, state, mesh), True


def _check_metrics(workdir: epath.Path, cohort: Cohort, step: int) -> None:
    """Raise MetricsError, in every process, unless the metrics of all runs that take `step` reach it."""
    failure = None
    try:
        for i in cohort.active(step):
            check_rows(workdir / "runs" / cohort.runs[i].id, step, cohort.shape.start_step)
    except MetricsError as error:
        failure = error
    if processes.any_process(failure is not None):
        raise failure or MetricsError(f"another process can't read the metrics up to step {step}")


def _tidy(checkpoints: Checkpoints, cohort: Cohort, step: int, due: set[int]) -> None:
    """Delete the checkpoints of earlier stops if some members end at `step`."""
    extras = set(checkpoints.steps()) - due if step in cohort.segment_ends else set()
    if extras:
        checkpoints.check(step)  # delete none before this one is known to be valid
    for extra in extras:
        checkpoints.delete(extra)


def _load_or_choose_plan(workdir: epath.Path, cohort: Cohort, mesh: jax.sharding.Mesh) -> ExecutionPlan:
    """Return the cohort's execution plan, chosen once and stored, so that a resumed training uses the same plan.

    It is chosen again if the configuration, the mesh or the kind of device changes.
    """
    shape = cohort.shape
    request = {
        "mapping": shape.config.mapping,
        "compute": identity_fields(shape.config.compute),
        "mesh": dict(mesh.shape) | {"fsdp": shape.config.mesh.fsdp},
        "device": jax.devices()[0].device_kind,
    }
    path = directory(workdir, cohort.folder).parent / "compute.json"
    if path.exists() and (stored := _stored_plan(path, request)):
        return stored
    chosen = memory.choose_execution_plan(shape, len(cohort.runs), mesh)
    chosen = memory.fit(shape, cohort.runs, mesh, chosen, memory.device_memory())
    if processes.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"asked": request, "chosen": chosen._asdict()})
    return chosen


def _stored_plan(path: epath.Path, request: Mapping[str, Any]) -> ExecutionPlan | None:
    """Return the stored plan; None if it was chosen for another request, or if the file is damaged (reported)."""
    remedy = "the execution plan is chosen again"
    try:
        record = read_json(path, remedy)
    except DamagedFileError as error:
        say(str(error))
        return None
    if record.get("asked") != request:
        return None
    chosen = ExecutionPlan.from_record(record.get("chosen"))
    if chosen is None:
        say(f"{path}: isn't a valid execution plan; {remedy}")
    return chosen


def write_run_files(workdir: epath.Path, cohort: Cohort, anew: bool = False) -> None:
    """Write config.json of every run of a cohort where it is missing or damaged; with `anew`, of all runs."""
    for run in cohort.runs:
        path = workdir / "runs" / run.id / "config.json"
        if anew or not _is_recorded(workdir, run):
            path.parent.mkdir(parents=True, exist_ok=True)
            location = {"cohort": cohort.id, "folder": cohort.folder}
            write_json(path, {"run_id": run.id} | location | {"config": dataclasses.asdict(run.config)})


def _is_recorded(workdir: epath.Path, run: Run) -> bool:
    try:
        run_config(workdir, run.id)
    except (CheckpointError, DamagedFileError, ConfigError):
        return False
    return True


def _next_stop(step: int, most: int, fixed: Collection[int], intervals: Collection[int]) -> int:
    """Return the last step of the call that starts after `step`, at most `most` steps later.

    No call passes over a `fixed` step or a multiple of one of the `intervals`. Calls are counted from the last of
    these, so that a training that is stopped between two calls makes the same calls as one that isn't.
    """
    later = [s for s in fixed if s > step] + [(step // k + 1) * k for k in intervals]
    return min(step + most, *later)


def _rows(shape: Shape, step: int, last: int) -> list[dict[str, Any]]:
    return [{"step": s, "tokens": s * shape.tokens_per_step} for s in range(step + 1, last + 1)]


def _save(
    workdir: epath.Path,
    cohort: Cohort,
    checkpoints: Checkpoints,
    log: MetricsLog,
    members: Sequence[Run],
    state: State,
    step: int,
    due: set[int],
    owned: Callable[[], object],
) -> None:
    owned()
    log.flush()  # rows up to this step must be in the files before its checkpoint commits
    checkpoints.save(step, state, [run.id for run in members])
    if step in cohort.segment_ends:
        checkpoints.wait()  # a run is reported done once its last checkpoint is on disk
        _tidy(checkpoints, cohort, step, due)
    owned()
    write_statuses(workdir, members, state, step)


def _open_log(workdir: epath.Path, members: Sequence[Run], step: int, first: int, fresh: bool) -> MetricsLog:
    directories = [workdir / "runs" / run.id for run in members] if processes.is_first() else []
    for path in directories:
        resume_at(path, first - 1 if fresh else step, first)
    return MetricsLog(directories, [writers(run.config, d, step) for run, d in zip(members, directories, strict=False)])


def cohort_probes(
    cohort: Cohort, index: TokenIndex, mapping: str = "auto", mesh: jax.sharding.Mesh | None = None
) -> dict[int, Probe]:
    """Return the probes of a cohort by interval (see make_probes); raises ConfigError for an unknown text."""
    shape = cohort.shape
    text_sets = evaluation_sets([run.config for run in cohort.runs], index)
    documents = probe_documents(cohort, index)
    return make_probes(shape.config.probe, shape.model, index.vocab_size, documents, mapping, mesh, text_sets)


def probe_documents(cohort: Cohort, index: TokenIndex) -> Documents | None:
    """Return the documents that the probe measures states and sharpness on; None if it measures neither.

    They are validation documents of the domains trained on, one of each in turn. Raises ConfigError if too few.
    """
    config = cohort.shape.config.probe
    if not config.reads_documents:
        return None
    by_domain = (index.documents("validation", d) for d in cohort.shape.config.data.train_domains or index.domains)
    alternating = (d for turn in itertools.zip_longest(*by_domain) for d in turn if d is not None)
    return choose_documents(config, alternating, index.eos_id)


def check_mesh(cohort: Cohort) -> None:
    """Raise ConfigError if there are too few devices for the mesh, or if it doesn't divide batch or parameters.

    It is also raised if the configuration asks for an execution plan or a metrics writer that isn't available.
    """
    shape = cohort.shape
    mesh = sharding.make_mesh(shape.config.mesh, len(cohort.runs))
    require(
        shape.batch_size % mesh.shape["data"] == 0,
        "config.mesh.data",
        mesh.shape["data"],
        f"doesn't divide config.data.batch_size = {shape.batch_size}; choose a divisor",
    )
    memory.choose_execution_plan(shape, len(cohort.runs), mesh)
    for run in cohort.runs:
        check_writers(run.config)
    sharding.stack_shardings(mesh, programs.stack_structs(shape, 1), shape.config.mesh.fsdp)


def check_vocabulary(vocab_size: int, index: TokenIndex) -> None:
    """Raise ConfigError if the data contain tokens outside the model's vocabulary."""
    require(
        index.vocab_size <= vocab_size,
        "config.model.vocab_size",
        vocab_size,
        f"the tokenizer has {index.vocab_size} tokens, so some are outside the vocabulary; raise it to that number",
    )
