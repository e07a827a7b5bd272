"""Import histories from the hub, one checkpoint at a time, so that the disk need only hold one: `olmo-jax import hub:`.

A checkpoint is fetched, checked against the hashes that the hub lists, measured, evaluated on request, and dropped.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from eval import results
from eval.eval_data import StoppedError
from eval.evaluate import Choice
from eval.suite import evaluations
from olmo_jax.config import ConfigError, ModelConfig
from olmo_jax.console import say
from olmo_jax.data.shards import TokenIndex
from olmo_jax.errors import WeightsError
from olmo_jax.hf import hub
from olmo_jax.hf.hub import Repository
from olmo_jax.hf.settings import TOKENIZER, read_config
from olmo_jax.storage.lock import exclusive_lock
from sweeps.histories.audit import OK, TRUNCATED, audit
from sweeps.histories.choice import Revisions
from sweeps.histories.history import INDEX, Checkpoint, History, open_history
from sweeps.histories.small_files import SmallFiles, listed
from sweeps.models.import_run import import_revisions
from sweeps.models.revisions import Revision
from sweeps.planning.plan import Plan
from sweeps.running import stages

_FETCHED = "fetched"
_OF_SEED_0 = 1_000_000
_MEGABIT = 1e6 / 8
_SHOWN_RATE = 100  # megabits per second


class Training(NamedTuple):
    """One training run of a model: its checkpoints, the history that has them, and its seed if there are replicates.

    Attributes:
      seed: as its publisher calls it; "" for a single training. number: from 1; 0 for a single training.
    """

    history: History
    checkpoints: tuple[Checkpoint, ...]
    name: str
    seed: str = ""
    number: int = 0


def trainings(sources: Sequence[str], which: Revisions, name: str | None = None) -> list[Training]:
    """Return the trainings in repositories; several are replicates that differ in their seeds.

    Args:
      sources: hub:OWNER/NAME of each. name: of the model; by default the repository's, without its seed.

    Raises:
      HubError, WeightsError, ConfigError: those of `open_history`; several stages of training, each of which counts its
        steps from 0; several repositories whose names don't differ in a seed.
    """
    histories = [open_history(source, which) for source in sources]
    found = []
    for history in histories:
        stages_of = sorted({checkpoint.said.stage or "" for checkpoint in history.checkpoints})
        if len(stages_of) > 1:
            raise ConfigError(
                f"{history.source}: has several stages of training ({', '.join(filter(None, stages_of))}), and each "
                f"counts its steps from 0; choose one, such as --revisions='{stages_of[-1]}-*'"
            )
        for checkpoints in history.trainings():
            for first, second in zip(checkpoints, checkpoints[1:], strict=False):
                if first.step == second.step:
                    raise ConfigError(
                        f"{history.source}: {first.name} and {second.name} are of one step; leave one out with "
                        "--revisions"
                    )
            seed = checkpoints[0].said.seed or ""
            repository = history.source.rsplit("/", 1)[-1]
            if len(sources) > 1 and not seed:
                match = re.fullmatch(r"(.+?)[-_]?seed[-_]?(\w+)", repository)
                if not match:
                    raise ConfigError(
                        f"{history.source}: several repositories are imported as replicates, which have their seeds in "
                        "their names, such as pythia-14m-seed1; import others one by one"
                    )
                repository, seed = match.groups()
            found.append(Training(history, checkpoints, name or repository, seed))
    if len(found) == 1 and len(sources) == 1:
        return [found[0]._replace(seed="")]
    if len({training.name for training in found}) > 1:
        names = ", ".join(sorted({training.name for training in found}))
        raise ConfigError(f"--name: these are models of different names ({names}); import each with a separate command")
    _check_once([training.seed for training in found])
    numbers = _numbers(
        {seed for history in histories for seed in history.seeds} | {training.seed for training in found}
    )
    return [training._replace(number=numbers[training.seed]) for training in found]


def _check_once(seeds: Sequence[str]) -> None:
    if len(set(seeds)) < len(seeds):
        twice = max(seeds, key=seeds.count)
        raise ConfigError(f"import: the seed {twice} is given twice; name each repository once")


def _numbers(seeds: Collection[str]) -> dict[str, int]:
    """Return a number from 1 for each seed: its own if all are such numbers, or else its place among all.

    Seed 0 gets a large one, since 0 is that of runs whose seed isn't known.
    """
    if all(seed.isdecimal() for seed in seeds):
        return {seed: int(seed) or _OF_SEED_0 for seed in seeds}
    return {seed: i + 1 for i, seed in enumerate(sorted(seeds, key=lambda seed: (seed != "default", seed)))}


def costs(found: Sequence[Training]) -> list[str]:
    """Return lines on what an import would fetch: each revision's bytes, all bytes, and the time that they take."""
    lines, total, largest = [], 0, 0
    for training in found:
        for checkpoint in training.checkpoints:
            size = sum(max(file.size, 0) for file in (*checkpoint.safetensors, *listed(checkpoint)))
            total, largest = total + size, max(largest, size)
            pickled = "" if checkpoint.safetensors else "  only pickles, which aren't read"
            lines.append(f"{training.history.source}  {checkpoint.name}  {_size(size)}{pickled}")
    seconds = total / (_SHOWN_RATE * _MEGABIT)
    took = f"{seconds / 60:,.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    fetched = f"{len(lines)} revisions, {_size(total)} to fetch, {took} at {_SHOWN_RATE} Mbit/s"
    lines.append(f"{fetched}; the largest has {_size(largest)}")
    return lines


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def import_histories(
    workdir: epath.Path,
    found: Sequence[Training],
    config: ConfigDict,
    keep_evaluation: bool = False,
    keep: bool = False,
    evaluate: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Import trainings as runs, replicates of one configuration if there are several, and return their ids.

    Each history is audited first, and what the audit says of a step is in the table's column `verdict`.

    Args:
      workdir, config, keep_evaluation: see import_revisions.
      keep: keep the checkpoints of all revisions, instead of the last one's, so that they can be evaluated later.
      evaluate: carry out the evaluations of each checkpoint before it is dropped; not with `keep`.
      stop: returns whether to stop after this checkpoint.

    Raises:
      HubError, WeightsError, ConfigError, DataError: those of the hub and of `import_revisions`; pickled weights; too
        little space on the disk; replicates whose configurations differ.
      StoppedError: `stop` returned True.
    """
    for training in found:
        for checkpoint in training.checkpoints:
            if not checkpoint.safetensors:
                _refuse(training.history.source, checkpoint)
    _check_disk(workdir, found, keep)
    verdicts = [_verdicts(training) for training in found]
    place = Path(workdir) / _FETCHED
    place.mkdir(parents=True, exist_ok=True)
    ids = []
    with exclusive_lock(Path(workdir) / ".import.lock", say):
        revisions = [_revisions(training, place, of) for training, of in zip(found, verdicts, strict=True)]
        _check_one_model(found, revisions)
        for training, of_training in zip(found, revisions, strict=True):
            source = training.history.source + (f" seed {training.seed}" if training.seed else "")
            each = _Each(workdir, keep, evaluate and not keep, stop)
            ids.append(
                import_revisions(
                    workdir, source, of_training, config, training.name, keep_evaluation, training.number, each
                )
            )
        shutil.rmtree(place)
    return ids


def _verdicts(training: Training) -> dict[str, str]:
    """Return what the audit says of each checkpoint; says what is wrong, and raises WeightsError for a damaged one."""
    findings = audit(dataclasses.replace(training.history, checkpoints=training.checkpoints)).findings
    for finding in findings:
        at = f"{training.history.source} at {finding.revision}"
        if finding.verdict == TRUNCATED:
            raise WeightsError(f"{at}: {finding.detail}; it is damaged at its source, so leave it out with --revisions")
        if finding.verdict != OK:
            say(f"{at} is {finding.verdict}: {finding.detail}")
    return {finding.revision: finding.verdict for finding in findings}


def _revisions(training: Training, place: Path, verdicts: dict[str, str]) -> list[Revision]:
    """Return what import_revisions takes, with the configurations fetched into `place`."""
    source = f"{training.history.source.removeprefix(hub.PREFIX)} {training.seed}".strip()
    return [
        Revision(
            checkpoint.step,
            checkpoint.said.tokens,
            checkpoint.said.stage,
            checkpoint.said.seed,
            epath.Path(settings),
            _fetching(training.history.repository, checkpoint, settings),
            verdicts[checkpoint.name],
            checkpoint.name,
        )
        for checkpoint, settings in _fetch_settings(training, place / urllib.parse.quote(source, safe=""))
    ]


def _refuse(source: str, checkpoint: Checkpoint) -> None:
    if checkpoint.pickles:
        raise WeightsError(
            f"{source} at {checkpoint.name}: has only {checkpoint.pickles[0].path}, a pickle, which can run any code "
            "when it is loaded, so it isn't read; leave the revision out, or convert it to .safetensors if you trust it"
        )
    raise WeightsError(f"{source} at {checkpoint.name}: has no .safetensors file; leave the revision out")


def _check_disk(workdir: epath.Path, found: Sequence[Training], keep: bool) -> None:
    """Raise ConfigError if the checkpoints don't fit on the disk: the largest as fetched, and those that are kept.

    They are stored in float32, of which a file may have half the bytes.
    """
    existing = next(p for p in (Path(workdir), *Path(workdir).parents) if p.exists())
    free = shutil.disk_usage(existing).free
    sizes = [[checkpoint.weights_bytes for checkpoint in training.checkpoints] for training in found]
    kept = sum(sum(of) if keep else max(of) for of in sizes)
    needed = max(map(max, sizes)) + 2 * kept
    if needed > free:
        raise ConfigError(
            f"--workdir={workdir}: has {free / 1e9:,.1f} GB left, and the import needs up to {needed / 1e9:,.1f} GB; "
            "free some, choose another disk, or fewer --revisions"
        )


def _fetch_settings(training: Training, folder: Path) -> Iterator[tuple[Checkpoint, Path]]:
    """Yield each checkpoint with a folder of its configuration; the first that has a tokenizer has it there."""
    files = SmallFiles(training.history.repository, training.checkpoints, folder / "shared")
    has_tokenizer = False
    for checkpoint in training.checkpoints:
        if checkpoint.folder:
            yield checkpoint, checkpoint.folder
            continue
        place = folder / urllib.parse.quote(checkpoint.name, safe="")
        files.copy_to(checkpoint, place, but=(TOKENIZER,) if has_tokenizer else ())
        has_tokenizer = has_tokenizer or checkpoint.file(TOKENIZER) is not None
        yield checkpoint, place


def _fetching(
    repository: Repository | None, checkpoint: Checkpoint, folder: Path
) -> Callable[[], contextlib.AbstractContextManager[epath.Path]]:
    """Return what Revision.fetch needs: the weights are in the folder only while it is entered."""

    @contextlib.contextmanager
    def fetch() -> Iterator[epath.Path]:
        if repository is None:  # offline, from the cache
            yield epath.Path(folder)
            return
        files = [*checkpoint.safetensors, *filter(None, [checkpoint.file(INDEX)])]
        for file in files:
            if file.size < 0:
                raise WeightsError(f"{hub.PREFIX}{repository.name} at {checkpoint.name}: lacks {file.path}")
            repository.fetch(checkpoint.commit, file, folder)
        yield epath.Path(folder)
        for file in files:
            os.unlink(folder / file.path)

    return fetch


def _check_one_model(found: Sequence[Training], revisions: Sequence[Sequence[Revision]]) -> None:
    """Raise ConfigError if the configurations of several replicates differ."""
    # The first revision of each has the tokenizer.
    configs = [read_config(of_training[0].folder)[1] for of_training in revisions]
    for training, config in zip(found, configs, strict=True):
        for field in dataclasses.fields(ModelConfig):
            ours, theirs = getattr(config, field.name), getattr(configs[0], field.name)
            if ours != theirs:
                raise ConfigError(
                    f"{training.history.source}: has {field.name} = {ours}, and {found[0].history.source} has "
                    f"{theirs}, so they aren't replicates of one model; import them with separate commands"
                )


@dataclasses.dataclass(frozen=True)
class _Each:
    """Evaluates the checkpoints that there are, on request, and ends the import on a signal."""

    workdir: epath.Path
    keeps: bool
    evaluates: bool
    stop: Callable[[], bool]

    def is_done(self, plan: Plan, step: int) -> bool:
        """Return whether a step has the results of the evaluations that run at it."""
        if not self.evaluates:
            return True
        (run,) = plan.stacks[0].runs
        return all(
            results.read(self.workdir, run.id, step, evaluation) is not None
            for evaluation in evaluations(plan.evaluation)
            if evaluation.everywhere
        )

    def carry_out(self, plan: Plan, index: TokenIndex) -> None:
        (stack,) = plan.stacks
        if self.evaluates:
            choice = Choice(runs=stack.runs[0].id)
            if not stages.evaluate_all(self.workdir, plan, {stack.shape.data_name: index}, self.stop, choice):
                raise StoppedError
        if self.stop():
            raise StoppedError
