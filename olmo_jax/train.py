"""Trains one cohort: from token windows to checkpoints and metrics, resumable at any point by the same call."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

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
from olmo_jax.probes.texts import passages
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
    """Trains the cohort from where it stands to its end.

    Args:
      workdir: of the sweep. index: the prepared data.
      stop: asked after each call of some steps; once it answers True, a checkpoint is written and training ends.
      traced: first and last step of a trace for the profiler, written to profile/ in the working directory.
      owned: called before a checkpoint or a status is written; raises where another process has taken the cohort over.

    Returns:
      True if every member is done, False if `stop` ended it.
    """
    shape, runs = cohort.shape, cohort.runs
    if processes.broadcast(all(has_ended(workdir, run.id) for run in runs)):
        return True
    check_vocabulary(shape.model.vocab_size, index)
    mesh = sharding.make_mesh(shape.config.mesh, len(runs))
    compute = _kept_or_decided(workdir, cohort, mesh)
    say(f"{cohort.folder}: {compute}")
    feed = BatchLoader(index, [run.config for run in runs], mesh, compute.steps_per_call)
    probes = cohort_probes(cohort, index, compute.mapping, mesh)
    due, total = cohorts.checkpoint_steps(cohort), cohort.segment_ends[-1]
    trace = Trace(workdir / "profile" / cohort.folder, traced)

    with open_checkpoints(directory(workdir, cohort.folder)) as checkpoints:
        # Resuming: the last whole checkpoint, else the start. A segment's last still holds those that ended there.
        step, state = _resume(workdir, cohort, checkpoints, mesh)
        places = cohort.active(step)
        _tidy(checkpoints, cohort, step, due)
        write_statuses(workdir, [runs[i] for i in places], state, step)
        restore_statuses(workdir, [run for run in runs if run.config.total_steps < step])
        stopped = False

        with progress(f"train {cohort.folder} ({len(runs)} runs)", total, step) as show:
            for end in (e for e in cohort.segment_ends if e > step):
                staying = cohort.active(end)
                state = programs.pick(state, [places.index(i) for i in staying], mesh, shape.config.mesh.fsdp)
                places = staying
                members = [runs[i] for i in places]
                padded = sharding.pad(places, mesh)
                with _open_log(workdir, members, step) as log:
                    clock = Clock(log, shape, len(members), mesh.size, step)
                    program = programs.compile_steps(shape, members, mesh, compute, feed.table)
                    clock.event("compile", step)
                    if step == 0:
                        log.later([{"step": 0, "tokens": 0}], {})
                        for probe in probes.values():
                            log.also(jax.block_until_ready(probe(state.params, padded)))
                        clock.event("probe", step)
                    while step < end and not stopped:
                        trace.at(step)
                        last = _next_stop(step, compute.steps_per_call, {end, *due, *trace.steps}, probes)
                        with clock.waiting():
                            fed = feed(step, last - step, places)
                        state, metrics = program.steps(state, program.hyper, feed.table, fed, np.int32(last - step))
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
                        show(step, clock.note)
                if stopped and step < total:
                    trace.end()
                    return False
        trace.end()
    return True


def _resume(
    workdir: epath.Path, cohort: Cohort, checkpoints: Checkpoints, mesh: jax.sharding.Mesh
) -> tuple[int, State]:
    """Step and state of the last checkpoint that is whole and that the members' metrics reach; else the beginning.

    Those after it are set aside with a warning. Raises CheckpointError where there are some and none will do: what is
    lost then is all of the training, and somebody may have a copy.
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
            say(f"{reason}; set aside as {checkpoints.set_aside(later)}: training goes on from step {step}")
        return step, state
    if broken:
        folder = directory(workdir, cohort.folder).parent
        raise CheckpointError(
            f"none of {len(broken)} checkpoints can be resumed from: {broken[max(broken)]}; put it back from a copy, "
            f"or move {folder} away to train these runs anew"
        )
    return 0, programs.initial_state(shape, cohort.runs, mesh)


def _check_metrics(workdir: epath.Path, cohort: Cohort, step: int) -> None:
    """Raises MetricsError, in every process, unless the rows of all that take `step` reach it."""
    failed = None
    try:
        for i in cohort.active(step):
            check_rows(workdir / "runs" / cohort.runs[i].id, step)
    except MetricsError as error:
        failed = error
    if processes.any_process(failed is not None):
        raise failed or MetricsError(f"another process can't read the metrics up to step {step}")


def _tidy(checkpoints: Checkpoints, cohort: Cohort, step: int, due: set[int]) -> None:
    """Deletes what stops have left, once some members have ended at `step`."""
    extras = set(checkpoints.steps()) - due if step in cohort.segment_ends else set()
    if extras:
        checkpoints.check(step)  # none goes before the one that takes its place is known to be whole
    for extra in extras:
        checkpoints.delete(extra)


