"""Token shards: the documents of a split and domain as one raw array in OLMo's layout, and the index that names them.

A `.npy` by name holds little-endian uint16 (or uint32 where the vocabulary needs it) and no header; each document is
followed by eos. Beside it lie the offsets at which documents begin, uint64, one more than there are documents, and the
bytes of each document's text, uint64.
"""

import dataclasses
import hashlib
import json
import os
import re
import reprlib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from olmo_jax.data import DataError

SPLITS = ("validation", "train")
INDEX_FILE = "index.json"
_FORMAT = 1
_BUFFERED = 64 * 2**20  # bytes of all shards together that wait to be written


@dataclasses.dataclass(frozen=True)
class Shard:
    """One (split, domain). `tokens` counts the eos of every document, `bytes` is of the text, in UTF-8.

    `sizes` is the file of the bytes of each document; None in data that were prepared before there was one.
    """

    split: str
    domain: str
    file: str
    offsets: str
    tokens: int
    documents: int
    bytes: int
    sizes: str | None = None


@dataclasses.dataclass(frozen=True)
class TokenIndex:
    """What lies in a folder of prepared data.

    Attributes:
      directory: where it was loaded from.
      dtype: "uint16" or "uint32". vocab_size: the tokenizer's. eos_id: ends every document.
      tokenizer_sha256: of tokenizer.json in the same folder.
      fingerprint: of corpus and tokenizer, see fingerprint.py.
      sources: what the fingerprint was made of, to say what changed.
      shards: in order of split and domain.
    """

    directory: Path
    dtype: str
    vocab_size: int
    eos_id: int
    tokenizer_sha256: str
    fingerprint: str
    sources: dict[str, dict[str, str]]
    shards: tuple[Shard, ...]

    @classmethod
    def load(cls, directory: Path) -> "TokenIndex":
        """Reads index.json and compares it with the files. Raises DataError for a missing, cut or foreign file."""
        path = directory / INDEX_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; run `olmo-jax prepare` first") from None
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}: isn't JSON ({e}); delete {directory} and prepare it again") from None
        try:
            if values.pop("format") != _FORMAT:
                raise DataError(
                    f"{path}: written by another version of this library; delete {directory}, prepare again"
                )
            shards = tuple(Shard(**shard) for shard in values.pop("shards"))
            index = cls(directory=directory, shards=shards, **values)
            for record in (index, *shards):
                _check_types(record)
        except (KeyError, TypeError, AttributeError) as e:
            raise DataError(f"{path}: isn't an index ({e}); delete {directory} and prepare it again") from None
        for shard in shards:
            _check_size(directory / shard.file, shard.tokens * np.dtype(index.dtype).itemsize)
            _check_size(directory / shard.offsets, (shard.documents + 1) * 8)
            if shard.sizes is not None:
                _check_size(directory / shard.sizes, shard.documents * 8)
        _check_exists(directory / "tokenizer.json")
        return index

    def save(self) -> None:
        values: dict[str, Any] = {"format": _FORMAT, **dataclasses.asdict(self)}
        del values["directory"]
        (self.directory / INDEX_FILE).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains, sorted."""
        return tuple(sorted({shard.domain for shard in self.shards}))

    def shard(self, split: str, domain: str) -> Shard:
        """Raises DataError for a domain that isn't there."""
        for shard in self.shards:
            if (shard.split, shard.domain) == (split, domain):
                return shard
        raise DataError(f"{self.directory}: no domain {domain!r} in {split}; there are {', '.join(self.domains)}")

    def tokens(self, split: str, domain: str) -> np.ndarray:
        """All tokens, eos included, [tokens]: a read-only memory map."""
        return map_numbers(*self.token_file(split, domain))

    def token_file(self, split: str, domain: str) -> tuple[Path, np.dtype]:
        """The path and the dtype of the tokens."""
        return self.directory / self.shard(split, domain).file, np.dtype(self.dtype).newbyteorder("<")

    def documents(self, split: str, domain: str) -> Iterator[np.ndarray]:
        """The tokens of each document in stored order, without its eos: slices of the memory map.

        Raises DataError for offsets and, document by document, for tokens that can't be what was written.
        """
        tokens = self.tokens(split, domain)
        path = self.directory / self.shard(split, domain).offsets
        offsets = map_numbers(path, np.dtype("<u8"))
        if offsets[0] != 0 or offsets[-1] != len(tokens) or not (offsets[:-1] < offsets[1:]).all():
            raise self._damaged(path)
        return self._slices(split, domain, tokens, offsets)

    def _slices(self, split: str, domain: str, tokens: np.ndarray, offsets: np.ndarray) -> Iterator[np.ndarray]:
        for begin, end in zip(offsets[:-1], offsets[1:], strict=True):
            document = tokens[int(begin) : int(end) - 1]
            if document.size and int(document.max()) >= self.vocab_size:
                raise self._damaged(self.token_file(split, domain)[0])
            yield document

    def _damaged(self, path: Path) -> DataError:
        return DataError(f"{path}: isn't what was written; delete {self.directory} and prepare it again")

    def text_bytes(self, split: str, domain: str) -> np.ndarray | None:
        """The bytes of each document's text in stored order, [documents], 0 where it has no text; None: not stored."""
        shard = self.shard(split, domain)
        if shard.sizes is None:
            return None
        path = self.directory / shard.sizes
        sizes = map_numbers(path, np.dtype("<u8"))
        if sizes.sum() != shard.bytes:
            raise DataError(f"{path}: isn't what was written; delete {self.directory} and prepare it again")
        return sizes


