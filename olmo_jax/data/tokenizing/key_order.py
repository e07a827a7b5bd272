"""Sort documents by key in bounded memory, with temporary files that hold a range of keys each."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from olmo_jax.data.tokenizing.encoded import Encoded, gathered

_TEXT_PER_RANGE = 64e6  # bytes; the tokens have a third to two thirds as many
_MOST_RANGES = 1024
_BUFFERED = 32 * 2**20  # bytes of all ranges that are held in memory before they are written
_RECORD = np.dtype([("key", "<u8", (2,)), ("group", "<u4"), ("length", "<u8"), ("size", "<u8")])


class KeyOrder:
    """Takes documents in any order and returns them by ranges of their keys; encoded.in_groups sorts each range.

    Memory is bounded for up to 64 GB of text; for more, it grows to about a thousandth of the tokens.

    Args:
      directory: for temporary files, which `ranges` deletes.
      text_bytes: the approximate size of all text.
      dtype: of the tokens.
    """

    def __init__(self, directory: Path, text_bytes: float, dtype: np.dtype):
        ranges = min(_MOST_RANGES, int(text_bytes / _TEXT_PER_RANGE) + 1)
        self._dtype, self._directory, self._buffered = dtype, directory, 0
        self._group_of: dict[tuple[str, str], int] = {}
        self._records = [bytearray() for _ in range(ranges)]
        self._tokens = [bytearray() for _ in range(ranges)]

    def add(self, encoded: Encoded) -> None:
        """Add documents, which must have keys."""
        assert encoded.keys_N2 is not None
        groups = [self._group_of.setdefault(group, len(self._group_of)) for group in encoded.groups]
        records_N = np.zeros(len(encoded.group_N), _RECORD)
        records_N["key"] = encoded.keys_N2
        records_N["group"] = np.array(groups, np.uint32)[encoded.group_N]
        records_N["length"], records_N["size"] = encoded.lengths_N, encoded.sizes_N
        range_N = ((encoded.keys_N2[:, 0] >> np.uint64(32)) * np.uint64(len(self._records))) >> np.uint64(32)
        for number in np.unique(range_N):
            chosen = np.flatnonzero(range_N == number)
            self._records[number] += records_N[chosen].tobytes()
            self._tokens[number] += gathered(encoded.tokens_T, encoded.lengths_N, chosen).tobytes()
        self._buffered += records_N.nbytes + encoded.tokens_T.nbytes
        if self._buffered > _BUFFERED:
            self._flush()

    def ranges(self) -> Iterator[Encoded]:
        """Yield the documents of one range of keys at a time: the ranges in order, each with its documents unsorted."""
        for number in range(len(self._records)):
            records_N = np.frombuffer(self._take(number, "records", self._records), _RECORD)
            tokens_T = np.frombuffer(self._take(number, "tokens", self._tokens), self._dtype)
            yield Encoded(
                tuple(self._group_of),
                records_N["group"],
                records_N["length"],
                records_N["size"],
                tokens_T,
                records_N["key"],
            )

    def _take(self, number: int, what: str, waiting: list[bytearray]) -> bytes:
        path = self._path(number, what)
        written = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        unwritten, waiting[number] = waiting[number], bytearray()
        return written + unwritten if written else bytes(unwritten)

    def _flush(self) -> None:
        for what, waiting in (("records", self._records), ("tokens", self._tokens)):
            for number, content in enumerate(waiting):
                if content:
                    with self._path(number, what).open("ab") as file:
                        file.write(content)
                    content.clear()
        self._buffered = 0

    def _path(self, number: int, what: str) -> Path:
        return self._directory / f"range-{number}.{what}"
