"""Documents put in the order of their keys in bounded memory, by way of files of a range of keys each."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from olmo_jax.data.tokenizing.encoded import Encoded, gathered

_TEXT_OF_A_RANGE = 64e6  # bytes; its tokens are a third to two thirds of that
_MOST_RANGES = 1024
_BUFFERED = 32 * 2**20  # bytes of all ranges together that wait to be written
_RECORD = np.dtype([("key", "<u8", (2,)), ("group", "<u4"), ("length", "<u8"), ("size", "<u8")])


class KeyOrder:
    """Takes documents in any order and returns them by their keys; what it writes below `directory` it deletes.

    Memory is bounded up to 64 GB of text; of more, a thousandth of the tokens is held at a time.

    Args:
      text_bytes: about how much text there will be.
      dtype: of the tokens.
    """

    def __init__(self, directory: Path, text_bytes: float, dtype: np.dtype):
        ranges = min(_MOST_RANGES, int(text_bytes / _TEXT_OF_A_RANGE) + 1)
        self._dtype, self._directory, self._buffered = dtype, directory, 0
        self._group_of: dict[tuple[str, str], int] = {}
        self._records = [bytearray() for _ in range(ranges)]
        self._tokens = [bytearray() for _ in range(ranges)]

    def add(self, encoded: Encoded) -> None:
        """Takes documents that have keys."""
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
        """All documents, those of a range of keys at a time: ranges in order, the documents within them not yet."""
        for number in range(len(self._records)):
            records_N = np.frombuffer(self._taken(number, "records", self._records), _RECORD)
            tokens_T = np.frombuffer(self._taken(number, "tokens", self._tokens), self._dtype)
            yield Encoded(
                tuple(self._group_of),
                records_N["group"],
                records_N["length"],
                records_N["size"],
                tokens_T,
                records_N["key"],
            )

    def _taken(self, number: int, what: str, waiting: list[bytearray]) -> bytes:
        path = self._path(number, what)
        written = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        rest, waiting[number] = waiting[number], bytearray()
        return written + rest if written else bytes(rest)

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
