"""The checkpoints of a model, in order: revisions of a repository on the hub, or the folders in a folder."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from olmo_jax.console import progress
from olmo_jax.errors import WeightsError, brief
from olmo_jax.hf import hub
from olmo_jax.hf.hub import File, Repository
from olmo_jax.hf.revisions import Name
from olmo_jax.storage.paths import local
from olmo_jax.storage.safetensors import Header, HeaderError, Read, Stored, read_header
from olmo_jax.weights import Tensor
from sweeps.histories.choice import EVERY, Revisions

_ONLY = "main"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLE = r"(pytorch_model|consolidated|model).*\.(bin|pt|pth|ckpt)"
_LONGEST_INDEX = 64 << 20


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a history.

    Attributes:
      name: of the revision or folder. said: what the name says. files: those at its top level.
      read: returns bytes [start, stop) of the file of that path. folder: where the files lie; None on the hub.
      commit: on the hub, what `name` points at.
    """

    name: str
    said: Name
    files: tuple[File, ...]
    read: Callable[[str, int, int], bytes]
    folder: Path | None = None
    commit: str = ""

    @property
    def step(self) -> int:
        assert self.said.place is not None
        return self.said.place

    def file(self, name: str) -> File | None:
        """Return the file of a name, or None."""
        return next((file for file in self.files if file.path == name), None)

    @property
    def safetensors(self) -> tuple[File, ...]:
        """Return the files of weights that transformers would read; empty without .safetensors.

        Those that an index names are listed even if the checkpoint lacks them, with size -1.
        """
        if single := self.file(SINGLE):
            return (single,)
        if self.file(INDEX):
            with contextlib.suppress(HeaderError):
                names = sorted(set(self.weight_map.values()))
                return tuple(self.file(name) or File(name, -1, "") for name in names)
        return tuple(file for file in self.files if file.path.endswith(".safetensors"))

    @property
    def pickles(self) -> tuple[File, ...]:
        """Return the files of weights that aren't opened, as they can run any code."""
        return tuple(file for file in self.files if re.fullmatch(_PICKLE, file.path))

    @property
    def weights_bytes(self) -> int:
        return sum(max(file.size, 0) for file in self.safetensors or self.pickles)

    @functools.cached_property
    def weight_map(self) -> dict[str, str]:
        """Return the file of each tensor, by name; {} without an index. Raises HeaderError for an unreadable one."""
        if self.file(SINGLE) or not self.file(INDEX):
            return {}
        try:
            weight_map = json.loads(self.read(INDEX, 0, _LONGEST_INDEX))["weight_map"]
            return {str(name): str(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HeaderError("isn't an index of .safetensors files") from error

    def reader(self, file: File) -> Read:
        return functools.partial(self.read, file.path)

    def header(self, file: File, guess: int = 0) -> Header:
        """Return a file's header. Raises HeaderError."""
        return read_header(self.reader(file), guess)

    def tensors(self) -> dict[str, tuple[File, Stored]]:
        """Return each tensor, by name, with the file that holds it, from headers alone. Raises HeaderError."""
        return {name: (file, stored) for file in self.safetensors for name, stored in self.header(file).tensors.items()}


@dataclasses.dataclass(frozen=True)
class History:
    """Checkpoints of one or several trainings of a model, sorted by stage, seed and step.

    Attributes:
      source: hub:OWNER/NAME or a folder. unnamed: revisions whose names give no step, such as main.
      seeds: of all revisions, chosen or not, sorted.
      repository: on the hub.
    """

    source: str
    checkpoints: tuple[Checkpoint, ...]
    unnamed: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    repository: Repository | None = None

    def trainings(self) -> list[tuple[Checkpoint, ...]]:
        """Return the checkpoints of each training, which has one seed and one stage."""
        by_training: dict[tuple[str, str], list[Checkpoint]] = {}
        for checkpoint in self.checkpoints:
            by_training.setdefault(_training(checkpoint.said), []).append(checkpoint)
        return [tuple(checkpoints) for checkpoints in by_training.values()]


def open_history(source: str, which: Revisions = EVERY) -> History:
    """Return the history at hub:OWNER/NAME or in a folder, of the chosen revisions.

    Raises:
      HubError, WeightsError: no such repository or folder, or no revision whose name gives a step.
      ConfigError: a chosen revision that it lacks.
    """
    if not source.startswith(hub.PREFIX):
        return _of_folders(source, _folders(local(source), which), which)
    repository = Repository.parse(source)
    if not hub.is_offline():
        return _remote(source, repository, which)
    folders = hub.cached(repository.name)
    if not folders:
        raise hub.HubError(
            f"{source}: HF_HUB_OFFLINE is set, and the cache has no revision of it; unset it to fetch it"
        )
    return _of_folders(source, folders, which)


def lazy_tensors(checkpoint: Checkpoint) -> list[Tensor]:
    """Return a checkpoint's tensors, each of which is read from its own bytes alone. Raises WeightsError."""
    if not checkpoint.safetensors:
        what = "has only pickles, which aren't read" if checkpoint.pickles else "has no weights"
        raise WeightsError(f"{checkpoint.name}: {what}")
    try:
        stored = checkpoint.tensors()
    except HeaderError as error:
        raise WeightsError(f"{checkpoint.name}: a file of weights {error}") from error
    return [
        Tensor(name, tensor.shape, tensor.dtype, functools.partial(_read_tensor, checkpoint, file, tensor))
        for name, (file, tensor) in stored.items()
    ]


def _read_tensor(checkpoint: Checkpoint, file: File, tensor: Stored) -> np.ndarray:
    try:
        return tensor.read(checkpoint.reader(file))
    except HeaderError as error:
        raise WeightsError(f"{checkpoint.name}: {file.path} {error}") from error


def _remote(source: str, repository: Repository, which: Revisions) -> History:
    commits = repository.revisions()
    names, unnamed = _in_order(source, commits, which)

    def checkpoint(name: str) -> Checkpoint:
        commit = commits[name]
        files = tuple(file for file in repository.files(commit) if "/" not in file.path)
        return Checkpoint(name, _said(which, name), files, functools.partial(repository.read, commit), None, commit)

    checkpoints = []
    with progress(f"list {source}", len(names)) as show:
        for found in hub.in_parallel(checkpoint, names):
            checkpoints.append(found)
            show(len(checkpoints), found.name)
    return History(source, tuple(checkpoints), unnamed, _seeds(commits, which), repository)


def _folders(folder: Path, which: Revisions) -> dict[str, Path]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise WeightsError(f"{folder}: {what}; give a folder of revisions, or {hub.PREFIX}OWNER/NAME")
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and (_has_step(which.parse(path.name)) or _holds_weights(path))
    }


def _of_folders(source: str, folders: dict[str, Path], which: Revisions) -> History:
    names, unnamed = _in_order(source, folders, which)
    checkpoints = []
    with progress(f"read {source}", len(names)) as show:
        for name in names:
            files = tuple(_file(path) for path in sorted(folders[name].iterdir()) if path.is_file())
            read = functools.partial(_read, folders[name])
            checkpoints.append(Checkpoint(name, _said(which, name), files, read, folders[name]))
            show(len(checkpoints), name)
    return History(source, tuple(checkpoints), unnamed, _seeds(folders, which))


def _in_order(source: str, found: Iterable[str], which: Revisions) -> tuple[list[str], tuple[str, ...]]:
    """Return the chosen revisions by stage, seed and step, and those whose names give no step."""
    found = sorted(found)
    unnamed = tuple(name for name in found if not _has_step(which.parse(name)))
    named = [name for name in found if name not in unnamed]
    if unnamed == (_ONLY,) and not named:  # of a model that was published without its history
        return which.choose([_ONLY]) if which.text not in ("", "*") else [_ONLY], ()
    if not named:
        has = f"has {', '.join(unnamed[:5])}" if unnamed else "has no revision"
        raise WeightsError(
            f"{source}: {has}, and no revision whose name gives a step, such as step3000; say how to read them, as in "
            "--revisions='v(?P<step>\\d+)'"
        )
    named.sort(key=lambda name: (*_training(_said(which, name)), _said(which, name).place))
    return which.choose(named), unnamed


def _has_step(said: Name | None) -> bool:
    return said is not None and said.place is not None


def _said(which: Revisions, name: str) -> Name:
    """Return what a revision's name says; a repository's only one counts as its first step."""
    said = which.parse(name)
    return said if said is not None and said.place is not None else Name(step=1)


def _seeds(names: Iterable[str], which: Revisions) -> tuple[str, ...]:
    found = {said.seed for name in names if (said := which.parse(name)) is not None and said.seed is not None}
    return tuple(sorted(found))


def _training(said: Name) -> tuple[str, str]:
    return said.stage or "", said.seed or ""


def _holds_weights(folder: Path) -> bool:
    return any(path.suffix == ".safetensors" or re.fullmatch(_PICKLE, path.name) for path in folder.iterdir())


def _file(path: Path) -> File:
    with path.open("rb") as content:
        return File(path.name, path.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest())


def _read(folder: Path, path: str, start: int, stop: int) -> bytes:
    try:
        with (folder / path).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
    except OSError as error:
        raise WeightsError(f"{folder / path}: {brief(error.strerror or str(error))}; check the file") from error
