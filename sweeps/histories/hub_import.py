"""Import histories from the hub, one checkpoint at a time, so that the disk need only hold one: `olmo-jax import hub:`.

A checkpoint is fetched, checked against the hashes that the hub lists, measured, evaluated on request, and dropped.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from eval.eval_data import StoppedError
from eval.evaluate import Choice
from olmo_jax.config import ConfigError, ModelConfig
from olmo_jax.console import say
from olmo_jax.data.shards import TokenIndex
from olmo_jax.errors import WeightsError
from olmo_jax.hf import hub
from olmo_jax.hf.hub import File, Repository
from olmo_jax.hf.settings import TOKENIZER, read_config
from sweeps.histories.audit import OK, audit
from sweeps.histories.choice import Revisions
from sweeps.histories.history import INDEX, Checkpoint, History, open_history
from sweeps.models.import_run import Each, import_revisions
from sweeps.models.revisions import Revision
from sweeps.planning.plan import Plan
from sweeps.running import stages

# Of the files beside the weights: what says how the model and its tokenizer are built.
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_FETCHED = "fetched"
_MEGABIT = 1e6 / 8
_SHOWN_RATE = 100  # megabits per second


class Training(NamedTuple):
    """One training of a model: its checkpoints, the history that has them, and its seed, if there are replicates.

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
    numbers = _numbers([training.seed for training in found])
    return [training._replace(number=numbers[training.seed]) for training in found]


def _numbers(seeds: Sequence[str]) -> dict[str, int]:
    """Return a number from 1 for each seed: its own if all are such numbers, or else its place among all."""
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{hub.PREFIX}: the seed {max(seeds, key=seeds.count)} is there twice; name each one once")
    if all(seed.isdecimal() and int(seed) > 0 for seed in seeds):
        return {seed: int(seed) for seed in seeds}
    return {seed: i + 1 for i, seed in enumerate(sorted(seeds, key=lambda seed: (seed != "default", seed)))}


def costs(found: Sequence[Training]) -> list[str]:
    """Return lines on what an import would fetch: each revision's bytes, all bytes, and the time that they take."""
    lines, total, largest = [], 0, 0
    for training in found:
        for checkpoint in training.checkpoints:
            size = sum(max(file.size, 0) for file in (*checkpoint.safetensors, *_settings(checkpoint)))
            total, largest = total + size, max(largest, size)
            pickled = "" if checkpoint.safetensors else "  only pickles, which aren't read"
            lines.append(f"{training.history.source}  {checkpoint.name}  {size / 1e6:,.1f} MB{pickled}")
    seconds = total / (_SHOWN_RATE * _MEGABIT)
    lines.append(
        f"{len(lines)} revisions, {total / 1e9:,.2f} GB to fetch, {seconds / 60:,.0f} min at {_SHOWN_RATE} Mbit/s; the "
        f"largest takes {largest / 1e9:,.2f} GB of disk"
    )
    return lines


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
    _check_disk(workdir, found)
    ids = []
    place = Path(workdir) / _FETCHED
    first: tuple[str, ModelConfig] | None = None
    for training in found:
        findings = audit(dataclasses.replace(training.history, checkpoints=training.checkpoints)).findings
        verdicts = {finding.revision: finding for finding in findings}
        for finding in findings:
            if finding.verdict != OK:
                say(f"{training.history.source}: {finding.revision} is {finding.verdict}: {finding.detail}")
        folder = place / urllib.parse.quote(training.history.source.removeprefix(hub.PREFIX), safe="")
        revisions = [
            Revision(
                checkpoint.step,
                checkpoint.said.tokens,
                checkpoint.said.stage,
                checkpoint.said.seed,
                epath.Path(settings),
                _fetching(training.history.repository, checkpoint, settings),
                verdicts[checkpoint.name].verdict,
            )
            for checkpoint, settings in _fetch_settings(training, folder)
        ]
        first = _same_model(training, revisions, first)
        source = training.history.source + (f" seed {training.seed}" if training.seed else "")
        each = None if keep else _each(workdir, evaluate, stop)
        ids.append(
            import_revisions(workdir, source, revisions, config, training.name, keep_evaluation, training.number, each)
        )
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        place.rmdir()
    return ids


def _refuse(source: str, checkpoint: Checkpoint) -> None:
    if checkpoint.pickles:
        raise WeightsError(
            f"{source} at {checkpoint.name}: has only {checkpoint.pickles[0].path}, a pickle, which can run any code "
            "when it is loaded, so it isn't read; leave the revision out, or convert it to .safetensors if you trust it"
        )
    raise WeightsError(f"{source} at {checkpoint.name}: has no .safetensors file; leave the revision out")


def _check_disk(workdir: epath.Path, found: Sequence[Training]) -> None:
    """Raise ConfigError if the largest checkpoint doesn't fit on the disk, fetched and stored."""
    existing = next(p for p in (Path(workdir), *Path(workdir).parents) if p.exists())
    free = shutil.disk_usage(existing).free
    largest = max(checkpoint.weights_bytes for training in found for checkpoint in training.checkpoints)
    # Stored in float32, of which the file may have half the bytes.
    if 3 * largest > free:
        raise ConfigError(
            f"--workdir={workdir}: has {free / 1e9:,.1f} GB left, and a checkpoint needs {3 * largest / 1e9:,.1f} GB "
            "while it is imported; free some, or choose another disk"
        )


def _settings(checkpoint: Checkpoint) -> tuple[File, ...]:
    return tuple(file for file in checkpoint.files if file.path in (*_SETTINGS, TOKENIZER))


def _fetch_settings(training: Training, folder: Path) -> Iterator[tuple[Checkpoint, Path]]:
    """Yield each checkpoint with a folder of its configuration; the first that has a tokenizer has it there.

    Files that several checkpoints share are fetched once.
    """
    fetched: dict[str, Path] = {}
    has_tokenizer = False
    for checkpoint in training.checkpoints:
        if checkpoint.folder:
            yield checkpoint, checkpoint.folder
            continue
        repository = training.history.repository
        assert repository is not None
        place = folder / urllib.parse.quote(checkpoint.name, safe="")
        for file in _settings(checkpoint):
            if file.path == TOKENIZER and has_tokenizer:
                continue
            has_tokenizer = has_tokenizer or file.path == TOKENIZER
            if file.digest in fetched:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fetched[file.digest], place / file.path)
            else:
                fetched[file.digest] = repository.fetch(checkpoint.commit, file, place)
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


def _same_model(
    training: Training, revisions: Sequence[Revision], first: tuple[str, ModelConfig] | None
) -> tuple[str, ModelConfig]:
    """Return the first of several replicates, with its configuration; raises ConfigError if this one's differs."""
    _, config = read_config(revisions[0].folder)  # which has the tokenizer
    if first is None:
        return training.history.source, config
    source, expected = first
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(config, field.name), getattr(expected, field.name)
        if ours != theirs:
            raise ConfigError(
                f"{training.history.source}: has {field.name} = {ours}, and {source} has {theirs}, so they aren't "
                "replicates of one model; import them with separate commands"
            )
    return first


def _each(workdir: epath.Path, evaluate: bool, stop: Callable[[], bool]) -> Each:
    """Return what to do with each checkpoint before it is dropped."""

    def each(plan: Plan, index: TokenIndex, step: int) -> None:
        (stack,) = plan.stacks
        if evaluate:
            choice = Choice(runs=stack.runs[0].id)
            if not stages.evaluate_all(workdir, plan, {stack.shape.data_name: index}, stop, choice):
                raise StoppedError
        if stop():
            raise StoppedError

    return each
