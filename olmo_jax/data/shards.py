"""Token shards: the documents of a split and domain as one raw array in OLMo's layout, and the index that names them.

A `.npy` by name holds little-endian uint16 (or uint32 where the vocabulary needs it) and no header; each document is
followed by eos. Beside it lie the offsets at which documents begin, uint64, one more than there are documents.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from olmo_jax.data import DataError

SPLITS = ("validation", "train")
INDEX_FILE = "index.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One (split, domain). `tokens` counts the eos of every document, `bytes` is of the text, in UTF-8."""

    split: str
    domain: str
    file: str
    offsets: str
    tokens: int
    documents: int
    bytes: int


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
        except ValueError as e:
            raise DataError(f"{path}: isn't JSON ({e}); delete {directory} and prepare it again") from None
        try:
            if values.pop("format") != _FORMAT:
                raise DataError(
                    f"{path}: written by another version of this library; delete {directory}, prepare again"
                )
            shards = tuple(Shard(**shard) for shard in values.pop("shards"))
            index = cls(directory=directory, shards=shards, **values)
        except (KeyError, TypeError) as e:
            raise DataError(f"{path}: isn't an index ({e}); delete {directory} and prepare it again") from None
        for shard in shards:
            _check_size(directory / shard.file, shard.tokens * np.dtype(index.dtype).itemsize)
            _check_size(directory / shard.offsets, (shard.documents + 1) * 8)
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
        return _map(self.directory / self.shard(split, domain).file, np.dtype(self.dtype).newbyteorder("<"))

    def documents(self, split: str, domain: str) -> Iterator[np.ndarray]:
        """The tokens of each document in stored order, without its eos: slices of the memory map."""
        tokens = self.tokens(split, domain)
        offsets = _map(self.directory / self.shard(split, domain).offsets, np.dtype("<u8"))
        return (tokens[int(begin) : int(end) - 1] for begin, end in zip(offsets[:-1], offsets[1:], strict=True))


class ShardWriter:
    """Writes shards, every (split, domain) that `add` meets, below a directory; a context manager."""

    def __init__(self, directory: Path, vocab_size: int, eos_id: int):
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        self._directory, self._vocab_size, self._eos_id = directory, vocab_size, eos_id
        self._open: dict[tuple[str, str], _OpenShard] = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._open.values():
            shard.tokens_file.close()
            shard.offsets_file.close()

    def add(self, split: str, domain: str, tokens_L: np.ndarray, text_bytes: int) -> None:
        """Appends a document. Raises DataError for a token outside the vocabulary."""
        if tokens_L.size and not 0 <= int(tokens_L.min()) <= int(tokens_L.max()) < self._vocab_size:
            raise DataError(f"domain {domain!r}: token {tokens_L.max()} lies outside the vocabulary of "
                            f"{self._vocab_size}; the tokenizer.json contradicts itself")  # fmt: skip
        for each in SPLITS:
            if (each, domain) not in self._open:
                self._open[each, domain] = self._begin(each, domain)
        shard = self._open[split, domain]
        dtype = np.dtype(self.dtype).newbyteorder("<")
        shard.tokens_file.write(np.append(tokens_L, self._eos_id).astype(dtype).tobytes())
        shard.tokens += len(tokens_L) + 1
        shard.documents += 1
        shard.bytes += text_bytes
        shard.offsets_file.write(np.array(shard.tokens, "<u8").tobytes())

    def shards(self) -> tuple[Shard, ...]:
        """What was written so far, in order of split and domain."""
        return tuple(
            Shard(split, domain, s.name + ".npy", s.name + ".offsets", s.tokens, s.documents, s.bytes)
            for (split, domain), s in sorted(self._open.items())
        )

    def _begin(self, split: str, domain: str) -> "_OpenShard":
        # A domain may be any text; what its file name can't say, a hash does.
        plain = re.sub(r"[^\w-]", "_", domain, flags=re.ASCII)[:60]
        if plain != domain:
            plain += "-" + hashlib.sha256(domain.encode()).hexdigest()[:8]
        name = f"{split}.{plain}"
        shard = _OpenShard(
            name, (self._directory / f"{name}.npy").open("xb"), (self._directory / f"{name}.offsets").open("xb")
        )
        shard.offsets_file.write(np.array(0, "<u8").tobytes())
        return shard


@dataclasses.dataclass
class _OpenShard:
    name: str
    tokens_file: IO[bytes]
    offsets_file: IO[bytes]
    tokens: int = 0
    documents: int = 0
    bytes: int = 0


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing can't be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"{path}: is missing; delete {path.parent} and prepare it again")


def _check_size(path: Path, expected: int) -> None:
    _check_exists(path)
    if path.stat().st_size != expected:
        raise DataError(f"{path}: has {path.stat().st_size} bytes where index.json says {expected}; "
                        f"delete {path.parent} and prepare it again")  # fmt: skip
