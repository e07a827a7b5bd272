"""Corpora as TFDS data sets, stored as array_record and read at random; TensorFlow is not needed.

Every corpus has one split, "train", of examples `{text, domain, id}`; which of them training sees is decided by
`prepare`. A corpus that lies on disk already needs `text` alone.
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
        """Does nothing: there is no data set of ours to ask Google's servers for, and the asking leaves a folder."""


class _TextBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for checksums of downloads beside the code, by way of importlib_resources, which it doesn't depend on.
    code_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", "domain", "id")})
        return _Info(builder=self, features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}


class _OwnBuilder(_TextBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Documents of `examples` of a corpus in registry.OWN."""

    corpus: str

    def __init__(self, *, max_megabytes: float = DataConfig.max_megabytes, **kwargs: Any):
        self._max_megabytes = max_megabytes
        super().__init__(**kwargs)

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for example in registry.OWN[self.corpus].examples(self._max_megabytes):
            yield example.id, example._asdict()


class PythonPackages(_OwnBuilder):
    VERSION = tfds.core.Version(python_packages.VERSION)
    corpus = "python_packages"


class DebianProse(_OwnBuilder):
    VERSION = tfds.core.Version(debian_prose.VERSION)
    corpus = "debian_prose"


class OlmoTasks(_OwnBuilder):
    VERSION = tfds.core.Version(olmo_tasks.VERSION)
    corpus = "olmo_tasks"


_OWN_BUILDERS = {builder.corpus: builder for builder in (PythonPackages, DebianProse, OlmoTasks)}


class TextFiles(_TextBuilder):
    """Documents of `text_files.examples`, file after file, for programs that read TFDS; `prepare` reads the files."""

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
        self.notes: list[str] = []  # on what was passed over
        self._files = tuple(files)
        self._reading = (text_field, domain_field, separator, block_characters, self.notes.append)
        super().__init__(**kwargs)

    def _generate_examples(self) -> Iterator[tuple[str, dict]]:
        for number, source in enumerate(text_files.find(self._files)):
            for example in text_files.examples(source, *self._reading):
                # Two folders may have a file of one name; the number keeps their keys apart, wherever they lie.
                yield f"{number}/{example.id}", example._asdict()


class Corpus:
    """A corpus on disk, iterated as often as needed in one order (TFDS's: by a hash of the examples' keys)."""

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
        """All of it; there is nothing to note."""
        del note
        return stored(self)

    def rough_bytes(self) -> float:
        """About how much text there is; 0 where TFDS didn't record it."""
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
    """Several corpora as one: the documents of each in turn."""

    def __init__(self, corpora: Sequence[Corpus]):
        self.name = "+".join(corpus.name for corpus in corpora)
        self._corpora = corpora

    def __len__(self) -> int:
        return sum(map(len, self._corpora))

    def __iter__(self) -> Iterator[Document]:
        return itertools.chain.from_iterable(self._corpora)

    def portions(self, note: Callable[[str], None] = lambda line: None) -> Iterator[Portion]:
        """All of it; there is nothing to note."""
        del note
        return stored(self)

    def rough_bytes(self) -> float:
        """About how much text there is; 0 where TFDS didn't record it."""
        return sum(corpus.rough_bytes() for corpus in self._corpora)


def build(data: DataConfig, directory: Path) -> Corpus | Joined:
    """The corpus of a configuration: written below `directory` if it is one of registry.OWN, else as in tfds_dir.

    Raises DataError for sources that can't be read or fetched, for names that can't be joined and for a data set that
    isn't there.
    """
    place: dict[str, Any] = {"data_dir": directory, "file_format": "array_record"}
    names = registry.parts(data.corpus)
    if names:
        builders = [_OWN_BUILDERS[name](max_megabytes=data.max_megabytes, **place) for name in names]
        corpora = [_written(builder) for builder in builders]
        return corpora[0] if len(corpora) == 1 else Joined(corpora)
    return Corpus(_builder_on_disk(data), data.text_field, data.domain_field)


def _written(builder: tfds.core.DatasetBuilder) -> Corpus:
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it announces downloads, and there are none
        builder.download_and_prepare(file_format="array_record")
    return Corpus(builder, "text", "domain")


def sources_on_disk(data: DataConfig) -> dict[str, str]:
    """What identifies a data set that lies in tfds_dir: its name, version, and the sizes TFDS recorded."""
    info = _builder_on_disk(data).info
    found = {"tfds": f"{info.full_name}", "text_field": data.text_field, "domain_field": data.domain_field}
    for name, split in info.splits.items():
        found[f"split {name}"] = f"{split.num_examples} examples, {split.num_bytes} bytes, {split.shard_lengths}"
    return found


def _builder_on_disk(data: DataConfig) -> tfds.core.DatasetBuilder:
    """Never TFDS's own code for a name: that may download, or import TensorFlow."""
    place = local(data.tfds_dir)
    known = ", ".join(map(repr, BUILT_IN))
    if not data.tfds_dir or not place.is_dir():
        raise DataError(f"data.corpus = {data.corpus!r} is none of {known}, so it needs the TFDS folder it lies in: "
                        f"data.tfds_dir = {data.tfds_dir!r} is none")  # fmt: skip
    try:
        if (place / "dataset_info.json").is_file():
            return tfds.builder_from_directory(place)
        return tfds.core.read_only_builder.builder_from_files(data.corpus, data_dir=place)
    except tfds.core.DatasetNotFoundError:
        raise DataError(f"data.corpus = {data.corpus!r}: no such data set in {place}, and it is none of {known}; "
                        "correct the name or data.tfds_dir")  from None  # fmt: skip
    except Exception as e:  # noqa: BLE001  TFDS raises many kinds of error for a damaged file
        raise _unreadable(place, e) from None


def _unreadable(place: os.PathLike[str], error: Exception) -> DataError:
    remedy = "write it again as array_record, or correct data.tfds_dir"
    return DataError(f"{printable(place)}: can't be read as a TFDS data set ({brief(error)}); {remedy}")
