"""The checkpoints that an import takes, in order of their steps: a single model, or a folder of revisions."""

import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from olmo_jax.config import ConfigError, require
from olmo_jax.console import say
from olmo_jax.hf import published
from olmo_jax.hf.revisions import parse as parse_revision
from olmo_jax.storage.gguf import SUFFIX
from olmo_jax.weights import WeightsError

# The file of a run that records where it came from: the folder or repository, and for each step the revision, a hash of
# its parameters, what the audit says, whether its checkpoint is to be dropped ("rolling"), and whether it was.
ORIGIN = "imported.json"


class Revision(NamedTuple):
    """A checkpoint to import: its step, and the tokens seen by then, stage and seed, if its name gives them.

    Attributes:
      folder: with its configuration, tokenizer and, unless `fetch` is given, its weights.
      fetch: yields a folder that has the weights too, for as long as it is entered.
      verdict: what the audit of its history says of it; "" without one.
      called: its name, if that isn't the folder's.
    """

    step: int
    tokens: int | None
    stage: str | None
    seed: str | None
    folder: epath.Path
    fetch: Callable[[], contextlib.AbstractContextManager[epath.Path]] | None = None
    verdict: str = ""
    called: str = ""

    @property
    def name(self) -> str:
        return self.called or self.folder.name

    def weights(self) -> contextlib.AbstractContextManager[epath.Path]:
        """Return a context with the folder of the weights."""
        return self.fetch() if self.fetch else contextlib.nullcontext(self.folder)


def revisions(path: epath.Path, step: int | None = None) -> list[Revision]:
    """Return the checkpoints at a path, sorted by step.

    They are the folder itself, or the folders in it whose names hf.revisions understands, such as step3000-tokens12B;
    other models in it are left out, and a line on stderr names them.

    Raises:
      WeightsError: no checkpoint, two with the same step, several stages of training, each of which counts from 0, or
        several seeds.
      ConfigError: a negative step, a step for a folder of revisions, or none for a folder whose name has a step that
        can't be parsed.
    """
    require(step is None or step >= 0, "--step", step, "needs 0 or more")
    if not path.is_dir() and not _is_model(path):
        what = "is a file; give the folder that holds it" if path.exists() else "no such folder"
        raise WeightsError(
            f"{path}: {what}; an import takes a folder with config.json and .safetensors files, a folder of such "
            f"folders, a .gguf file, or one of the names {', '.join(published.MODELS)}"
        )
    if _is_model(path):
        return [_single(path.absolute(), step)]
    if step is not None:
        raise ConfigError(f"--step={step}: {path} is a folder of revisions, whose names give their steps; leave it out")
    folders = sorted(folder for folder in path.iterdir() if _is_model(folder))
    found = [revision for folder in folders if (revision := _named_revision(folder)) is not None]
    if not found:
        raise WeightsError(
            f"{path}: is neither a model (config.json) nor a folder of revisions with names such as step3000-tokens12B"
        )
    if unnamed := [folder.name for folder in folders if _named_revision(folder) is None]:
        say(f"{path}: left out, as their names give no step: {', '.join(unnamed)}")
    for what in ("stage", "seed"):
        values = {getattr(revision, what) for revision in found}
        if len(values) > 1:
            names = ", ".join(sorted(map(str, values)))
            raise WeightsError(
                f"{path}: has revisions of several {what}s ({names}); import each from a separate folder"
            )
    found.sort(key=lambda revision: revision.step)
    for first, second in zip(found, found[1:], strict=False):
        if first.step == second.step:
            raise WeightsError(f"{path}: {first.folder.name} and {second.folder.name} have the same step; remove one")
    return found


def _is_model(folder: epath.Path) -> bool:
    if folder.suffix == SUFFIX and folder.is_file():
        return True
    return folder.is_dir() and any((folder / file).exists() for file in ("config.json", "config.yaml"))


def _named_revision(folder: epath.Path) -> Revision | None:
    """Return the revision that a folder's name describes; None if the name has no step."""
    name = parse_revision(folder.name)
    if name is None or name.place is None:
        return None
    return Revision(name.place, name.tokens, name.stage, name.seed, folder)


def _single(folder: epath.Path, step: int | None) -> Revision:
    revision, name = _named_revision(folder), parse_revision(folder.name)
    # A single folder called 7B is a model of that size, not one that has seen so many tokens.
    if revision is not None and name is not None and name.step is not None:
        return revision if step is None else revision._replace(step=step)
    if step is None and re.search(r"step\d", folder.name):
        raise ConfigError(f"{folder}: its name has a step in an unknown form; give the step with --step")
    return Revision(1 if step is None else step, None, None, None, folder)
