"""Run the evaluations of a cohort's checkpoints, batched over models; those already done are skipped."""

import collections
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.eval_data import EvalData, Model, ModelBatch, StoppedError
from eval.evaluator import BUILT_IN, OWN, Evaluation, Evaluator, Measured, in_one_line
from eval.suite import errors_of, evaluations, evaluators
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort
from olmo_jax.config import require
from olmo_jax.console import say
from olmo_jax.data.shards import TokenIndex
from olmo_jax.errors import UserError
from olmo_jax.storage.names import matching
from olmo_jax.storage.run_status import DROPPED, read_status


class Job(NamedTuple):
    """One evaluation, and the models of a cohort that have no result for it."""

    evaluation: Evaluation
    models: tuple[Model, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of a configuration's evaluations to run.

    Attributes:
      only: kinds or names of evaluations, or patterns of them with * and ?; () for all.
      runs: a pattern of run ids.
      steps: "" for each evaluation's default steps, else "final", "all", or a tuple of steps.
    """

    only: tuple[str, ...] = ()
    runs: str = "*"
    steps: str | tuple[int, ...] = ""

    def check(self, config: EvalConfig, runs: Sequence[str], steps: Sequence[int]) -> None:
        """Raise ConfigError for an unknown evaluation, a pattern without a run, or a step without a checkpoint."""
        names = {name for e in evaluations(config) for name in (e.kind, e.name)}
        for name in self.only:
            known = ", ".join(sorted({e.kind for e in evaluations(config)}))
            remedy = f"isn't an evaluation of this configuration; choose from {known}, or name one of their results"
            require(bool(matching(names, name)), "--only", name, remedy)
        some = ", ".join(sorted(runs)[:3])
        require(bool(matching(runs, self.runs)), "--runs", self.runs, f"matches no run; the runs are {some}, ...")
        for step in self.steps if isinstance(self.steps, tuple) else ():
            known = ", ".join(map(str, steps))
            require(step in steps, "--steps", step, f"no checkpoint has this step; the steps are {known}")

    def select(self, config: EvalConfig) -> list[Evaluation]:
        """Return the evaluations to run, by choice or because a chosen one is computed from their results."""
        listed = evaluations(config)
        needed = {required for evaluation in listed if self.names(evaluation) for required in evaluation.required}
        return [evaluation for evaluation in listed if self.names(evaluation) or evaluation.name in needed]

    def names(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is chosen."""
        return not self.only or self._is_named(evaluation.kind, evaluation.name, *_chosen_with(evaluation))

    def at(self, evaluation: Evaluation, step: int, end: int) -> bool:
        """Return whether to run an evaluation at a step of a run that ends at `end`."""
        if evaluation.everywhere and not self.names(evaluation):
            return True
        chosen = self.steps if isinstance(self.steps, tuple) else ()
        if evaluation.at_the_end or self.steps == "final":
            return step == end and (not chosen or step in chosen)
        return step in chosen if chosen else evaluation.everywhere or self.steps == "all" or step == end

    def _is_named(self, *names: str) -> bool:
        return any(matching(names, only) for only in self.only)


EVERYTHING = Choice()


def jobs(workdir: epath.Path, cohort: Cohort, config: EvalConfig, choice: Choice = EVERYTHING) -> list[Job]:
    """Return the jobs that a cohort still needs, checkpoint by checkpoint; then those across checkpoints.

    A cohort trained on equations gets only evaluations that need no text; its metrics have loss and accuracy.
    """
    by_kind = {evaluator.kind: evaluator for evaluator in evaluators(config)}
    ends = {run.id: run.config.total_steps for run in cohort.runs}
    written = checkpoint.member_lists(checkpoint.directory(workdir, cohort.folder))
    steps = {run: sorted(step for step, members in written.items() if run in members) for run in ends}
    chosen = [e for e in choice.select(config) if not (cohort.shape.arithmetic and by_kind[e.kind].needs_text)]
    imported = [run.id for run in cohort.runs if run.config.imported]
    incomplete = {run for run in imported if read_status(workdir, run).get(DROPPED)}
    phases = _phases(chosen, by_kind)
    selected = {*matching(ends, choice.runs)}
    listed: set[tuple[str, Model]] = set()
    result: list[Job] = []
    across: dict[str, list[Model]] = collections.defaultdict(list)

    def is_left(evaluation: Evaluation, run: str, step: int) -> bool:
        evaluator = by_kind[evaluation.kind]
        if run not in selected or not choice.at(evaluation, step, ends[run]):
            return False
        if evaluator.of_whole_runs and run in incomplete:
            return False
        stored = results.read(workdir, run, step, evaluation)
        with errors_of(evaluator):
            if stored is not None and evaluator.is_current(stored, steps[run]):
                return False
            if not evaluator.is_ready(steps[run], ends[run]):
                return False
        return all(
            (required.name, (run, at)) in listed or results.read(workdir, run, at, required) is not None
            for required in evaluation.requires
            for at in (steps[run] if required.everywhere else (step,))
        )

    for step, members in written.items():
        for evaluation in chosen:
            models = [(run, step) for run in members if is_left(evaluation, run, step)]
            listed |= {(evaluation.name, model) for model in models}
            if by_kind[evaluation.kind].across_checkpoints:
                across[evaluation.name] += models
            elif models:
                result.append(Job(evaluation, tuple(models)))
    for evaluation in chosen:
        if models := across[evaluation.name]:
            with errors_of(by_kind[evaluation.kind]):
                portions = list(by_kind[evaluation.kind].portions(models))
            result += [Job(evaluation, portion) for portion in portions]
    return sorted(result, key=lambda job: phases[job.evaluation.name])


def _chosen_with(evaluation: Evaluation) -> tuple[str, ...]:
    return (BUILT_IN.get(evaluation.kind) or OWN[evaluation.kind]).chosen_with


def _phases(chosen: Sequence[Evaluation], by_kind: Mapping[str, Evaluator[Any]]) -> dict[str, int]:
    """Return each evaluation's phase, by name.

    It is later than those of the evaluations that it requires; one across checkpoints is never in the first phase.
    """
    phases: dict[str, int] = {}
    for evaluation in chosen:
        after = [phases[name] + 1 for name in evaluation.required if name in phases]
        phases[evaluation.name] = max([int(by_kind[evaluation.kind].across_checkpoints), *after])
    return phases


def evaluate(
    workdir: epath.Path,
    cohort: Cohort,
    index: TokenIndex,
    config: EvalConfig,
    go_on: Callable[[Job], bool],
    choice: Choice = EVERYTHING,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Run the `jobs` of a cohort and write one result per model, atomically.

    `go_on` is called after each job; False ends the evaluation. `stop` is called at each step of a fine-tuning; True
    ends it, and its work is lost. The caller must hold the cohort's lock. Returns whether all jobs are done. Raises
    CheckpointError, DataError for missing text or items and, after all other jobs, EvaluationError if a
    user-defined evaluation raised anything else.
    """
    for member in cohort.runs:
        results.clean(workdir, member.id)
    by_kind = {evaluator.kind: evaluator for evaluator in evaluators(config)}
    listed = jobs(workdir, cohort, config, choice)
    phases = _phases(choice.select(config), by_kind)
    # Jobs for the same models share their parameters, read once; one shape is one compiled program.
    groups: dict[tuple[Any, ...], list[Job]] = collections.defaultdict(list)
    for job in listed:
        groups[job.models, phases[job.evaluation.name]].append(job)
    eval_data = EvalData(workdir, cohort, index, config, stop)
    failed: dict[str, str] = {}
    for (models, _), of_models in sorted(groups.items(), key=lambda group: group[0][1]):
        batch = ModelBatch(eval_data, models)
        for kind, of_kind in itertools.groupby(of_models, key=lambda job: job.evaluation.kind):
            left = [job.evaluation for job in of_kind]
            while left := [evaluation for evaluation in left if not failed.keys() & {*evaluation.required}]:
                try:
                    for evaluation, measured, seconds in _measured(by_kind[kind], batch, left):
                        left = left[1:]
                        if any(results.path_of(workdir, run, step, evaluation.name).exists() for run, step in models):
                            say(f"{evaluation.name}: stored results are outdated and are replaced")
                        for (run, step), result in zip(models, measured, strict=True):
                            results.write(
                                workdir, run, step, evaluation, cohort.shape.data_fingerprint, result, seconds
                            )
                            if kind in OWN:
                                columns = [OWN[kind].describe(evaluation.name, name) for name in result.metrics]
                                results.declare(workdir, run, columns)
                        if not go_on(Job(evaluation, models)):
                            return False
                except StoppedError:
                    return False
                except _OwnError as error:
                    name, left = left[0].name, left[1:]
                    if name not in failed:
                        say(f"{name} failed: {error}; continuing with the others")
                    failed[name] = str(error)
    if failed:
        name, why = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise EvaluationError(f"evaluation {name}{more} failed: {why}; correct it and run the same command again")
    return True


def _measured(
    evaluator: Evaluator[Any], batch: ModelBatch, left: Sequence[Evaluation]
) -> Iterator[tuple[Evaluation, list[Measured], float]]:
    """Yield each evaluation with its results and seconds. Raises _OwnError if a user-defined evaluator fails."""
    kind = type(evaluator)
    is_own = kind in OWN.values()
    start = time.monotonic()
    try:
        results_of_each = iter(evaluator.measure_all(batch, left))
        for evaluation in left:
            measured = next(results_of_each, None)
            if is_own:
                _check_results(evaluation, measured, batch.models)
            assert measured is not None
            seconds, start = time.monotonic() - start, time.monotonic()
            yield evaluation, measured, seconds
    except (UserError, StoppedError):
        raise
    except Exception as error:
        if not is_own:
            raise
        raise _OwnError(in_one_line(error, kind)) from error


class _OwnError(Exception):
    """An error that a user-defined evaluator raised, in one line."""


class EvaluationError(UserError):
    """User-defined evaluations raised errors; all others are done."""


def _check_results(evaluation: Evaluation, measured: Sequence[Measured] | None, models: Sequence[Model]) -> None:
    """Raise TypeError or ValueError for results that can't be stored: not one per model, or not numbers by name."""
    if measured is None or len(measured) != len(models):
        count = 0 if measured is None else len(measured)
        raise ValueError(f"{evaluation.name}: {count} results for {len(models)} models; needs one per model")
    for one in measured:
        for name, value in one.metrics.items():
            if not isinstance(name, str) or type(value) not in (int, float):
                raise TypeError(f"metric {name!r} is of type {type(value).__name__}; needs a Python int or float")
        if reserved := results.RESERVED & one.more.keys():
            keys = ", ".join(sorted(reserved))
            raise ValueError(f"{evaluation.name}: `more` has the reserved keys {keys}; rename them")
        json.dumps(one.more)


def read_results(
    workdir: epath.Path, run: str, step: int, config: EvalConfig | Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the stored results of a run at a step, by evaluation name.

    Results of the configuration's evaluations are left out if their settings differ from it. Results of evaluations
    that it doesn't name, such as those of an earlier configuration, are included.

    Args:
      config: the configuration or, for many calls, what `settings_by_name` returns for it.
    """
    settings = settings_by_name(config) if isinstance(config, EvalConfig) else config
    stored = results.read_all(workdir, run, step)
    return {name: r for name, r in stored.items() if name not in settings or r["settings"] == settings[name]}


def settings_by_name(config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Return the settings of each evaluation of a configuration, by name."""
    return {evaluation.name: evaluation.settings for evaluation in evaluations(config)}


def outdated(workdir: epath.Path, runs: Sequence[str], config: EvalConfig) -> list[str]:
    """Return the names of evaluations with stored results whose settings differ from the configuration."""
    names, settings = set(), settings_by_name(config)
    for run in runs:
        for step in results.steps(workdir, run):
            names |= results.read_all(workdir, run, step).keys() - read_results(workdir, run, step, settings).keys()
    return sorted(names)
