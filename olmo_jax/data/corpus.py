"""Corpora as TFDS data sets, stored as array_record with random access; TensorFlow is not needed.

Every corpus has one split, "train", of examples `{text, domain, id}`; `prepare` divides them into training and
validation. In a data set that is already on disk, only the text is required.
"""

import contextlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from olmo_jax.config.data import DataConfig
from olmo_jax.data import DataError
from olmo_jax.data.sources import debian_prose, olmo_tasks, python_packages, registry, text_files
from olmo_jax.data.sources.registry import BUILT_IN
from olmo_jax.data.tokenizing.portions import Document, Portion, stored
from olmo_jax.errors import brief
from olmo_jax.storage.paths import local, printable


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Do nothing: Google's servers have none of our data sets, and asking them would leave a folder behind."""


class _TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for checksums beside the code with importlib_resources, which isn't one of its dependencies.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", "domain", "id")})
        return _Info(builder=self, features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}


class _RegisteredBuilder(_TextBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a corpus of registry.CORPORA from its `examples`."""

    corpus: str

    def __init__(self, *, max_megabytes: float = DataConfig.max_megabytes, **kwargs: Any):
        self._max_megabytes = max_megabytes
        super().__init__(**kwargs)

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for example in registry.CORPORA[self.corpus].examples(self._max_megabytes):
            yield example.id, example._asdict()


class PythonPackages(_RegisteredBuilder):
    VERSION = tfds.core.Version(python_packages.VERSION)
    corpus = "python_packages"


class DebianProse(_RegisteredBuilder):
    VERSION = tfds.core.Version(debian_prose.VERSION)
    corpus = "debian_prose"


class OlmoTasks(_RegisteredBuilder):
    VERSION = tfds.core.Version(olmo_tasks.VERSION)
    corpus = "olmo_tasks"


_BUILDERS = {builder.corpus: builder for builder in (PythonPackages, DebianProse, OlmoTasks)}


class TextFiles(_TextBuilder):
    """Builds a data set from text files, for programs that read TFDS; `prepare` reads the files directly."""

    VERSION = tfds.core.Version(text_files.VERSION)

    def __init__(
        self,
        *,
        files: Sequence[str] = (),
        text_field: str = "text",
        domain_field: str = "",
        separator: str = "",
        block_characters: int = 0,
        **kwargs: Any,
    ):
        self.notes: list[str] = []  # one line per file with skipped rows
        self._files = tuple(files)
        self._reading = (text_field, domain_field, separator, block_characters, self.notes.append)
        super().__init__(**kwargs)

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for number, source in enumerate(text_files.find(self._files)):
            for example in text_files.examples(source, *self._reading):
                # Files in two folders may have the same name; the number keeps their keys distinct.
                yield f"{number}/{example.id}", example._asdict()


class Corpus:
    """A data set on disk. It can be iterated repeatedly, in TFDS's order (by a hash of the examples' keys)."""

    def __init__(self, builder: tfds.core.DatasetBuilder, text_field: str, domain_field: str):
        self.name = builder.name
        self._builder, self._text_field, self._domain_field = builder, text_field, domain_field
        if "train" not in builder.info.splits:
            raise DataError(f"{builder.data_path}: has no split 'train', only {', '.join(builder.info.splits)}")
        for field in filter(None, (text_field, domain_field)):
            if field not in (builder.info.features or {}):
                known = ", ".join(sorted(builder.info.features or {}))
                raise DataError(f"{builder.data_path}: examples have no field {field!r}, only {known}; set "
                                "data.text_field or data.domain_field")  # fmt: skip

    def __len__(self) -> int:
        return self._builder.info.splits["train"].num_examples

    def portions(self, note: Callable[[str], None] = lambda line: None) -> Iterator[Portion]:
        """Yield all portions; `note` isn't called, as no rows are skipped."""
        del note
        return stored(self)

    def rough_bytes(self) -> float:
        """Return the approximate bytes of text; 0 if TFDS didn't record them."""
        return float(self._builder.info.splits["train"].num_bytes or 0)

    def __iter__(self) -> Iterator[Document]:
        for example in self._examples():
            domain = self._decoded(example, self._domain_field) if self._domain_field else text_files.DEFAULT_DOMAIN
            yield Document(domain, self._decoded(example, self._text_field))

    def _examples(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._builder.as_data_source("train")
        except Exception as e:  # noqa: BLE001  array_record raises many kinds of error for a damaged file
            raise _unreadable(self._builder.data_path, e) from None

    def _decoded(self, example: dict[str, Any], field: str) -> str:
        try:
            return example[field].decode("utf-8")
        except (AttributeError, UnicodeDecodeError):
            raise DataError(
                f"{self._builder.data_path}: field {field!r} isn't UTF-8 text in every example; set data.text_field or "
                "data.domain_field to one that is, or write the data set again if it is damaged"
            ) from None


class Joined:
    """Several corpora as one: the documents of the first, then those of the next."""

    def __init__(self, corpora: Sequence[Corpus]):
        self.name = "+".join(corpus.name for corpus in corpora)
        self._corpora = corpora

    def __len__(self) -> int:
        return sum(map(len, self._corpora))

    def __iter__(self) -> Iterator[Document]:
        return itertools.chain.from_iterable(self._corpora)

    def portions(self, note: Callable[[str], None] = lambda line: None) -> Iterator[Portion]:
        """Yield all portions; `note` isn't called, as no rows are skipped."""
        del note
        return stored(self)

    def rough_bytes(self) -> float:
        """Return the approximate bytes of text; 0 if TFDS didn't record them."""
        return sum(corpus.rough_bytes() for corpus in self._corpora)


def build(data: DataConfig, directory: Path) -> Corpus | Joined:
    """Return the corpus of a configuration: one of registry.CORPORA written below `directory`, else from tfds_dir.

    Raises DataError for sources that can't be read or fetched, names that can't be joined and a missing data set.
    """
    storage: dict[str, Any] = {"data_dir": directory, "file_format": "array_record"}
    names = registry.parts(data.corpus)
    if names:
        builders = [_BUILDERS[name](max_megabytes=data.max_megabytes, **storage) for name in names]
        corpora = [_written(builder) for builder in builders]
        return corpora[0] if len(corpora) == 1 else Joined(corpora)
    return Corpus(_builder_on_disk(data), data.text_field, data.domain_field)


def _written(builder: tfds.core.DatasetBuilder) -> Corpus:
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download, which doesn't take place
        builder.download_and_prepare(file_format="array_record")
    return Corpus(builder, "text", "domain")


def sources_on_disk(data: DataConfig) -> dict[str, str]:
    """Return what identifies a data set in tfds_dir: its name, version, and the sizes that TFDS recorded."""
    info = _builder_on_disk(data).info
    described = {"tfds": f"{info.full_name}", "text_field": data.text_field, "domain_field": data.domain_field}
    for name, split in info.splits.items():
        described[f"split {name}"] = f"{split.num_examples} examples, {split.num_bytes} bytes, {split.shard_lengths}"
    return described


def _builder_on_disk(data: DataConfig) -> tfds.core.DatasetBuilder:
    """Return a read-only builder, never TFDS's code for a data set, which may download or import TensorFlow."""
    folder = local(data.tfds_dir)
    known = ", ".join(map(repr, BUILT_IN))
    if not data.tfds_dir or not folder.is_dir():
        raise DataError(f"data.corpus = {data.corpus!r} is none of {known}, so it must be a TFDS data set, but "
                        f"data.tfds_dir = {data.tfds_dir!r} isn't a folder; set data.tfds_dir to the data set's "
                        "folder")  # fmt: skip
    try:
        if (folder / "dataset_info.json").is_file():
            return tfds.builder_from_directory(folder)
        return tfds.core.read_only_builder.builder_from_files(data.corpus, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise DataError(f"data.corpus = {data.corpus!r}: no such data set in {folder}, and it is none of {known}; "
                        "correct the name or data.tfds_dir")  from None  # fmt: skip
    except Exception as e:  # noqa: BLE001  TFDS raises many kinds of error for a damaged file
        raise _unreadable(folder, e) from None


def _unreadable(path: os.PathLike[str], error: Exception) -> DataError:
    remedy = "write it again as array_record, or correct data.tfds_dir"
    return DataError(f"{printable(path)}: can't be read as a TFDS data set ({brief(error)}); {remedy}")
