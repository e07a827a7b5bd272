"""Run the stages of a sweep: prepare, train, evaluate, report. Each does only what is left to do."""

import contextlib
import dataclasses
import functools
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from etils import epath

from eval import evaluate as evaluation
from eval.check import check_evaluation
from olmo_jax.checkpoint import check_place, directory, member_lists
from olmo_jax.cohort import Cohort
from olmo_jax.config import TrainConfig, require
from olmo_jax.console import one_table, progress, say
from olmo_jax.data.fingerprint import rough_bytes
from olmo_jax.data.prepare import prepare
from olmo_jax.data.shards import INDEX_FILE, TokenIndex
from olmo_jax.data.windows import epochs, too_few_tokens
from olmo_jax.data.windows import training_tokens as training_tokens_of
from olmo_jax.execution import compilation_cache
from olmo_jax.storage.lock import exclusive_lock
from olmo_jax.storage.run_files import data_root
from olmo_jax.storage.run_status import has_ended
from olmo_jax.train import check_mesh, check_vocabulary, cohort_probes, train_cohort, write_run_files
from sweeps.planning.branches import in_order, tokens_of_text
from sweeps.planning.plan import Plan
from sweeps.planning.record import join, pin, recorded_plan
from sweeps.planning.versions import versions
from sweeps.running import stage_times
from sweeps.running.parents import check_tokenizers, lacking
from sweeps.running.stacks import one_process_per_stack

_BYTES_PER_TOKEN = 4.0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield `stop()`, which returns True after a SIGTERM or SIGINT; a second signal ends the process at once."""
    asked = threading.Event()

    def note(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        say(f"{signal.Signals(number).name}: stopping after the next checkpoint; send it again to stop immediately")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_compiled(workdir: epath.Path) -> None:
    """Keep compiled programs in the working directory, by host, for other stages and later starts."""
    compilation_cache.keep_compiled(Path(workdir) / "compiled" / platform.node())


def prepare_all(workdir: epath.Path, plan: Plan, to_train: bool = True) -> dict[str, TokenIndex]:
    """Prepare every data set of the plan and return them by data.name.

    All checks of the runs are made here, before anything is trained. Raises ConfigError or DataError for a directory of
    another sweep, data that can't be read or are too small, a mesh that doesn't fit the devices, and tokens outside the
    vocabulary.

    Args:
      to_train: also check the mesh against the devices, and the budgets against config.data.max_epochs.
    """
    join(workdir, plan)  # raises where the plan doesn't fit the directory
    places = [data_root(workdir, config) / name for name, config in plan.data.items()]
    with stage_times.timed(workdir, "prepare", not all((place / INDEX_FILE).exists() for place in places)):
        return _prepared(workdir, plan, to_train)


def _prepared(workdir: epath.Path, plan: Plan, to_train: bool) -> dict[str, TokenIndex]:
    if to_train:
        check_place(workdir)
    for cohort in plan.cohorts if to_train else ():
        check_mesh(cohort)
    indexes = {name: prepare(config.data, data_root(workdir, config), say) for name, config in plan.data.items()}
    planned = {run.id: run.config for run in plan.runs}
    for cohort in plan.cohorts:
        index = indexes[cohort.shape.data_name]
        check_vocabulary(cohort.shape.model.vocab_size, index)
        if not cohort.shape.arithmetic:
            problem = too_few_tokens(index, cohort.shape.config.data.train_domains, cohort.shape.sequence_length)
            require(not problem, "config.data.sequence_length", cohort.shape.sequence_length, problem)
        cohort_probes(cohort, index)
        if to_train:
            _check_epochs(cohort, index, planned)
        check_evaluation(plan.evaluation, cohort, index)
    check_tokenizers(workdir, plan, indexes)
    return indexes


def begin(workdir: epath.Path, plan: Plan, to_train: bool = True) -> tuple[Plan, dict[str, TokenIndex]]:
    """Prepare the data, write sweep.json and the runs' config.json; return the plan with its stacks, and the data."""
    plan = join(workdir, plan)
    indexes = prepare_all(workdir, plan, to_train)
    workdir.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(Path(workdir / ".sweep.lock"), say):  # every process of a shared sweep does this
        plan = pin(workdir, plan, versions())
        for stack in plan.stacks:
            write_run_files(workdir, stack)
    return plan, indexes


def train_all(
    workdir: epath.Path,
    plan: Plan,
    indexes: dict[str, TokenIndex],
    stop: Callable[[], bool],
    traced: Sequence[int] = (),
) -> bool:
    """Train the stacks of the plan that aren't trained yet; return False if a signal ended it.

    Stacks that another process is training are left to it and waited for. Raises LockError if another process takes
    over a stack of this one. `traced`: see train_cohort.
    """

    def train(stack: Cohort, stop: Callable[[], bool]) -> bool:
        compilation_cache.release_programs()
        return train_cohort(workdir, stack, indexes[stack.shape.data_name], stop, traced, owned=stop)

    untrained = not all(has_ended(workdir, run.id) for stack in plan.stacks for run in stack.runs)
    with stage_times.timed(workdir, "train", untrained):
        stacks = in_order(plan.stacks)
        return one_process_per_stack(workdir, stacks, stop, train, functools.partial(lacking, workdir))