def _kept_or_decided(workdir: epath.Path, cohort: Cohort, mesh: jax.sharding.Mesh) -> ExecutionPlan:
    """How the cohort's steps are carried out: decided once and kept, so that a resumed training does as it did.

    Decided again for another configuration, mesh or kind of device.
    """
    shape = cohort.shape
    asked = {
        "mapping": shape.config.mapping,
        "compute": identity_fields(shape.config.compute),
        "mesh": dict(mesh.shape) | {"fsdp": shape.config.mesh.fsdp},
        "device": jax.devices()[0].device_kind,
    }
    path = directory(workdir, cohort.folder).parent / "compute.json"
    if path.exists() and (kept := _kept(path, asked)):
        return kept
    chosen = memory.decide(shape, len(cohort.runs), mesh)
    chosen = memory.fit(shape, cohort.runs, mesh, chosen, memory.device_memory())
    if processes.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"asked": asked, "chosen": chosen._asdict()})
    return chosen


def _kept(path: epath.Path, asked: Mapping[str, Any]) -> ExecutionPlan | None:
    """What was decided for what is `asked`; None where that was something else, or the file is damaged (told)."""
    remedy = "how steps are carried out is decided anew"
    try:
        kept = read_json(path, remedy)
    except DamagedFileError as error:
        say(str(error))
        return None
    if kept.get("asked") != asked:
        return None
    chosen = ExecutionPlan.of_record(kept.get("chosen"))
    if chosen is None:
        say(f"{path}: isn't what was written; {remedy}")
    return chosen


def write_run_files(workdir: epath.Path, cohort: Cohort, anew: bool = False) -> None:
    """runs/<run>/config.json of every run of a cohort, where it isn't there yet or is damaged, or `anew`."""
    for run in cohort.runs:
        path = workdir / "runs" / run.id / "config.json"
        if anew or not _is_recorded(workdir, run):
            path.parent.mkdir(parents=True, exist_ok=True)
            place = {"cohort": cohort.id, "folder": cohort.folder}
            write_json(path, {"run_id": run.id} | place | {"config": dataclasses.asdict(run.config)})


def _is_recorded(workdir: epath.Path, run: Run) -> bool:
    try:
        run_config(workdir, run.id)
    except (CheckpointError, DamagedFileError, ConfigError):
        return False
    return True


def _next_stop(step: int, most: int, fixed: Collection[int], intervals: Collection[int]) -> int:
    """The last step of a call that begins after `step`: at most so many, none of what is due passed over.

    What is due are the `fixed` steps and the multiples of `intervals`. Counted from what was due last, so that a
    training that was stopped between two calls takes the same ones as one that wasn't.
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
    log.flush()  # the rows up to this step are in the files before its checkpoint commits
    checkpoints.save(step, state, [run.id for run in members])
    if step in cohort.segment_ends:
        checkpoints.wait()  # a run is reported done once its last checkpoint is on disk
        _tidy(checkpoints, cohort, step, due)
    owned()
    write_statuses(workdir, members, state, step)


def _open_log(workdir: epath.Path, members: Sequence[Run], step: int) -> MetricsLog:
    directories = [workdir / "runs" / run.id for run in members] if processes.is_first() else []
    for path in directories:
        resume_at(path, step if step else -1)
    return MetricsLog(directories, [writers(run.config, d, step) for run, d in zip(members, directories, strict=False)])


def cohort_probes(
    cohort: Cohort, index: TokenIndex, mapping: str = "auto", mesh: jax.sharding.Mesh | None = None
) -> dict[int, Probe]:
    """The probes of a cohort, by interval (see make_probes). Raises ConfigError for texts that aren't there."""
    shape = cohort.shape
    read = passages([run.config for run in cohort.runs], index)
    documents = probe_documents(cohort, index)
    return make_probes(shape.config.probe, shape.model, index.vocab_size, documents, mapping, mesh, read)


def probe_documents(cohort: Cohort, index: TokenIndex) -> Documents | None:
    """The documents whose states the probe measures; None where it reads none. Raises ConfigError if there are too few.

    Validation documents of the domains trained on, one of each in turn.
    """
    config = cohort.shape.config.probe
    if not config.reads_states:
        return None
    by_domain = (index.documents("validation", d) for d in cohort.shape.config.data.train_domains or index.domains)
    in_turn = (d for turn in itertools.zip_longest(*by_domain) for d in turn if d is not None)
    return choose_documents(config, in_turn, index.eos_id)


def check_mesh(cohort: Cohort) -> None:
    """Raises ConfigError if there are too few devices for the mesh, or if it doesn't divide batch or parameters.

    And if a step can't be carried out here as the configuration says.
    """
    shape = cohort.shape
    mesh = sharding.make_mesh(shape.config.mesh, len(cohort.runs))
    require(
        shape.batch_size % mesh.shape["data"] == 0,
        "config.mesh.data",
        mesh.shape["data"],
        f"doesn't divide config.data.batch_size = {shape.batch_size}; choose a divisor",
    )
    memory.decide(shape, len(cohort.runs), mesh)
    for run in cohort.runs:
        check_writers(run.config)
    sharding.stack_shardings(mesh, programs.stack_structs(shape, 1), shape.config.mesh.fsdp)


def check_vocabulary(vocab_size: int, index: TokenIndex) -> None:
    """Raises ConfigError if the data hold tokens that the model can't name."""
    require(
        index.vocab_size <= vocab_size,
        "config.model.vocab_size",
        vocab_size,
        f"the tokenizer has {index.vocab_size} tokens, so some lie outside the vocabulary; raise it to that",
    )
