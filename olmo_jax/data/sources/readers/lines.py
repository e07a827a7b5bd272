"""Files of text as streams of UTF-8: plain, .gz or .zst, in UTF-8 or in UTF-16 or UTF-32 with a byte-order mark.

A compressed file is read whole or refused: one that ends within a frame of zstd or a member of gzip is an error, and
so is what follows the last one and isn't another. A file cut exactly between two of them is a valid file by itself;
that can be told only where the cut fell within a line, which then isn't JSON.
"""

import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from olmo_jax.data import DataError
from olmo_jax.errors import brief
from olmo_jax.storage.paths import printable

PACKED = ("", ".gz", ".zst")

_AT_ONCE = 1 << 14
_LARGEST_WINDOW = 1 << 31  # of `zstd --long=31`, the most there is
# In this order: UTF-32's little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = (
    (b"\x1f\x8b", "gzip; end its name in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd; end its name in .zst"),
    (b"PAR1\x15", "Parquet; end its name in .parquet"),
    (b"%PDF-", "PDF; convert it to text"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
)


class Opened(NamedTuple):
    """An open file of text.

    Attributes:
      stream: what is in it, unpacked, in UTF-8.
      file: as it lies on disk; its position says how much of it has been read.
    """

    stream: io.BufferedReader
    file: IO[bytes]


@contextlib.contextmanager
def opened(path: Path, name: str) -> Iterator[Opened]:
    """Opens a file that is packed as the suffix of `name`, in any case, says.

    Raises DataError, also while it is read, for what can't be unpacked, isn't of the encoding that its byte-order mark
    names, is mostly NUL bytes, or is of another kind.
    """
    try:
        with path.open("rb") as file:
            stream = _unpacked(file, name.lower())
            _check_beginning(stream.peek(), path)
            yield Opened(_as_utf8(stream), file)
    except _UndecodableError as e:
        raise DataError(f"{printable(path)}: {e}; fetch or write it again") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, _UnpackableError) as e:
        raise DataError(f"{printable(path)}: can't be unpacked ({brief(e)}); fetch or compress it again") from None


class _UnpackableError(Exception):
    pass


class _UndecodableError(Exception):
    pass


class _Chunks(io.RawIOBase):
    """The bytes that an iterator yields, as a stream."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._left = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


class _NotAhead:
    """A file that gives little at a time, so that its position tells what has been unpacked: gzip asks for much."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(_AT_ONCE if size < 0 else min(size, _AT_ONCE))


def _unpacked(file: IO[bytes], name: str) -> io.BufferedReader:
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=_NotAhead(file), mode="rb"))  # type: ignore[arg-type, call-overload]
    if name.endswith(".zst"):
        return io.BufferedReader(_Chunks(_frames(file)), _AT_ONCE)
    return file  # type: ignore[return-value]


def _frames(file: IO[bytes]) -> Iterator[bytes]:
    """The content of all frames; zstandard's own reader takes the end of the file for the end of a frame."""
    import zstandard

    unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
    frame = None
    try:
        while chunk := file.read(_AT_ONCE):
            while chunk:
                frame = frame or unpacker.decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data
                if frame.eof:
                    frame = None
    except zstandard.ZstdError as e:
        raise _UnpackableError(str(e)) from None
    if frame is not None:
        raise EOFError("it ends within a frame")


def _check_beginning(beginning: bytes, path: Path) -> None:
    for magic, kind in _OTHER_KINDS:
        if beginning.startswith(magic):
            raise DataError(f"{printable(path)}: isn't text but {kind}")
    # No text has so many; one in UTF-16 has them as every other byte.
    if 4 * beginning.count(0) > len(beginning) and _encoding(beginning) is None:
        raise DataError(
            f"{printable(path)}: is mostly NUL bytes: damaged, as by a power cut, or UTF-16 without a byte-order mark; "
            "fetch it again, or convert it, such as with iconv -f UTF-16LE -t UTF-8"
        )


def _encoding(beginning: bytes) -> str | None:
    return next((name for mark, name in MARKS if beginning.startswith(mark)), None)


def _as_utf8(stream: io.BufferedReader) -> io.BufferedReader:
    encoding = _encoding(stream.peek(4))
    return stream if encoding is None else io.BufferedReader(_Chunks(_converted(stream, encoding)), _AT_ONCE)


def _converted(stream: IO[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while chunk := stream.read(_AT_ONCE):
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeDecodeError as e:
        raise _UndecodableError(f"isn't {e.encoding.upper()}, which its byte-order mark names ({e.reason})") from None
