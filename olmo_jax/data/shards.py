"""Token shards: the documents of a split and domain as one raw array in OLMo's layout, and the index of all shards.

A file named `.npy` holds little-endian uint16 (uint32 if the vocabulary needs it) without a header; each document ends
with eos. Two more files hold uint64: the offset of each document and the end of the last one, and the size of each
document's text in bytes.
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
_BUFFERED = 64 * 2**20  # bytes of all shards that are held in memory before they are written


@dataclasses.dataclass(frozen=True)
class Shard:
    """The documents of one split and domain.

    Attributes:
      file, offsets: names of the files of tokens and offsets.
      tokens: their number, including the eos of each document. bytes: size of the text in UTF-8.
      sizes: name of the file with the size of each document's text; None in data prepared by versions that wrote none.
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
    """The contents of a folder of prepared data.

    Attributes:
      directory: the folder.
      dtype: "uint16" or "uint32". vocab_size: of the tokenizer. eos_id: the token that ends every document.
      tokenizer_sha256: of tokenizer.json in the same folder.
      fingerprint: of corpus and tokenizer (see fingerprint.py).
      sources: what the fingerprint was computed from, to report what has changed.
      shards: sorted by split and domain.
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
        """Return the index in a folder, after a check of the sizes of its files.

        Raises DataError for an index or file that is missing, truncated or not written by `prepare`.
        """
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
                    f"{path}: written by another version of this library; delete {directory} and prepare it again"
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
        """Return all domains, sorted."""
        return tuple(sorted({shard.domain for shard in self.shards}))

    def shard(self, split: str, domain: str) -> Shard:
        """Return the shard of a split and domain. Raises DataError for an unknown domain."""
        for shard in self.shards:
            if (shard.split, shard.domain) == (split, domain):
                return shard
        raise DataError(f"{self.directory}: no domain {domain!r} in {split}; give one of {', '.join(self.domains)}")

    def tokens(self, split: str, domain: str) -> np.ndarray:
        """Return all tokens with eos, uint16 or uint32 [tokens]: a read-only memory map."""
        return map_numbers(*self.token_file(split, domain))

    def token_file(self, split: str, domain: str) -> tuple[Path, np.dtype]:
        """Return the file of the tokens and their dtype."""
        return self.directory / self.shard(split, domain).file, np.dtype(self.dtype).newbyteorder("<")

    def documents(self, split: str, domain: str) -> Iterator[np.ndarray]:
        """Return the tokens of each document in stored order, without eos: slices of the memory map.

        Raises DataError for damaged offsets and, when its document is reached, for a token outside the vocabulary.
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
        return DataError(f"{path}: has changed since it was written; delete {self.directory} and prepare it again")

    def text_bytes(self, split: str, domain: str) -> np.ndarray | None:
        """Return the bytes of each document's text in stored order, uint64 [documents]; None if they aren't stored.

        A document that was made as tokens, without text, has 0.
        """
        shard = self.shard(split, domain)
        if shard.sizes is None:
            return None
        path = self.directory / shard.sizes
        sizes = map_numbers(path, np.dtype("<u8"))
        if sizes.sum() != shard.bytes:
            raise DataError(f"{path}: has changed since it was written; delete {self.directory} and prepare it again")
        return sizes


