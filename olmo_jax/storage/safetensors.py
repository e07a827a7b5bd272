"""The header of a .safetensors file: where each tensor lies, so that one can be read without the others.

The file begins with the header's length (8 bytes, little-endian), then the header as JSON, then the tensors' bytes.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# safetensors' names of dtypes, and numpy's (jax registers bfloat16). The narrower dtypes of quantised files keep their
# safetensors name and don't count as matrices.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
_LENGTH = 8
_LONGEST = 100_000_000  # bytes of a header, as the format allows

# Returns the bytes [start, stop) of a file, fewer where it ends sooner.
Read = Callable[[int, int], bytes]


class HeaderError(ValueError):
    """A file whose beginning isn't the header of a .safetensors file."""


class Stored(NamedTuple):
    """A tensor in a file: its shape, its dtype by numpy's name, and its bytes [start, stop) of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    stop: int

    def read(self, read: Read, rows: int | None = None) -> np.ndarray:
        """Return the tensor, or its first rows, reading only these bytes. Raises HeaderError if the file lacks them."""
        shape = self.shape if rows is None else (min(rows, self.shape[0]), *self.shape[1:])
        dtype = jnp.dtype(self.dtype)
        size = math.prod(shape) * dtype.itemsize
        content = read(self.start, self.start + size)
        if len(content) != size:
            raise HeaderError(f"has {len(content):,} of the {size:,} bytes of '{self.name}'")
        return np.frombuffer(content, dtype).reshape(shape)


class Header(NamedTuple):
    """The tensors of a file, by name, the header's own length with that field, and the size of the whole file."""

    tensors: dict[str, Stored]
    length: int
    size: int


def read_header(read: Read, guess: int = 0) -> Header:
    """Return the header of a file. Raises HeaderError.

    `guess` is how many bytes to read at first; a header no longer than that needs a single read.
    """
    beginning = read(0, max(guess, _LENGTH))
    if len(beginning) < _LENGTH:
        raise HeaderError("is empty" if not beginning else "ends within its header")
    if beginning.startswith(b"version "):
        raise HeaderError("is a Git LFS pointer, not the file itself")
    length = _LENGTH + int.from_bytes(beginning[:_LENGTH], "little")
    if length > _LONGEST:
        raise HeaderError("doesn't begin as a .safetensors file does")
    content = beginning[:length]
    if len(content) < length:
        content += read(len(content), length)
    if len(content) < length:
        raise HeaderError("ends within its header")
    try:
        entries = json.loads(content[_LENGTH:])
        tensors = {name: _stored(name, entry, length) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HeaderError("doesn't begin as a .safetensors file does") from error
    return Header(tensors, length, max((stored.stop for stored in tensors.values()), default=length))


def _stored(name: str, entry: Mapping[str, Any], length: int) -> Stored:
    start, stop = entry["data_offsets"]
    shape = tuple(int(side) for side in entry["shape"])
    dtype = DTYPES.get(entry["dtype"], entry["dtype"])
    if min((start, stop - start, *shape)) < 0:
        raise ValueError("negative sizes")
    if entry["dtype"] in DTYPES and math.prod(shape) * jnp.dtype(dtype).itemsize != stop - start:
        raise ValueError("sizes that don't fit")
    return Stored(name, shape, dtype, length + start, length + stop)