class ShardWriter:
    """Writes shards, every (split, domain) that `add` meets, below a directory; a context manager.

    Of files it has one open at a time, however many domains there are.
    """

    def __init__(self, directory: Path, vocab_size: int, eos_id: int):
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self._directory, self._vocab_size, self._eos_id = directory, vocab_size, eos_id
        self._begun: dict[tuple[str, str], _BegunShard] = {}
        self._buffered = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()

    def add(self, split: str, domain: str, tokens_L: np.ndarray, text_bytes: int) -> None:
        """Appends a document. Raises DataError for a token outside the vocabulary.

        `text_bytes` is the length of its text in UTF-8; 0 for a document that was made as tokens.
        """
        check_tokens(tokens_L, self._vocab_size, domain)
        with_eos = np.append(tokens_L, self._eos_id)
        self.extend(split, domain, with_eos, np.array([len(with_eos)]), np.array([text_bytes]))

    def extend(self, split: str, domain: str, tokens_T: np.ndarray, lengths_N: np.ndarray, sizes_N: np.ndarray) -> None:
        """Appends documents. Raises DataError for a token outside the vocabulary.

        Args:
          tokens_T: of all documents, one after another, each ended by eos.
          lengths_N: tokens of each, eos included. sizes_N: bytes of its text in UTF-8.
        """
        check_tokens(tokens_T, self._vocab_size, domain)
        for each in SPLITS:
            if (each, domain) not in self._begun:
                self._begun[each, domain] = self._begin(each, domain)
        shard = self._begun[split, domain]
        offsets_N = shard.tokens + np.cumsum(lengths_N, dtype=np.uint64)
        shard.tokens += len(tokens_T)
        shard.documents += len(lengths_N)
        shard.bytes += int(sizes_N.sum())
        self._buffered += shard.append(".npy", tokens_T.astype(np.dtype(self.dtype).newbyteorder("<")))
        self._buffered += shard.append(".offsets", offsets_N.astype("<u8"))
        self._buffered += shard.append(".bytes", sizes_N.astype("<u8"))
        if self._buffered > _BUFFERED:
            self._flush()

    def shards(self) -> tuple[Shard, ...]:
        """What was written so far, in order of split and domain."""
        return tuple(
            Shard(
                split, domain, f"{s.name}.npy", f"{s.name}.offsets", s.tokens, s.documents, s.bytes, f"{s.name}.bytes"
            )
            for (split, domain), s in sorted(self._begun.items())
        )

    def _begin(self, split: str, domain: str) -> "_BegunShard":
        # A domain may be any text; what its file name can't say, a hash does.
        plain = re.sub(r"[^\w-]", "_", domain, flags=re.ASCII)[:60]
        if plain != domain:
            plain += "-" + hashlib.sha256(domain.encode()).hexdigest()[:8]
        shard = _BegunShard(f"{split}.{plain}")
        for suffix in shard.waiting:
            (self._directory / f"{shard.name}{suffix}").open("xb").close()
        shard.append(".offsets", np.array(0, "<u8"))
        return shard

    def _flush(self) -> None:
        for shard in self._begun.values():
            for suffix, content in shard.waiting.items():
                if content:
                    with (self._directory / f"{shard.name}{suffix}").open("ab") as file:
                        file.write(content)
                    content.clear()
        self._buffered = 0


@dataclasses.dataclass
class _BegunShard:
    """A shard that is being written; `waiting` is what its files lack yet, by suffix."""

    name: str
    waiting: dict[str, bytearray] = dataclasses.field(
        default_factory=lambda: {suffix: bytearray() for suffix in (".npy", ".offsets", ".bytes")}
    )
    tokens: int = 0
    documents: int = 0
    bytes: int = 0

    def append(self, suffix: str, numbers: np.ndarray) -> int:
        """Adds to what waits; returns its bytes."""
        self.waiting[suffix] += numbers.tobytes()
        return numbers.nbytes


def check_tokens(tokens: np.ndarray, vocab_size: int, domain: str) -> None:
    """Raises DataError for a token outside the vocabulary."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise DataError(f"domain {domain!r}: token {tokens.max()} lies outside the vocabulary of "
                        f"{vocab_size}; the tokenizer.json contradicts itself")  # fmt: skip


def _check_types(record: Any) -> None:
    """Raises TypeError for a value that `TokenIndex.save` couldn't have written."""
    for name, kind in typing.get_type_hints(type(record)).items():
        value = getattr(record, name)
        plain = typing.get_origin(kind) if isinstance(kind, types.GenericAlias) else kind
        if not isinstance(value, plain) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise TypeError(f"{name} = {reprlib.repr(value)}")
    if isinstance(record, TokenIndex) and record.dtype not in ("uint16", "uint32"):
        raise TypeError(f"dtype = {reprlib.repr(record.dtype)}")


def map_numbers(path: Path, dtype: np.dtype) -> np.ndarray:
    """The numbers of a whole file, read-only, mapped into memory.

    The file isn't kept open, as np.memmap would: a process may open few, and domains may be many.
    """
    import pyarrow  # takes a moment to import

    if path.stat().st_size == 0:  # nothing can't be mapped
        return np.zeros(0, dtype)
    with pyarrow.memory_map(os.fsencode(path)) as file:
        return np.frombuffer(file.read_buffer(), dtype)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: is missing; delete {path.parent} and prepare it again")


def _check_size(path: Path, expected: int) -> None:
    _check_exists(path)
    if path.stat().st_size != expected:
        raise DataError(f"{path}: has {path.stat().st_size} bytes where index.json says {expected}; "
                        f"delete {path.parent} and prepare it again")  # fmt: skip
