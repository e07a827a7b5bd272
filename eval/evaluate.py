"""Run the evaluations of a cohort's checkpoints, batched over models; those that are done already are skipped."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from eval import results
from eval.config import EvalConfig
from eval.eval_data import EvalData, Model, ModelBatch, StoppedError
from eval.evaluators.dynamics import losses_behind
from eval.results import Evaluation
from eval.suite import KINDS, WITHOUT_TEXT, evaluations
from olmo_jax import checkpoint
from olmo_jax.cohort import Cohort
from olmo_jax.config import require
from olmo_jax.console import say
from olmo_jax.data.shards import TokenIndex
from olmo_jax.storage.names import matching


class Job(NamedTuple):
    """One evaluation, and the models of a cohort that have no result of it."""

    evaluation: Evaluation
    models: tuple[Model, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of a configuration's evaluations to run.

    Attributes:
      only: kinds or names, with * and ?; () for all.
      runs: a pattern of run ids.
      steps: "" for each evaluation's default steps, else "final", "all", or a tuple of steps.
    """

    only: tuple[str, ...] = ()
    runs: str = "*"
    steps: str | tuple[int, ...] = ""

    def check(self, config: EvalConfig, runs: Sequence[str], steps: Sequence[int]) -> None:
        """Raise ConfigError for an unknown evaluation, a pattern of no run, or a step without a checkpoint."""
        names = {name for e in evaluations(config) for name in (e.kind, e.name)}
        for name in self.only:
            known = ", ".join(sorted({e.kind for e in evaluations(config)}))
            remedy = f"is no evaluation of this configuration; it has {known}, or the name of one of these results"
            require(bool(matching(names, name)), "--only", name, remedy)
        some = ", ".join(sorted(runs)[:3])
        require(bool(matching(runs, self.runs)), "--runs", self.runs, f"matches no run; the runs are {some}, ...")
        for step in self.steps if isinstance(self.steps, tuple) else ():
            known = ", ".join(map(str, steps))
            require(step in steps, "--steps", step, f"is the step of no checkpoint; the steps are {known}")

    def takes(self, evaluation: Evaluation) -> bool:
        """Return whether to run an evaluation, by choice or because a chosen one is computed from its results."""
        return self.names(evaluation) or self.needs(evaluation)

    def names(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is chosen."""
        return not self.only or self._is_named(evaluation.kind, evaluation.name, evaluation.kind.removesuffix("_best"))

    def needs(self, evaluation: Evaluation) -> bool:
        """Return whether a chosen evaluation needs it: saturation the losses, the best rate all rates."""
        if evaluation.kind == "lm_loss":
            return self._is_named("saturation")
        best = evaluation.name.rsplit("_lr", 1)[0] + "_best"
        return evaluation.kind == "finetune" and self._is_named("finetune_best", best)

    def at(self, evaluation: Evaluation, step: int, end: int) -> bool:
        """Return whether to run an evaluation at a step of a run that ends at `end`."""
        if evaluation.kind == "lm_loss" and not self.names(evaluation):
            return True
        chosen = self.steps if isinstance(self.steps, tuple) else ()
        if evaluation.at_the_end or self.steps == "final":
            return step == end and (not chosen or step in chosen)
        return step in chosen if chosen else evaluation.everywhere or self.steps == "all" or step == end

    def _is_named(self, *names: str) -> bool:
        return any(matching(names, only) for only in self.only)


EVERYTHING = Choice()


def jobs(workdir: epath.Path, cohort: Cohort, config: EvalConfig, choice: Choice = EVERYTHING) -> list[Job]:
    """Return the jobs left for a cohort, checkpoint by checkpoint; then fine-tuning, for all checkpoints together.

    For a cohort trained on equations, only evaluations that need no text; loss and accuracy are in its metrics.
    """
    ends = {run.id: run.config.total_steps for run in cohort.runs}
    written = checkpoint.member_lists(checkpoint.directory(workdir, cohort.folder))
    steps = {run: sorted(step for step, members in written.items() if run in members) for run in ends}
    chosen = [e for e in evaluations(config) if choice.takes(e)]
    if cohort.shape.arithmetic:
        chosen = [e for e in chosen if e.kind in WITHOUT_TEXT]
    selected = {*matching(ends, choice.runs)}
    by_checkpoint: list[Job] = []
    across: dict[str, list[Model]] = collections.defaultdict(list)
    for step, members in written.items():
        for evaluation in chosen:
            models = [
                (run, step)
                for run in members
                if run in selected
                and choice.at(evaluation, step, ends[run])
                and not _is_done(workdir, run, step, evaluation, steps[run])
                and _can_be_done(workdir, run, evaluation, steps[run], ends[run], by_checkpoint)
            ]
            if _order(evaluation):
                across[evaluation.name] += models
            elif models:
                by_checkpoint.append(Job(evaluation, tuple(models)))
    later = [Job(e, models) for e in chosen if _order(e) for models in _portions(across[e.name], config)]
    return by_checkpoint + later


def _is_done(workdir: epath.Path, run: str, step: int, evaluation: Evaluation, steps: list[int]) -> bool:
    """Return whether a valid result exists; checkpoints that were imported later make some results outdated."""
    result = results.read(workdir, run, step, evaluation)
    if result is None:
        return False
    if evaluation.kind == "saturation":
        return result.get("checkpoints") == steps
    return evaluation.kind != "cka" or result.get("reference") == steps[-1]


def _can_be_done(
    workdir: epath.Path, run: str, evaluation: Evaluation, steps: list[int], end: int, listed: list[Job]
) -> bool:
    """Return whether CKA has the run's last checkpoint, and saturation all losses, stored already or in `listed`."""
    if evaluation.kind == "cka":
        return steps[-1] == end
    if evaluation.kind != "saturation":
        return True
    to_come = {model for job in listed if job.evaluation.kind == "lm_loss" for model in job.models}
    losses = evaluation._replace(kind="lm_loss", name="lm_loss", settings=losses_behind(evaluation))
    return all((run, step) in to_come or results.read(workdir, run, step, losses) is not None for step in steps)


def _order(evaluation: Evaluation) -> int:
    """Return the position of an evaluation's phase: 0 per checkpoint, 1 fine-tuning, 2 what reads its results."""
    return {"finetune": 1, "finetune_best": 2}.get(evaluation.kind, 0)


def _portions(models: list[Model], config: EvalConfig) -> Iterator[tuple[Model, ...]]:
    tuning = config.finetune
    size = max(1, tuning.most_members // (len(tuning.learning_rates) * len(tuning.seeds)))
    return (tuple(models[i : i + size]) for i in range(0, len(models), size))


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

    `go_on` is called after each job; False ends the evaluation. `stop` is called after each step of a fine-tuning; True
    ends it, and its work is lost. The caller must hold the cohort's lock. Returns whether all jobs are done. Raises
    CheckpointError, and DataError for missing text or items.
    """
    for member in cohort.runs:
        results.clean(workdir, member.id)
    # Jobs for the same models share a stack: it is read once, and one shape is one compiled program.
    groups: dict[tuple[Any, ...], list[Job]] = collections.defaultdict(list)
    for job in jobs(workdir, cohort, config, choice):
        groups[job.models, _order(job.evaluation)].append(job)
    eval_data = EvalData(workdir, cohort, index, config, stop)
    for (models, _), of_models in sorted(groups.items(), key=lambda group: group[0][1]):
        stack = ModelBatch(eval_data, models)
        for kind, of_kind in itertools.groupby(of_models, key=lambda job: job.evaluation.kind):
            chosen = [job.evaluation for job in of_kind]
            start = time.monotonic()
            try:
                for evaluation, measured in zip(chosen, KINDS[kind](stack, chosen), strict=True):
                    seconds, start = time.monotonic() - start, time.monotonic()
                    if any(results.path_of(workdir, run, step, evaluation.name).exists() for run, step in models):
                        say(f"{evaluation.name}: stored results are outdated and are replaced")
                    for (run, step), result in zip(stack.models, measured, strict=True):
                        results.write(workdir, run, step, evaluation, cohort.shape.data_fingerprint, result, seconds)
                    if not go_on(Job(evaluation, models)):
                        return False
            except StoppedError:
                return False
    return True


def read_results(workdir: epath.Path, run: str, step: int, config: EvalConfig) -> dict[str, dict[str, Any]]:
    """Return the stored results of a run at a step, by evaluation name.

    Results of the configuration's evaluations are left out if their settings differ from it. Results of evaluations
    that it doesn't name, such as those of an earlier configuration, are included.
    """
    configured = {e.name: e for e in evaluations(config)}
    stored = results.read_all(workdir, run, step)
    return {
        name: r for name, r in stored.items() if name not in configured or r["settings"] == configured[name].settings
    }


def outdated(workdir: epath.Path, runs: Sequence[str], config: EvalConfig) -> list[str]:
    """Return the names of evaluations with stored results whose settings differ from the configuration."""
    names = set()
    for run in runs:
        for step in results.steps(workdir, run):
            names |= results.read_all(workdir, run, step).keys() - read_results(workdir, run, step, config).keys()
    return sorted(names)