def evaluate_all(
    workdir: epath.Path,
    plan: Plan,
    indexes: dict[str, TokenIndex],
    stop: Callable[[], bool],
    choice: evaluation.Choice = evaluation.EVERYTHING,
) -> bool:
    """Carry out the evaluations of `choice` that aren't done yet; return False if a signal ended it.

    Stacks that another process is evaluating are left to it and waited for. Raises ConfigError if nothing is trained,
    and if the choice matches nothing.
    """
    steps = sorted({s for stack in plan.stacks for s in member_lists(directory(workdir, stack.folder))})
    require(bool(steps), "--workdir", str(workdir), _why_no_checkpoint(workdir, plan))
    choice.check(plan.evaluation, [run.id for run in plan.runs], steps)

    def remaining(stack: Cohort) -> int:
        return len(evaluation.jobs(workdir, stack, plan.evaluation, choice))

    remaining_at_start = {stack.folder: remaining(stack) for stack in plan.stacks}
    total = sum(remaining_at_start.values())
    if not total:
        say("evaluate: nothing is left to do")
        return True
    with stage_times.timed(workdir, "evaluate", True), progress("evaluate", total) as show:
        finished = 0

        def evaluate(stack: Cohort, stop: Callable[[], bool]) -> bool:
            nonlocal finished
            compilation_cache.release_programs()
            by_others = remaining_at_start[stack.folder] - remaining(stack)
            if by_others > 0:
                finished += by_others
                show(finished, f"{by_others} of them by another process")

            def proceed(job: evaluation.Job) -> bool:
                nonlocal finished
                finished += 1
                show(finished, f"{job.evaluation.name} of {len(job.models)} models")
                return not stop()

            index = indexes[stack.shape.data_name]
            return evaluation.evaluate(workdir, stack, index, plan.evaluation, proceed, choice, stop)

        return one_process_per_stack(workdir, plan.stacks, stop, evaluate)


def _why_no_checkpoint(workdir: epath.Path, plan: Plan) -> str:
    folders = {p.name for p in (workdir / "cohorts").iterdir()} if (workdir / "cohorts").exists() else set()
    if unknown := folders - {stack.folder for stack in plan.stacks}:
        return f"holds {', '.join(sorted(unknown))}, which sweep.json doesn't name; put sweep.json back from a copy"
    return "holds no checkpoint to evaluate; train first"


def run(
    workdir: epath.Path,
    plan: Plan,
    stop: Callable[[], bool],
    command: str,
    traced: Sequence[int] = (),
    cohort: str | None = None,
) -> bool:
    """Run all stages, skipping what is done; return False if a signal ended it.

    With `cohort`, only that cohort is trained and evaluated, and no report is written.
    """
    chosen = cohort_ids(plan, cohort)
    plan, indexes = begin(workdir, plan)
    plan = dataclasses.replace(plan, stacks=tuple(stack for stack in plan.stacks if stack.id in chosen))
    with one_table():
        if not train_all(workdir, plan, indexes, stop, traced) or not evaluate_all(workdir, plan, indexes, stop):
            return False
    if cohort is None:
        _report(workdir, command)
    return True


def run_imported(workdir: epath.Path, stop: Callable[[], bool], command: str) -> bool:
    """Evaluate and report a directory of imported runs; return False if a signal ended it."""
    plan, indexes = begin(workdir, recorded_plan(workdir), to_train=False)
    if not evaluate_all(workdir, plan, indexes, stop):
        return False
    _report(workdir, command)
    return True


def _report(workdir: epath.Path, command: str) -> None:
    """Write the report and print what it found."""
    from sweeps.report import stage  # statistics and plotting, which the other stages don't need

    with exclusive_lock(Path(workdir / ".sweep.lock"), say):
        page, table = stage.report(workdir, command)
    print("\n".join(stage.summary(workdir, table)))
    print(f"Report: {page}")


def cohort_ids(plan: Plan, cohort: str | None) -> list[str]:
    """Return the id of the cohort given by its index in the plan or its id; all ids for None.

    Raises ConfigError if there is no such cohort.
    """
    ids = [c.id for c in plan.cohorts]
    if cohort is None:
        return ids
    chosen = ids[int(cohort)] if cohort.isdigit() and int(cohort) < len(ids) else cohort
    needed = f"give a number from 0 to {len(ids) - 1}, or an id that `olmo-jax plan` prints"
    require(chosen in ids, "--cohort", cohort, f"isn't one of the sweep's cohorts; {needed}")
    return [chosen]


def training_tokens(workdir: epath.Path | None, plan: Plan) -> dict[str, tuple[float, str]]:
    """Return the tokens of one pass over each data set, by data.name, and how exact that is.

    "" for data that are prepared, "about " or "at least " for an estimate; data of unknown size are left out.
    """
    result = {}
    for name, config in plan.data.items():
        data = config.data
        if data.is_arithmetic:  # every run has its own equations
            continue
        place = data_root(workdir or epath.Path("."), config) / name
        if (place / INDEX_FILE).exists() and (workdir is not None or data.root):
            index = TokenIndex.load(place)
            tokens = training_tokens_of(index, data.train_domains)
            result[name] = float(sum(map(len, tokens))), ""
        elif text := rough_bytes(data):
            # python_packages may have less text than its cap.
            qualifier = "at least " if "python_packages" in data.corpus else "about "
            result[name] = text * (1 - data.validation_fraction) / _BYTES_PER_TOKEN, qualifier
    return result


def _check_epochs(cohort: Cohort, index: TokenIndex, planned: Mapping[str, TrainConfig]) -> None:
    if cohort.shape.arithmetic:  # its equations are drawn with replacement
        return
    for run in cohort.runs:
        data = run.config.data
        tokens = tokens_of_text(run.config, planned)
        passes = epochs(index, data.train_domains, data.sequence_length, tokens)
        require(
            passes <= data.max_epochs,
            "config.data.max_epochs",
            data.max_epochs,
            f"{run.id}: config.tokens = {tokens:,} is {passes:.3g} passes over its training tokens; "
            "raise max_epochs, lower tokens, or add text",
        )
