"""The configuration and tokenizer beside the weights of a history, each distinct file fetched once."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from olmo_jax.errors import WeightsError
from olmo_jax.hf.hub import File, Repository
from olmo_jax.hf.settings import TOKENIZER
from sweeps.histories.history import Checkpoint

# Of the files beside the weights: what says how the model and its tokenizer are built.
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def listed(checkpoint: Checkpoint) -> tuple[File, ...]:
    """Return a checkpoint's files of this kind."""
    return tuple(file for file in checkpoint.files if file.path in (*SETTINGS, TOKENIZER))


@dataclasses.dataclass
class SmallFiles:
    """The small files of one history, below `place`.

    Attributes:
      repository: None if the history isn't on the hub; its files are then used where they lie.
    """

    repository: Repository | None
    checkpoints: Sequence[Checkpoint]
    place: Path
    _fetched: dict[str, Path] = dataclasses.field(default_factory=dict)

    def config_folder(self, checkpoint: Checkpoint) -> Path:
        """Return a folder with a checkpoint's config.json. Raises WeightsError without one, HubError."""
        file = checkpoint.file("config.json")
        if file is None:
            raise WeightsError("has no config.json")
        return self._get(checkpoint, file).parent

    def tokenizer(self) -> Path | None:
        """Return the tokenizer.json of the first checkpoint that has one, or None. Raises HubError."""
        for checkpoint in self.checkpoints:
            if file := checkpoint.file(TOKENIZER):
                return self._get(checkpoint, file)
        return None

    def copy_to(self, checkpoint: Checkpoint, folder: Path, but: Sequence[str] = ()) -> None:
        """Put a checkpoint's small files, except those named in `but`, into a folder. Raises HubError."""
        for file in listed(checkpoint):
            if file.path not in but:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._get(checkpoint, file), folder / file.path)

    def _get(self, checkpoint: Checkpoint, file: File) -> Path:
        if checkpoint.folder:
            return checkpoint.folder / file.path
        assert self.repository is not None
        if file.digest not in self._fetched:
            self._fetched[file.digest] = self.repository.fetch(checkpoint.commit, file, self.place / file.digest)
        return self._fetched[file.digest]
