"""Read a GGUF file, llama.cpp's format: its metadata, and its tensors on demand, dequantised by the package gguf.

The header is parsed here rather than by the package, whose reader takes ten seconds for a large vocabulary and doesn't
end on some damaged files. Every length is compared with the size of the file before anything of that length is read.
"""

import dataclasses
import functools
import math
import os
import struct
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from olmo_jax.errors import WeightsError
from olmo_jax.storage.paths import local

SUFFIX = ".gguf"
# The types that gguf.quants dequantises and that the project has tried.
QUANTIZATIONS = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip

_VERSIONS = (2, 3)
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4


class GgufTensor(NamedTuple):
    """A tensor of the file: its shape with the outermost axis first, its type, and the bytes that it occupies."""

    name: str
    shape: tuple[int, ...]
    quantization: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """The header of a file: `metadata` by key, arrays of numbers as numpy arrays, and `tensors` by name."""

    path: str
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def check(self, name: str) -> None:
        """Raise WeightsError if a tensor's quantisation can't be read."""
        if (quantization := self.tensors[name].quantization) not in QUANTIZATIONS:
            raise WeightsError(
                f"{self.path}: '{name}' is quantised as {quantization}, which can't be read; "
                f"{', '.join(QUANTIZATIONS)} can be"
            )

    def read(self, name: str) -> np.ndarray:
        """Return a tensor, dequantised to float32; raises WeightsError as `check` does."""
        self.check(name)
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensors[name]
        stored = np.memmap(self.path, np.uint8, mode="r", offset=tensor.start, shape=(tensor.stop - tensor.start,))
        kind = GGMLQuantizationType[tensor.quantization]
        rows = stored.reshape(-1, len(stored) // max(1, math.prod(tensor.shape[:-1])))
        return np.asarray(dequantize(rows, kind), np.float32).reshape(tensor.shape)


def open_gguf(path: epath.PathLike) -> GgufFile:
    """Return the header of a GGUF file.

    Raises:
      WeightsError: not a GGUF file, one that is cut short or damaged, or one with an unknown type of tensor.
    """
    place = os.path.abspath(local(path))
    try:
        state = os.stat(place)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}; give a .gguf file on a local disk") from None
    return _opened(place, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _opened(path: str, size: int, _changed: int) -> GgufFile:
    if size < 24:
        raise WeightsError(f"{path}: has {size} bytes, too few for a GGUF file; get it again")
    return _Header(path, np.memmap(path, np.uint8, mode="r")).parse()


class _Header:
    """A file's bytes, and how many of them have been read as its header."""

    def __init__(self, path: str, data: np.ndarray):
        self._path, self._data, self._at = path, data, 0

    def parse(self) -> GgufFile:
        if self._take(4) != b"GGUF":
            raise WeightsError(f"{self._path}: doesn't begin with 'GGUF', as a GGUF file does; get it again")
        version = self._number("I")
        if version not in _VERSIONS:
            raise WeightsError(
                f"{self._path}: has GGUF version {version}, or big-endian numbers; versions "
                f"{' and '.join(map(str, _VERSIONS))} with little-endian numbers can be read"
            )
        tensors, keys = self._count(24), self._count(13)
        metadata = {self._text(): self._value(self._number("I")) for _ in range(keys)}
        described = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0:
            raise self._damaged(f"general.alignment is {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        placed = {}
        for name, shape, kind, offset in described:
            tensor = GgufTensor(name, shape, *self._extent(name, shape, kind, begin + offset))
            if tensor.stop > len(self._data):
                raise WeightsError(
                    f"{self._path}: is cut short: '{name}' would end at byte {tensor.stop} and the file has "
                    f"{len(self._data)}; get it again"
                )
            if name in placed:
                raise self._damaged(f"it has two tensors called '{name}'")
            placed[name] = tensor
        return GgufFile(self._path, metadata, placed)

    def _extent(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> tuple[str, int, int]:
        """Return a tensor's type, and where its bytes start and stop."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            quantization = GGMLQuantizationType(kind)
        except ValueError:
            raise WeightsError(
                f"{self._path}: '{name}' has the unknown type {kind}; {', '.join(QUANTIZATIONS)} can be read"
            ) from None
        block, size = GGML_QUANT_SIZES[quantization]
        if shape[-1] % block:
            raise self._damaged(
                f"'{name}' has rows of {shape[-1]}, not divisible by {quantization.name}'s blocks of {block}"
            )
        return quantization.name, start, start + math.prod(shape) // block * size

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._number("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self._damaged(f"'{name}' has {dimensions} dimensions")
        innermost_first = [self._number("Q") for _ in range(dimensions)]
        if math.prod(innermost_first) > 2**48 or 0 in innermost_first:
            raise self._damaged(f"'{name}' has the shape {innermost_first}")
        return name, tuple(reversed(innermost_first)), self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            raise self._damaged(f"it has a value of unknown type {kind}")
        kind = self._number("I")
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
            return np.frombuffer(self._take(self._count(dtype.itemsize) * dtype.itemsize), dtype)
        if kind == _STRING:
            return [self._text() for _ in range(self._count(8))]
        raise self._damaged(f"it has an array of unknown type {kind}")

    def _count(self, least: int) -> int:
        """Return the number of items that comes next; each takes at least `least` bytes."""
        count = self._number("Q")
        if count * least > len(self._data) - self._at:
            raise self._damaged(f"it announces {count} items at byte {self._at}, more than the file holds")
        return count

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            raise self._damaged(f"it has text that isn't UTF-8 before byte {self._at}") from None

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise WeightsError(f"{self._path}: is cut short or damaged at byte {self._at}; get it again")
        self._at += size
        return bytes(self._data[self._at - size : self._at])

    def _damaged(self, what: str) -> WeightsError:
        return WeightsError(f"{self._path}: is damaged: {what}; get it again")
