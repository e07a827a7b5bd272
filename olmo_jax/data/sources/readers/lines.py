"""Read text files as streams of UTF-8: plain, .gz or .zst; in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

A compressed file raises an error if it ends within a zstd frame or gzip member, or if anything else follows the last
one. A file truncated exactly between two of them is a valid file; that is noticed only if a line of JSON is cut.
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
_LARGEST_WINDOW = 1 << 31  # of `zstd --long=31`, the maximum
# UTF-32 first: its little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_KINDS = (
    (b"\x1f\x8b", "gzip; rename it to end in .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd; rename it to end in .zst"),
    (b"PAR1\x15", "Parquet; rename it to end in .parquet"),
    (b"%PDF-", "PDF; convert it to text"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
)


class Opened(NamedTuple):
    """An open file of text.

    Attributes:
      stream: its text, uncompressed, in UTF-8.
      file: the file on disk, whose position shows how much of it has been read.
    """

    stream: io.BufferedReader
    file: IO[bytes]


@contextlib.contextmanager
def opened(path: Path, name: str) -> Iterator[Opened]:
    """Yield an open text file, compressed as the suffix of `name` says (in upper or lower case).

    Raises DataError, also within the context, for a file that can't be decompressed, isn't in the encoding of its
    byte-order mark, begins with more than a quarter of NUL bytes, or is of another kind.
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
    """A stream of the bytes that an iterator yields."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._unread = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._unread:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._unread = memoryview(chunk)
        size = min(len(buffer), len(self._unread))
        buffer[:size] = self._unread[:size]
        self._unread = self._unread[size:]
        return size


class _SmallReads:
    """A file that is read in small pieces, so that its position shows what gzip, which asks for more, has used."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return self._file.read(_AT_ONCE if size < 0 else min(size, _AT_ONCE))


def _unpacked(file: IO[bytes], name: str) -> io.BufferedReader:
    if name.endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=_SmallReads(file), mode="rb"))  # type: ignore[arg-type, call-overload]
    if name.endswith(".zst"):
        return io.BufferedReader(_Chunks(_frames(file)), _AT_ONCE)
    return file  # type: ignore[return-value]


def _frames(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of all frames; zstandard's reader doesn't notice a file that ends within a frame."""
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
    # UTF-8 text doesn't contain so many; in UTF-16, every other byte may be NUL.
    if 4 * beginning.count(0) > len(beginning) and _encoding(beginning) is None:
        raise DataError(
            f"{printable(path)}: begins with too many NUL bytes: it is damaged, as by a power cut, or UTF-16 without a "
            "byte-order mark; fetch it again, or convert it, for example with iconv -f UTF-16LE -t UTF-8"
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
        raise _UndecodableError(f"isn't {e.encoding.upper()} despite its byte-order mark ({e.reason})") from None