class ShardWriter:
    """Writes the shards of all splits and domains that documents are added to; a context manager.

    It has only one file open at a time, however many domains there are.
    """

    def __init__(self, directory: Path, vocab_size: int, eos_id: int):
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self._directory, self._vocab_size, self._eos_id = directory, vocab_size, eos_id
        self._open: dict[tuple[str, str], _OpenShard] = {}
        self._buffered = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush()

    def add(self, split: str, domain: str, tokens_L: np.ndarray, text_bytes: int) -> None:
        """Append a document. Raises DataError for a token outside the vocabulary.

        Args:
          tokens_L: without eos, which is added.
          text_bytes: length of the text in UTF-8; 0 for a document that was made as tokens, without text.
        """
        check_tokens(tokens_L, self._vocab_size, domain)
        with_eos = np.append(tokens_L, self._eos_id)
        self.extend(split, domain, with_eos, np.array([len(with_eos)]), np.array([text_bytes]))

    def extend(self, split: str, domain: str, tokens_T: np.ndarray, lengths_N: np.ndarray, sizes_N: np.ndarray) -> None:
        """Append documents. Raises DataError for a token outside the vocabulary.

        Args:
          tokens_T: the concatenated documents, each ending with eos.
          lengths_N: tokens of each document with eos. sizes_N: bytes of each text in UTF-8.
        """
        check_tokens(tokens_T, self._vocab_size, domain)
        for name in SPLITS:
            if (name, domain) not in self._open:
                self._open[name, domain] = self._begin(name, domain)
        shard = self._open[split, domain]
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
        """Return the shards written so far, sorted by split and domain."""
        return tuple(
            Shard(
                split, domain, f"{s.name}.npy", f"{s.name}.offsets", s.tokens, s.documents, s.bytes, f"{s.name}.bytes"
            )
            for (split, domain), s in sorted(self._open.items())
        )

    def _begin(self, split: str, domain: str) -> "_OpenShard":
        # A domain may be any text; a hash stands for the characters that a file name can't have.
        plain = re.sub(r"[^\w-]", "_", domain, flags=re.ASCII)[:60]
        if plain != domain:
            plain += "-" + hashlib.sha256(domain.encode()).hexdigest()[:8]
        shard = _OpenShard(f"{split}.{plain}")
        for suffix in shard.waiting:
            (self._directory / f"{shard.name}{suffix}").open("xb").close()
        shard.append(".offsets", np.array(0, "<u8"))
        return shard

    def _flush(self) -> None:
        for shard in self._open.values():
            for suffix, content in shard.waiting.items():
                if content:
                    with (self._directory / f"{shard.name}{suffix}").open("ab") as file:
                        file.write(content)
                    content.clear()
        self._buffered = 0


@dataclasses.dataclass
class _OpenShard:
    """A shard that is being written; `waiting` holds the bytes that aren't in its files yet, by suffix."""

    name: str
    waiting: dict[str, bytearray] = dataclasses.field(
        default_factory=lambda: {suffix: bytearray() for suffix in (".npy", ".offsets", ".bytes")}
    )
    tokens: int = 0
    documents: int = 0
    bytes: int = 0

    def append(self, suffix: str, numbers: np.ndarray) -> int:
        """Add numbers to the file with this suffix; return how many bytes they have."""
        self.waiting[suffix] += numbers.tobytes()
        return numbers.nbytes


def check_tokens(tokens: np.ndarray, vocab_size: int, domain: str) -> None:
    """Raise DataError for a token outside the vocabulary."""
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise DataError(f"domain {domain!r}: token {tokens.max()} lies outside the vocabulary of "
                        f"{vocab_size}; the tokenizer.json is inconsistent; choose another")  # fmt: skip


def _check_types(record: Any) -> None:
    """Raise TypeError for a value of another type than `TokenIndex.save` writes."""
    for name, kind in typing.get_type_hints(type(record)).items():
        value = getattr(record, name)
        plain = typing.get_origin(kind) if isinstance(kind, types.GenericAlias) else kind
        if not isinstance(value, plain) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise TypeError(f"{name} = {reprlib.repr(value)}")
    if isinstance(record, TokenIndex) and record.dtype not in ("uint16", "uint32"):
        raise TypeError(f"dtype = {reprlib.repr(record.dtype)}")


def map_numbers(path: Path, dtype: np.dtype) -> np.ndarray:
    """Return all numbers in a file as a read-only memory map.

    Unlike np.memmap, it doesn't keep the file open: there may be more domains than files that a process may open.
    """
    import pyarrow  # takes a moment to import

    if path.stat().st_size == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype)
    with pyarrow.memory_map(os.fsencode(path)) as file:
        return np.frombuffer(file.read_buffer(), dtype)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: is missing; delete {path.parent} and prepare it again")


def _check_size(path: Path, expected: int) -> None:
    _check_exists(path)
    if path.stat().st_size != expected:
        raise DataError(f"{path}: has {path.stat().st_size} bytes, but index.json says {expected}; "
                        f"delete {path.parent} and prepare it again")  # fmt: skip
